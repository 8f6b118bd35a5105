"""What one part of the configuration says of another: names that exist, and what must not be mixed.

No test scan can have a part in training, and no comparison can be unequal, by a mistake in the
configuration: every way that is known is refused here, in one line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scanbench import plan
from scanbench.errors import UserError, did_you_mean

Config = dict[str, Any]


def check_references(config: Config) -> None:
    """Check a configuration whose every part is as the schema has it, defaults filled in.

    Raises
    ------
    UserError
        Naming the first wrong key, its value and the mend.
    """
    _check_paths(config)
    _check_classes(config)
    _check_targets(config)
    _check_comparisons(config)
    _check_curves(config)
    _check_starts(config)
    _check_explanations(config)
    _check_anomalies(config)
    _check_teachers(config)
    _check_deployments(config)


def _check_paths(config: Config) -> None:
    """Check that nothing of the user's lies where Snakemake deletes before a job writes."""
    made = Path("results/data").resolve()
    for name, dataset in config["datasets"].items():
        for key in ("path", "labels"):
            path = dataset.get(key)
            # `labels` of the public images is a table of options.
            if isinstance(path, str) and Path(path).resolve().is_relative_to(made):
                raise UserError(
                    f"config: datasets.{name}.{key}: {path} lies in results/data, where each job's "
                    "folder is deleted before it runs; move it elsewhere"
                )


def _check_classes(config: Config) -> None:
    """Check tables that have a class for their key, and lists of classes."""
    known = {found for name in config["datasets"] for found in plan.classes(config, name)}
    for found in config["evaluation"]["stop_classes"]:
        if found not in known:
            raise UserError(
                f"config: evaluation.stop_classes: no data set has a class {found!r}; "
                f"{did_you_mean(found, known)}"
            )
    for name, dataset in config["datasets"].items():
        classes = plan.classes(config, name)
        for part, key in (("simulate", "shares"), ("labels", "merge")):
            # `labels` of the user's own files is the path of a table.
            if not isinstance(dataset.get(part), Mapping):
                continue
            for found in dataset[part][key]:
                if found not in classes:
                    raise UserError(
                        f"config: datasets.{name}.{part}.{key}.{found}: no class {found!r}; "
                        f"{did_you_mean(found, classes)}"
                    )


def _check_comparisons(config: Config) -> None:
    """Check comparisons, and what is made of the same experiments or data sets."""
    for name, members in config["ensembles"].items():
        _check_members(config, name, members)
    for name, sides in config["side_by_side"].items():
        _check_sides(config, name, sides["comparisons"])
    for name in config["tip_changes"]:
        _check_tip_changes(config, name)
    for name in config["realism"]:
        _check_realism(config, name)
    wanted = plan.compared(config)
    for name, comparison in config["comparisons"].items():
        _check_data(config, comparison, f"config: comparisons.{name}")
        baseline = comparison["baseline"]
        if baseline is not None and baseline not in comparison["experiments"]:
            hint = did_you_mean(baseline, comparison["experiments"])
            raise UserError(
                f"config: comparisons.{name}.baseline: {baseline!r} is not one of its experiments; "
                f"{hint}"
            )
        for experiment in comparison["experiments"]:
            known = {**config["experiments"], **config["ensembles"]}
            where = f"config: comparisons.{name}.experiments"
            if experiment not in known:
                hint = did_you_mean(experiment, known)
                raise UserError(f"{where}: no experiment {experiment!r}; {hint}")
            for member in plan.members(config, experiment):
                if config["experiments"][member]["withhold"]:
                    raise UserError(
                        f"{where}: {member!r} withholds classes, so it cannot be scored beside "
                        "experiments that name them; compare it in `anomalies`"
                    )
            # An overlay may change sizes for its own targets without regard to the others.
            if name in wanted:
                for member in plan.members(config, experiment):
                    _check_window(config, comparison["dataset"], member)
        if name in wanted and config["tuning"]["trials"]:
            _check_effort(config, name)


def _check_targets(config: Config) -> None:
    """Check that the targets exist, and that a name says which table it stands in."""
    tables = (
        *("comparisons", "side_by_side", "curves"),
        *("explanations", "anomalies", "tip_changes", "realism"),
    )
    known: dict[str, str] = {}
    for table in tables:
        for name in config[table]:
            if name in known:
                raise UserError(
                    f"config: {table}.{name}: one of {known[name]} has this name; give it another"
                )
            known[name] = table
    for target in config["targets"]:
        if target not in known:
            hint = did_you_mean(target, known)
            raise UserError(f"config: targets: no comparison {target!r}; {hint}")


def _check_data(config: Config, wanted: Config, where: str) -> None:
    """Check that the data set and the split that something names exist."""
    for kind in ("dataset", "split"):
        _named(config, kind, wanted[kind], f"{where}.{kind}")


def _named(config: Config, kind: str, name: str, where: str) -> Config:
    """Return the experiment, comparison, dataset or split of a name, or say that there is none."""
    table = config[f"{kind}s"]
    if name not in table:
        raise UserError(f"{where}: no {kind} {name!r}; {did_you_mean(name, table)}")
    found: Config = table[name]
    return found


def _check_held_out(config: Config, split: str, where: str) -> None:
    """Refuse a split that has scans of one group in training and in test."""
    scheme = config["splits"][split]["scheme"]
    if not plan.holds_groups_out(config, split):
        raise UserError(
            f"{where}: scheme {scheme!r} of split {split!r} has scans of one group on both sides; "
            "take one that holds whole groups out (kfold, fixed)"
        )


def _targeted(config: Config, table: str) -> Iterator[tuple[str, Config]]:
    """Give the entries of a table that are targets: overlays may change what others rest on."""
    for name in config["targets"]:
        if name in config[table]:
            yield f"config: {table}.{name}", config[table][name]


def _check_explanations(config: Config) -> None:
    for where, wanted in _targeted(config, "explanations"):
        comparison = _named(config, "comparison", wanted["comparison"], f"{where}.comparison")
        _check_held_out(config, comparison["split"], f"{where}.comparison")
        folds = plan.folds(config["splits"][comparison["split"]])
        for experiment in wanted["experiments"]:
            if experiment in config["ensembles"]:
                raise UserError(
                    f"{where}.experiments: {experiment!r} is an ensemble; explain its members"
                )
            if experiment in comparison["experiments"]:
                _check_window(config, comparison["dataset"], experiment)
        for key, known in (
            ("experiments", comparison["experiments"]),
            ("seeds", comparison["seeds"]),
            ("folds", folds),
        ):
            for value in wanted[key] or ():
                if value not in known:
                    raise UserError(
                        f"{where}.{key}: {value!r} is not of comparison {wanted['comparison']!r}; "
                        f"it has {', '.join(map(str, known))}"
                    )


def _check_anomalies(config: Config) -> None:
    for where, wanted in _targeted(config, "anomalies"):
        _check_data(config, wanted, where)
        _check_held_out(config, wanted["split"], f"{where}.split")
        names = wanted["experiments"]
        first = _named(config, "experiment", names[0], f"{where}.experiments")["withhold"]
        classes = plan.classes(config, wanted["dataset"])
        for experiment in names:
            withheld = _named(config, "experiment", experiment, f"{where}.experiments")["withhold"]
            if not withheld:
                raise UserError(
                    f"{where}.experiments: {experiment!r} withholds no class; give it "
                    "`withhold: [CLASS]`, or compare it in `comparisons`"
                )
            if config["experiments"][experiment]["start"] is not None:
                raise UserError(
                    f"{where}.experiments: {experiment!r} starts from a run that may have seen "
                    f"{', '.join(withheld)}; leave out `start` or `withhold`"
                )
            if config["experiments"][experiment]["teacher"] is not None:
                raise UserError(
                    f"config: experiments.{experiment}.teacher: a teacher names the classes that "
                    "are withheld; leave it out (`teacher: null`)"
                )
            if set(withheld) != set(first):
                raise UserError(
                    f"{where}.experiments: {experiment!r} withholds {', '.join(withheld)}, but "
                    f"{names[0]!r} {', '.join(first)}; compare like with like"
                )
            for found in withheld:
                if found not in classes:
                    raise UserError(
                        f"config: experiments.{experiment}.withhold: no class {found!r}; "
                        f"{did_you_mean(found, classes)}"
                    )
            if len(set(classes) - set(withheld)) < 2:
                raise UserError(
                    f"config: experiments.{experiment}.withhold: leaves fewer than two of the "
                    f"{len(classes)} classes of {wanted['dataset']!r} to learn; withhold fewer"
                )
            _check_window(config, wanted["dataset"], experiment)


def _check_members(config: Config, name: str, members: list[str]) -> None:
    """Check that an ensemble has a name of its own and members that exist."""
    where = f"config: ensembles.{name}"
    if name in config["experiments"]:
        raise UserError(f"{where}: an experiment has this name; give it another")
    for member in members:
        _named(config, "experiment", member, where)


def _check_effort(config: Config, comparison: str) -> None:
    """Check that in a comparison either all experiments are tuned or none."""
    wanted = config["comparisons"][comparison]["experiments"]
    names = [name for experiment in wanted for name in plan.members(config, experiment)]
    without = [name for name in names if "search" not in config["experiments"][name]]
    if without and len(without) < len(names):
        raise UserError(
            f"config: comparisons.{comparison}: {without[0]!r} has no search, but others have: "
            "give it one, or `search: {}` if it has nothing to tune"
        )
    for name in names:
        experiment = config["experiments"][name]
        if experiment.get("search") and experiment["training"]["fraction"] < 1:
            raise UserError(
                f"config: experiments.{name}.search: trials would see labels beyond the share of "
                "training.fraction that a run knows; give it `search: {}`"
            )


def _check_tip_changes(config: Config, name: str) -> None:
    """Check what tip changes are looked for in, and with."""
    wanted, where = config["tip_changes"][name], f"config: tip_changes.{name}"
    _check_data(config, wanted, where)
    _check_held_out(config, wanted["split"], f"{where}.split")
    for name in wanted["experiments"]:
        experiment = _named(config, "experiment", name, f"{where}.experiments")
        if experiment["window"] or experiment["normalisation"] == "scan":
            raise UserError(
                f"{where}.experiments: {name!r} is of windows, or normalised by lines not yet "
                "measured; take experiments that answer line by line about a whole scan"
            )
        if experiment["withhold"]:
            raise UserError(
                f"{where}.experiments: {name!r} withholds classes; compare it in `anomalies`"
            )
    for found in wanted["bad"]:
        if found not in plan.classes(config, wanted["dataset"]):
            hint = did_you_mean(found, plan.classes(config, wanted["dataset"]))
            raise UserError(f"{where}.bad: no class {found!r}; {hint}")


def _check_sides(config: Config, name: str, comparisons: list[str]) -> None:
    """Check that comparisons that stand side by side exist and have the same experiments."""
    where = f"config: side_by_side.{name}"
    for comparison in comparisons:
        _named(config, "comparison", comparison, f"{where}.comparisons")
        first, other = (
            config["comparisons"][n]["experiments"] for n in (comparisons[0], comparison)
        )
        if set(first) != set(other):
            odd = sorted(set(first) ^ set(other))[0]
            raise UserError(
                f"{where}.comparisons: {odd!r} is an experiment of only one of {comparisons[0]!r} "
                f"and {comparison!r}; give both the same"
            )


def _check_starts(config: Config) -> None:
    """Check that what a run starts from exists, fits it, and has not seen what it is tested on."""
    for name, experiment in config["experiments"].items():
        start, where = experiment["start"], f"config: experiments.{name}.start"
        if start is None:
            training = experiment["training"]
            for key, wrong in (
                ("epochs", training["epochs"] == 0),
                ("frozen", training["frozen"] != "none"),
            ):
                if wrong:
                    raise UserError(
                        f"config: experiments.{name}.training.{key}: {training[key]} rests on a "
                        "start, and there is none; give `start`, or leave it out"
                    )
            continue
        if config["experiments"].get(start["experiment"], {}).get("withhold"):
            raise UserError(
                f"{where}: {start['experiment']!r} withholds classes, and its weights serve "
                "`anomalies` alone; start from one that has learned them all"
            )
        for kind in ("experiment", "dataset", "split"):
            if start[kind] is not None:
                _named(config, kind, start[kind], f"{where}.{kind}")
        chain = [name]
        while (above := config["experiments"][chain[-1]]["start"]) is not None:
            if above["experiment"] not in config["experiments"]:
                break  # told where that experiment is checked
            chain.append(above["experiment"])
            if chain[-1] in chain[:-1]:
                circle = " → ".join(chain[chain.index(chain[-1]) :])
                raise UserError(f"{where}: a circle ({circle}); let one of them stand on its own")
    wanted = plan.compared(config)
    for name in config["comparisons"]:
        for run in plan.trained(config, name):
            _check_foundations(config, run, sizes=name in wanted)
    for name in config["comparisons"]:
        for run in plan.trained(config, name):
            _check_shares(config, run)


def _check_teachers(config: Config) -> None:
    """Check that each teacher exists, sees whole scans, as its student does, and no circle."""
    experiments = config["experiments"]
    for name, experiment in experiments.items():
        teacher, where = experiment["teacher"], f"config: experiments.{name}.teacher"
        if teacher is None:
            continue
        taught_by = teacher["experiment"]
        _named(config, "experiment", taught_by, f"{where}.experiment")
        for who in (name, taught_by):
            if experiments[who]["window"]:
                raise UserError(f"{where}: {who!r} is of windows; both must see whole scans")
        if experiment["training"]["epochs"] == 0:
            raise UserError(f"{where}: training.epochs is 0, so that nothing is learned from it")
        if teacher["answers"] == "all" and experiment["augmentation"]["flip_slow"]:
            raise UserError(
                f"{where}.answers: 'all' is of scans as measured, and augmentation.flip_slow "
                "turns them round; set that to 0, or this to last"
            )
        below, waiting = set[str](), [taught_by]
        while waiting:
            if (above := waiting.pop()) == name:
                raise UserError(f"{where}: a circle; let one of them stand on its own")
            if above not in below and above in experiments:
                below.add(above)
                rests_on = (experiments[above][role] for role in ("start", "teacher"))
                waiting += [found["experiment"] for found in rests_on if found is not None]


def _check_deployments(config: Config) -> None:
    """Check that each deployment is of an experiment of its comparison, on whole scans."""
    for name, own in config["deployments"].items():
        where = f"config: deployments.{name}"
        if own["experiment"] in config["ensembles"]:
            raise UserError(
                f"{where}.experiment: {own['experiment']!r} is an ensemble; deploy one of its "
                "members"
            )
        comparison = _named(config, "comparison", own["comparison"], f"{where}.comparison")
        experiments = comparison["experiments"]
        if own["experiment"] not in experiments:
            hint = did_you_mean(own["experiment"], experiments)
            raise UserError(
                f"{where}.experiment: {own['experiment']!r} is not one of the experiments of "
                f"{own['comparison']!r}; {hint}"
            )
        experiment = config["experiments"][own["experiment"]]
        if experiment["window"] or experiment["normalisation"] == "scan":
            raise UserError(
                f"{where}.experiment: {own['experiment']!r} is of windows, or normalised by lines "
                "not yet measured; deploy one on whole scans with normalisation: line"
            )


def _check_shares(config: Config, run: Config) -> None:
    """Refuse a run on few labels that rests on one that knows more labels of the same data."""
    share = config["experiments"][run["experiment"]]["training"]["fraction"]
    for found in plan.below(config, run):
        known = config["experiments"][found["experiment"]]["training"]["fraction"]
        if found["dataset"] == run["dataset"] and known > share:
            raise UserError(
                f"config: experiments.{run['experiment']}: rests on {found['experiment']!r}, which "
                f"knows {known:g} of the labels of {run['dataset']!r}, and is to know {share:g} "
                "itself; give both the same training.fraction"
            )


def _check_foundations(config: Config, run: Config, *, sizes: bool) -> None:
    """Check the runs that a run's weights go back to.

    An overlay may change sizes for its own targets without regard to the others.
    """
    above = run
    for found in plan.below(config, run):
        where = f"config: experiments.{above['experiment']}.start"
        folds = plan.folds(_named(config, "split", found["split"], f"{where}.split"))
        if found["fold"] not in folds:
            raise UserError(
                f"{where}.fold: {found['fold']} is no fold of split {found['split']!r}, whose "
                f"folds are 0 to {folds[-1]}"
            )
        here, there = ((one["split"], one["fold"]) for one in (run, found))
        if found["dataset"] == run["dataset"] and here != there:
            raise UserError(
                f"{where}: that run is trained on {run['dataset']!r} in split {there[0]!r}, fold "
                f"{there[1]}, and may have seen what split {here[0]!r}, fold {here[1]} tests; "
                "leave out `split` and `fold` for those of the run, or give another `dataset`"
            )
        if sizes:
            _check_alike(config, above, found, where)
        above = found


def _check_alike(config: Config, run: Config, start: Config, where: str) -> None:
    """Check that weights of one run fit another, whatever setting a search may choose."""
    for one in (run, start) if config["tuning"]["trials"] else ():
        search = config["experiments"][one["experiment"]].get("search", {})
        if any(key.startswith("options.") for key in search):
            raise UserError(
                f"config: experiments.{one['experiment']}.search: "
                f"{run['experiment']!r} starts from {start['experiment']!r} and must have its "
                "options; search none of them"
            )
    own, other = (_shape(config, one) for one in (run, start))
    for key, value in own.items():
        if value != other[key]:
            raise UserError(
                f"{where}: {run['experiment']!r} has {key} {value!r}, but "
                f"{start['experiment']!r} on {start['dataset']!r} has {other[key]!r}; make them "
                "equal"
            )


def _shape(config: Config, run: Config) -> Config:
    """Return what must be equal for one run to take over the weights of another."""
    experiment = config["experiments"][run["experiment"]]
    store = config["datasets"][run["dataset"]]["store"]
    options = plan.options(config, run["experiment"])
    return {
        "model": experiment["model"],
        **{f"options.{key}": value for key, value in options.items()},
        "normalisation": experiment["normalisation"],
        "lines": (experiment["window"] or store)["lines"],
        "pixels": store["pixels"],
    }


def _check_curves(config: Config) -> None:
    """Check that curves are of a comparison's experiments, and rise over a number of theirs."""
    for name, curves in config["curves"].items():
        where = f"config: curves.{name}"
        comparison = _named(config, "comparison", curves["comparison"], f"{where}.comparison")
        if comparison["baseline"] is None:
            raise UserError(
                f"{where}.comparison: {curves['comparison']!r} has no baseline to reach; name one "
                "of its experiments"
            )
        # An overlay may change a comparison without regard to curves that it does not ask for.
        if name in config["targets"]:
            for series, experiments in curves["series"].items():
                _check_series(config, curves, experiments, f"{where}.series.{series}")


def _check_series(config: Config, curves: Config, experiments: list[str], where: str) -> None:
    known = config["comparisons"][curves["comparison"]]["experiments"]
    before = -math.inf
    for experiment in experiments:
        if experiment not in known:
            raise UserError(
                f"{where}: {experiment!r} is no experiment of {curves['comparison']!r}; "
                f"{did_you_mean(experiment, known)}"
            )
        try:
            x = plan.value_of(config, experiment, curves["x"])
        except KeyError:
            x = None
        if not isinstance(x, int | float) or isinstance(x, bool):
            raise UserError(f"{where}: {experiment!r} has no number under {curves['x']!r}")
        if x <= before:
            raise UserError(f"{where}: {curves['x']} does not rise at {experiment!r}; order them")
        if x <= 0 and curves["scale"] == "log":
            raise UserError(f"{where}: {x:g} has no place on a logarithmic axis; set scale: linear")
        before = x


def _check_realism(config: Config, name: str) -> None:
    """Check that what stands side by side exists, and is what it is called."""
    where, wanted = f"config: realism.{name}", config["realism"][name]
    for side in ("real", "simulated"):
        if wanted[side] not in config["datasets"]:
            hint = did_you_mean(wanted[side], config["datasets"])
            raise UserError(f"{where}.{side}: no data set {wanted[side]!r}; {hint}")
        if (config["datasets"][wanted[side]]["source"] == "simulate") != (side == "simulated"):
            raise UserError(f"{where}.{side}: data set {wanted[side]!r} is not {side}")


def _check_window(config: Config, dataset: str, name: str) -> None:
    """Check that windows fit into a scan and that the last one ends with its last line."""
    window = config["experiments"][name]["window"]
    if not window:
        return
    lines = config["datasets"][dataset]["store"]["lines"]
    where = f"config: experiments.{name}.window"
    rest = lines - window["lines"]
    if rest < 0:
        raise UserError(
            f"{where}.lines: {window['lines']} lines do not fit into "
            f"the {lines} lines of a scan (datasets.*.store.lines); choose fewer"
        )
    if rest % window["stride"]:
        fitting = [str(stride) for stride in range(1, rest + 1) if rest % stride == 0]
        raise UserError(
            f"{where}.stride: windows of {window['lines']} lines every {window['stride']} leave "
            f"the last {rest % window['stride']} of the {lines} lines of a scan "
            f"(datasets.*.store.lines) unread; strides that fit: {', '.join(fitting)}"
        )
