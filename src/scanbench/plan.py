"""From the resolved configuration to what each job needs: pure functions, no torch, no files.

Each rule gets one parameter, the canonical JSON of just its part of the configuration. One text is
compared as a whole by Snakemake, so that swapping two values is seen, and reordering keys is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from scanbench.files import canonical_json

Config = Mapping[str, Any]

#: Path of a run's folder below `results/`; wildcards as Snakemake writes them.
RUN = "runs/{dataset}/{split}/{experiment}/fold{fold}-seed{seed}"


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


def compared(config: Config) -> list[str]:
    """Return the comparisons that the targets ask for: by name, or as sides of one."""
    sides = config["side_by_side"]
    wanted = [
        sides[name]["comparisons"] if name in sides else [name]
        for name in config["targets"]
        if name in sides or name in config["comparisons"]
    ]
    return list(dict.fromkeys(name for names in wanted for name in names))


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
    """Return what one training depends on."""
    experiment = dict(config["experiments"][run["experiment"]])
    if not experiment["withhold"]:
        del experiment["withhold"]
    return canonical_json(
        {
            **experiment,
            "study": config["study"],
            "name": run["experiment"],
            "fold": int(run["fold"]),
            "seed": int(run["seed"]),
        }
    )


def evaluate_spec(config: Config, comparison: str) -> str:
    """Return what the tables of a comparison depend on."""
    wanted = config["comparisons"][comparison]
    return canonical_json(
        {
            **config["evaluation"],
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
                "data": _source(config, given["dataset"])["data"],
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


def threads(config: Config, run: Mapping[str, Any]) -> int:
    """Return the processor threads that one training uses."""
    return int(config["experiments"][run["experiment"]]["training"]["num_threads"])


def gpus(config: Config, run: Mapping[str, Any]) -> int:
    """Return the devices that one training asks for, where there are any."""
    return int(config["experiments"][run["experiment"]]["training"]["devices"])
