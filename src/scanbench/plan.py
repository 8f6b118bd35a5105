"""From the resolved configuration to what each job needs: pure functions, no torch, no files.

Each rule gets one parameter, the canonical JSON of just its part of the configuration. One text is
compared as a whole by Snakemake, so that swapping two values is seen, and reordering keys is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from scanbench import tuning
from scanbench.files import canonical_json

Config = Mapping[str, Any]

#: Path of a run's folder below `results/`; wildcards as Snakemake writes them.
RUN = "runs/{dataset}/{split}/{experiment}/fold{fold}-seed{seed}"

#: Path of the folder below `results/` in which a fold chooses an experiment's setting.
TUNING = "tuning/{dataset}/{split}/{experiment}/fold{fold}"


def folds(split: Config) -> list[int]:
    """Return the folds of a split."""
    return [0] if split["scheme"] == "fixed" else list(range(split["folds"]))


def holds_groups_out(config: Config, split: str) -> bool:
    """Return whether a split has each group in one part only."""
    return config["splits"][split]["scheme"] in ("kfold", "fixed")


def runs(config: Config, comparison: str) -> list[dict[str, Any]]:
    """Return the wildcards of every run of a comparison, in a fixed order."""
    return _runs(config, config["comparisons"][comparison])


def _runs(
    config: Config, wanted: Config, some: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return the wildcards of the runs of what has a data set, a split, experiments and seeds."""
    return [
        {
            "dataset": wanted["dataset"],
            "split": wanted["split"],
            "experiment": experiment,
            "fold": fold,
            "seed": seed,
        }
        for experiment in wanted["experiments"]
        for fold in (folds(config["splits"][wanted["split"]]) if some is None else some)
        for seed in wanted["seeds"]
    ]


def members(config: Config, experiment: str) -> list[str]:
    """Return the experiments whose runs make up one: those of an ensemble, or itself."""
    return list(config["ensembles"].get(experiment, [experiment]))


def trained(config: Config, comparison: str) -> list[dict[str, Any]]:
    """Return the wildcards of every run that is trained for a comparison, in a fixed order."""
    return [
        {**run, "experiment": member}
        for run in runs(config, comparison)
        for member in members(config, run["experiment"])
    ]


def combine_spec(config: Config, run: Mapping[str, Any]) -> str:
    """Return what the predictions of an ensemble's run depend on."""
    names = members(config, run["experiment"])
    windows = {canonical_json(config["experiments"][name]["window"]) for name in names}
    return canonical_json(
        {
            "name": run["experiment"],
            "fold": int(run["fold"]),
            "seed": int(run["seed"]),
            "members": names,
            "same_windows": len(windows) == 1,
            "classes": classes(config, run["dataset"]),
        }
    )


def rests_on(config: Config, run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the wildcards of the runs that must be trained before a run, by what they are to it.

    `start`: the run whose weights it begins with, of the same seed, so that the spread over seeds
    is that of both trainings together. On the run's own data set: of the same split and fold.
    `teacher`: the run whose soft answers it learns, of the same data set, split, fold and seed.
    """
    experiment = config["experiments"][run["experiment"]]
    start, teacher = experiment["start"], experiment["teacher"]
    if start is None and teacher is None:
        return {}
    own = {
        **{key: run[key] for key in ("dataset", "split")},
        **{key: int(run[key]) for key in ("fold", "seed")},
    }
    found = {}
    if start is not None:
        here = start["dataset"] in (None, run["dataset"])
        given = {key: start[key] for key in ("dataset", "split", "fold") if start[key] is not None}
        elsewhere = {"split": "sessions", "fold": 0}
        found["start"] = {
            **own,
            **({} if here else elsewhere),
            **given,
            "experiment": start["experiment"],
        }
    if teacher is not None:
        found["teacher"] = {**own, "experiment": teacher["experiment"]}
    return found


def below(config: Config, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the wildcards of all runs that a run's weights go back to, the nearest first."""
    nearest = rests_on(config, run).get("start")
    return [nearest, *below(config, nearest)] if nearest else []


def compared(config: Config) -> list[str]:
    """Return the comparisons that the targets ask for: by name, as sides, or to draw curves of."""
    sides, curves = config["side_by_side"], config["curves"]

    def needed(target: str) -> list[str]:
        if target in sides:
            return list(sides[target]["comparisons"])
        if target in curves:
            return [curves[target]["comparison"]]
        return [target] if target in config["comparisons"] else []

    return list(dict.fromkeys(name for target in config["targets"] for name in needed(target)))


def explained(config: Config, explanation: str) -> dict[str, Any]:
    """Return an explanation with the data set and split of its comparison, all folds and seeds."""
    wanted = config["explanations"][explanation]
    comparison = config["comparisons"][wanted["comparison"]]
    split = config["splits"][comparison["split"]]
    return {
        **wanted,
        "dataset": comparison["dataset"],
        "split": comparison["split"],
        "folds": folds(split) if wanted["folds"] is None else wanted["folds"],
        "seeds": comparison["seeds"] if wanted["seeds"] is None else wanted["seeds"],
    }


def explained_runs(config: Config, explanation: str) -> list[dict[str, Any]]:
    """Return the wildcards of every run of an explanation, in a fixed order."""
    wanted = explained(config, explanation)
    return _runs(config, wanted, wanted["folds"])


def anomaly_runs(config: Config, anomaly: str) -> list[dict[str, Any]]:
    """Return the wildcards of every run of an anomaly comparison, in a fixed order."""
    return _runs(config, config["anomalies"][anomaly])


def source_path(config: Config, dataset: str) -> str:
    """Return where the raw files of a data set are: the user's path, or the folder a rule makes."""
    wanted = config["datasets"][dataset]
    return wanted["path"] if wanted["source"] == "files" else f"results/data/{dataset}/source"


def label_path(config: Config, dataset: str) -> str | None:
    """Return the path of the label table; None where the files hold their labels."""
    wanted = config["datasets"][dataset]
    if wanted["source"] == "files":
        return wanted["labels"]
    return f"{source_path(config, dataset)}/{_study(config).LABEL_TABLES[wanted['source']]}"


def classes(config: Config, dataset: str) -> list[str]:
    """Return the class names of a data set: its own, or the study's."""
    return list(config["datasets"][dataset].get("classes") or _study(config).CLASSES)


def _study(config: Config) -> Any:
    return importlib.import_module(f"scanbench.{config['study']}")


def simulate_spec(config: Config, dataset: str) -> str:
    """Return what simulating a data set depends on, but for the number of processes."""
    return canonical_json(_without_workers(config["datasets"][dataset]["simulate"]))


def ingest_spec(config: Config, dataset: str) -> str:
    """Return what ingesting a data set depends on, but for the number of processes."""
    wanted = config["datasets"][dataset]
    policy = wanted["labels"] if wanted["source"] == "spm-toolbox" else None
    options = _without_workers(wanted["ingest"])
    return canonical_json({**options, "classes": classes(config, dataset), "labels": policy})


def _without_workers(options: Config) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "workers"}


def convert_spec(config: Config, dataset: str) -> str:
    """Return what the store of a data set depends on."""
    return canonical_json(
        {
            **config["datasets"][dataset]["store"],
            "study": config["study"],
            "classes": classes(config, dataset),
        }
    )


def split_spec(config: Config, split: str) -> str:
    """Return what a split depends on, without the keys that its scheme does not use."""
    wanted = dict(config["splits"][split])
    unused = {"folds"} if wanted["scheme"] == "fixed" else {"test_fraction", "test_groups"}
    if wanted["scheme"] != "copies":
        unused.add("copies")
    return canonical_json({key: value for key, value in wanted.items() if key not in unused})


def store_path(config: Config, dataset: str, split: str) -> str:
    """Return the store that is split: that of the data set, or one with copies of its scans."""
    if config["splits"][split]["scheme"] == "copies":
        return f"results/data/{dataset}/copies/{split}.h5"
    return f"results/data/{dataset}/store.h5"


def copies_spec(config: Config, split: str) -> str:
    """Return what a store with copies depends on."""
    wanted = config["splits"][split]
    return canonical_json({"copies": wanted["copies"], "seed": wanted["seed"]})


def train_spec(config: Config, run: Mapping[str, Any]) -> str:
    """Return what one training depends on, without the keys that a search sets."""
    training = _training(config, run, int(run["seed"]))
    searched = config["experiments"][run["experiment"]]["search"] if settings(config, run) else {}
    for key in searched:
        part, _, name = key.partition(".")
        training[part] = {k: value for k, value in training[part].items() if k != name}
    return canonical_json(_acting(training))


def train_options(config: Config, run: Mapping[str, Any]) -> list[str]:
    """Return the options of one training that its result does not depend on."""
    training = config["experiments"][run["experiment"]]["training"]
    restart = [] if training["resume"] else ["--restart"]
    return [*restart, *(["--tensorboard"] if training["tensorboard"] else [])]


def _training(config: Config, run: Mapping[str, Any], seed: int) -> dict[str, Any]:
    experiment = config["experiments"][run["experiment"]]
    unused = {"search"} if experiment["withhold"] else {"search", "withhold"}
    return {
        **{key: value for key, value in experiment.items() if key not in unused},
        "study": config["study"],
        "name": run["experiment"],
        "fold": int(run["fold"]),
        "seed": seed,
        "start": rests_on(config, {**run, "seed": seed}).get("start"),
    }


def _acting(training: dict[str, Any]) -> dict[str, Any]:
    """Return what a training depends on without the keys that have no effect beside the others.

    A missing key decides nothing: a search may set it.
    """
    given = training["training"]
    unused = {"resume", "tensorboard"}
    if given.get("schedule", "plateau") != "plateau":
        unused |= {"plateau_factor", "plateau_patience"}
    if not given.get("warmup_epochs", 1):
        unused.add("warmup_start")
    return {**training, "training": {k: v for k, v in given.items() if k not in unused}}


def settings(config: Config, run: Mapping[str, Any]) -> list[tuning.Setting]:
    """Return the settings that a fold tries for an experiment.

    None if nothing is searched, or nothing trained: a start is taken as it is.
    """
    experiment = config["experiments"][run["experiment"]]
    search = experiment.get("search") if experiment["training"]["epochs"] else None
    chosen = config["tuning"]
    return tuning.settings(search, chosen["trials"], chosen["seed"]) if search else []


def trial_spec(config: Config, run: Mapping[str, Any]) -> str:
    """Return what one trial of a search depends on."""
    wanted = config["tuning"]
    setting = settings(config, run)[int(run["trial"])]
    training = tuning.with_setting(_training(config, run, wanted["seed"]), setting)
    if wanted["epochs"] is not None:
        training["training"]["epochs"] = wanted["epochs"]
    return canonical_json(_acting(training))


def choose_spec(config: Config, run: Mapping[str, Any]) -> str:
    """Return what choosing among the trials of a search depends on."""
    experiment = config["experiments"][run["experiment"]]
    return canonical_json(
        {
            "search": experiment["search"],
            "settings": settings(config, run),
            "monitor": experiment["training"]["monitor"],
        }
    )


def _lines(config: Config, dataset: str) -> list[int]:
    """Return the numbers of lines to score at; those past the end of a scan stand for its end."""
    end = config["datasets"][dataset]["store"]["lines"]
    return sorted({min(count, end) for count in config["evaluation"]["lines"]})


def evaluate_spec(config: Config, comparison: str) -> str:
    """Return what the tables of a comparison depend on."""
    wanted = config["comparisons"][comparison]
    return canonical_json(
        {
            **config["evaluation"],
            "lines": _lines(config, wanted["dataset"]),
            "comparison": comparison,
            "dataset": wanted["dataset"],
            "split": wanted["split"],
            "experiments": wanted["experiments"],
            "baseline": wanted["baseline"],
            "folds": folds(config["splits"][wanted["split"]]),
            "seeds": wanted["seeds"],
        }
    )


def has_people(config: Config, comparison: str) -> bool:
    """Return whether models can be compared with people.

    That takes groups held out, and a sheet of shares of responses: weighted scores do not tell how
    many volunteers named a column.
    """
    wanted = config["comparisons"][comparison]
    dataset = config["datasets"][wanted["dataset"]]
    return (
        dataset["source"] == "spm-toolbox"
        and dataset["labels"]["sheet"] == "Mean_Score"
        and holds_groups_out(config, wanted["split"])
    )


def agreement_spec(config: Config, comparison: str) -> str:
    """Return what comparing models with people depends on."""
    wanted = config["comparisons"][comparison]
    chosen = config["evaluation"]
    return canonical_json(
        {
            **{key: chosen[key] for key in ("bootstrap", "confidence", "seed")},
            "merge": config["datasets"][wanted["dataset"]]["labels"]["merge"],
            "comparison": comparison,
            "dataset": wanted["dataset"],
            "split": wanted["split"],
            "experiments": wanted["experiments"],
            "folds": folds(config["splits"][wanted["split"]]),
            "seeds": wanted["seeds"],
        }
    )


def tip_change_runs(config: Config, name: str) -> list[dict[str, Any]]:
    """Return the wildcards of every run that tip changes are looked for with, in a fixed order."""
    return _runs(config, config["tip_changes"][name])


def tip_change_scores_spec(config: Config, name: str) -> str:
    """Return what a run's scores of tip changes depend on."""
    wanted = config["tip_changes"][name]
    return canonical_json({key: wanted[key] for key in ("bad", "smoothing")})


def tip_change_spec(config: Config, name: str) -> str:
    """Return what judging detectors of tip changes depends on."""
    wanted = {key: value for key, value in config["tip_changes"][name].items() if key != "title"}
    dataset = config["datasets"][wanted["dataset"]]
    sheet = dataset["source"] == "spm-toolbox"
    return canonical_json(
        {
            **_intervals(config),
            **wanted,
            **_source(config, wanted["dataset"]),
            "folds": folds(config["splits"][wanted["split"]]),
            "column": wanted["column"] if sheet else None,
            "label_threshold": dataset["labels"]["threshold"] if sheet else None,
        }
    )


def deployed(config: Config) -> list[str]:
    """Return the deployments of the comparisons that the targets ask for."""
    wanted = compared(config)
    return [name for name, own in config["deployments"].items() if own["comparison"] in wanted]


def deployment_runs(config: Config, name: str) -> list[dict[str, Any]]:
    """Return the wildcards of every run that a deployment is of."""
    own = config["deployments"][name]
    return [
        run for run in runs(config, own["comparison"]) if run["experiment"] == own["experiment"]
    ]


def teacher_runs(config: Config, name: str) -> list[dict[str, Any]]:
    """Return the wildcards of the runs that taught those of a deployment, in their order."""
    below = [rests_on(config, run) for run in deployment_runs(config, name)]
    return [found["teacher"] for found in below if "teacher" in found]


def deployment_spec(config: Config, name: str) -> str:
    """Return what the tables of a deployment depend on."""
    own = config["deployments"][name]
    wanted = config["comparisons"][own["comparison"]]
    dataset = config["datasets"][wanted["dataset"]]
    teacher = config["experiments"][own["experiment"]]["teacher"]
    simulated = " (simulated)" if dataset["source"] == "simulate" else ""
    keys = ("bootstrap", "confidence", "ece_bins", "seed")
    return canonical_json(
        {
            **{key: config["evaluation"][key] for key in keys},
            "lines": _lines(config, wanted["dataset"]),
            "name": name,
            "experiment": own["experiment"],
            "forms": own["forms"],
            "dataset_title": dataset["title"] + simulated,
            "teacher": None if teacher is None else teacher["experiment"],
            "runs": [RUN.format(**run) for run in deployment_runs(config, name)],
            "teacher_runs": [RUN.format(**run) for run in teacher_runs(config, name)],
        }
    )


def render_spec(config: Config, comparison: str) -> str:
    """Return what the figures and the summary of a comparison depend on."""
    wanted = config["comparisons"][comparison]
    dataset = config["datasets"][wanted["dataset"]]
    return canonical_json(
        {
            "comparison": comparison,
            "title": wanted["title"],
            "dataset": wanted["dataset"],
            "dataset_title": dataset["title"],
            "attribution": dataset["attribution"],
            "simulated": dataset["source"] == "simulate",
            "split": wanted["split"],
            "scheme": config["splits"][wanted["split"]]["scheme"],
            "experiments": wanted["experiments"],
            "members": {name: members(config, name) for name in wanted["experiments"]},
            "folds": folds(config["splits"][wanted["split"]]),
            "seeds": wanted["seeds"],
        }
    )


def attribute_spec(config: Config, explanation: str) -> str:
    """Return what the attributions of one run depend on."""
    wanted = config["explanations"][explanation]
    keys = ("scans", "steps", "points", "random_orders", "fill", "examples", "seed")
    return canonical_json({key: wanted[key] for key in keys})


def explain_spec(config: Config, explanation: str) -> str:
    """Return what the tables and figures of an explanation depend on."""
    wanted = explained(config, explanation)
    keys = ("dataset", "split", "experiments", "folds", "seeds", "tolerance")
    return canonical_json(
        {
            **{key: wanted[key] for key in keys},
            **_intervals(config),
            **_source(config, wanted["dataset"]),
            "explanation": explanation,
        }
    )


def anomaly_spec(config: Config, anomaly: str) -> str:
    """Return what the tables and figures of an anomaly comparison depend on."""
    wanted = config["anomalies"][anomaly]
    keys = ("dataset", "split", "experiments", "seeds")
    return canonical_json(
        {
            **{key: wanted[key] for key in keys},
            **_intervals(config),
            **_source(config, wanted["dataset"]),
            "withheld": config["experiments"][wanted["experiments"][0]]["withhold"],
            "folds": folds(config["splits"][wanted["split"]]),
        }
    )


def _intervals(config: Config) -> dict[str, Any]:
    return {key: config["evaluation"][key] for key in ("bootstrap", "confidence", "seed")}


def _source(config: Config, dataset: str) -> dict[str, Any]:
    """Return what a figure says of its data, and whether they are simulated."""
    given = config["datasets"][dataset]
    simulated = given["source"] == "simulate"
    kind = "Simulated data" if simulated else "Data"
    parts = [f"{kind}: {given['title']}", given["attribution"]]
    return {"data": ". ".join(filter(None, parts)), "simulated": simulated}


def protocols_spec(config: Config, name: str) -> str:
    """Return what several protocols side by side depend on."""
    wanted = config["side_by_side"][name]
    sides = []
    for comparison in wanted["comparisons"]:
        given = config["comparisons"][comparison]
        sides.append(
            {
                "comparison": comparison,
                "split": given["split"],
                "scheme": config["splits"][given["split"]]["scheme"],
                "data": _source(config, config["comparisons"][comparison]["dataset"])["data"],
            }
        )
    first = config["comparisons"][wanted["comparisons"][0]]
    return canonical_json(
        {
            "title": wanted["title"],
            "comparisons": sides,
            "experiments": first["experiments"],
            "confidence": config["evaluation"]["confidence"],
        }
    )


def options(config: Config, experiment: str) -> dict[str, Any]:
    """Return all options of an experiment's model, those not given at their defaults."""
    catalogue = importlib.import_module(f"scanbench.{config['study']}.catalogue")
    wanted = config["experiments"][experiment]
    fields = catalogue.option_fields(wanted["model"])
    defaults = {k: list(d) if isinstance(d, tuple) else d for k, (_, d) in fields.items()}
    return {**defaults, **wanted["options"]}


def value_of(config: Config, experiment: str, key: str) -> Any:
    """Return what an experiment has under a dotted key, such as `training.fraction`.

    Raises
    ------
    KeyError
        If there is no such key.
    """
    found: Any = {**config["experiments"][experiment], "options": options(config, experiment)}
    for part in key.split("."):
        if not isinstance(found, Mapping):
            raise KeyError(part)
        found = found[part]
    return found


def curves_spec(config: Config, name: str) -> str:
    """Return what curves over a number of experiments depend on."""
    wanted = config["curves"][name]
    comparison = config["comparisons"][wanted["comparison"]]
    return canonical_json(
        {
            **{key: wanted[key] for key in ("title", "comparison", "label", "scale")},
            "series": [
                {
                    "name": series,
                    "points": [
                        [float(value_of(config, experiment, wanted["x"])), experiment]
                        for experiment in experiments
                    ],
                }
                for series, experiments in wanted["series"].items()
            ],
            "baseline": comparison["baseline"],
            "metrics": config["evaluation"]["metrics"],
            "confidence": config["evaluation"]["confidence"],
            "data": _source(config, config["comparisons"][wanted["comparison"]]["dataset"])["data"],
        }
    )


def realism_spec(config: Config, name: str) -> str:
    """Return what real and simulated scans side by side depend on."""
    wanted = config["realism"][name]
    spec: dict[str, Any] = {key: wanted[key] for key in ("title", "scans", "seed")}
    for side in ("real", "simulated"):
        dataset = config["datasets"][wanted[side]]
        spec[side] = {key: dataset[key] for key in ("title", "attribution")}
    return canonical_json(spec)


def threads(config: Config, run: Mapping[str, Any]) -> int:
    """Return the processor threads that one training uses."""
    return int(config["experiments"][run["experiment"]]["training"]["num_threads"])


def gpus(config: Config, run: Mapping[str, Any]) -> int:
    """Return the devices that one training asks for, where there are any."""
    return int(config["experiments"][run["experiment"]]["training"]["devices"])
