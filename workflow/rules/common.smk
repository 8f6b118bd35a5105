"""Functions that the rules share: where things are, and what a job depends on."""

import os
import re
from functools import cache
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

from scanbench import plan, sources
from scanbench.config import resolve
from scanbench.errors import UserError
from scanbench.files import files_digest


def resolved(config):
    """Fill in defaults and refuse mistakes with one line."""
    schema = Path(workflow.basedir, "workflow/schemas/config.schema.yaml")
    try:
        return resolve(config, yaml.load(schema.read_bytes(), Loader=yaml.CSafeLoader))
    except UserError as error:
        raise WorkflowError(str(error)) from None


@cache
def code(*modules):
    """List the sources of modules as inputs: editing one reruns what depends on it."""
    return [os.path.relpath(path) for path in sources.closure(*modules)]


def model_code(stage):
    """Give a function that lists the sources of an experiment's model, but for those of a stage.

    Each file that a job lists makes planning slower.
    """

    def listed(wildcards):
        model = config["experiments"][wildcards.experiment]["model"]
        name = f"scanbench.{config['study']}.models.{model.replace('-', '_')}"
        return [path for path in code(name) if path not in code(stage)]

    return listed


def recorded(command, options=""):
    """Give the shell command that runs a stage and records what it reads and writes.

    A rule that has no `record` among its outputs fails. The stage's messages go to the log too.
    """
    return (
        f"scanbench record {options} --record {{output.record:q}} --inputs {{input:q}}"
        f" --outputs {{output:q}} -- {command} 2>&1 | tee -i {{log:q}}"
    )


def if_there(path):
    """List a user's path as input only if it is there: a dry run needs no data.

    The job itself names what is missing.
    """
    return [path] if path and os.path.exists(path) else []


def files_there(path):
    """List a user's files as input whatever their time: `user_files` tells if they changed.

    A folder gets a new time when a file browser leaves a hidden file in it.
    """
    return [ancient(found) for found in if_there(path)]


def local_clone(wildcards):
    """Give the user's clone of the public images, if the data set names one."""
    return files_there(config["datasets"][wildcards.dataset]["path"])


def user_files(wildcards):
    """Give a digest of the user's files: adding or replacing one reruns what reads them.

    Folders that a rule makes are compared as its outputs.
    """
    path = config["datasets"][wildcards.dataset].get("path")
    return files_digest(path) if path else ""


def source_folder(wildcards):
    """Give the raw files: the user's own, or the folder that a rule makes."""
    path = plan.source_path(config, wildcards.dataset)
    return (
        files_there(path)
        if config["datasets"][wildcards.dataset]["source"] == "files"
        else path
    )


def label_table(wildcards):
    """Give the user's label table; the others lie in the folder of the raw files."""
    path = plan.label_path(config, wildcards.dataset)
    return (
        if_there(path)
        if config["datasets"][wildcards.dataset]["source"] == "files"
        else []
    )


def label_option(wildcards):
    """Give the option that names the label table, if there is one."""
    path = plan.label_path(config, wildcards.dataset)
    return ["--labels", path] if path else []


def clone_option(wildcards):
    """Give the option that names a local clone, if there is one."""
    path = config["datasets"][wildcards.dataset]["path"]
    return ["--local", path] if path else []


def reader_code():
    """List the sources of all readers, which are found by a file's suffix."""
    return code(*sources.modules(f"scanbench.{config['study']}.readers"))


def of_run(name, below="results"):
    """Give the pattern of a file in the folder of a run."""
    return f"{below}/{plan.RUN}/{name}"


def of_search(name, below="results"):
    """Give the pattern of a file in the folder where a fold chooses a setting."""
    return f"{below}/{plan.TUNING}/{name}"


def trial_folders(wildcards):
    """List the folders of the settings that a fold tries for an experiment."""
    return [
        of_search(f"trial{number}").format(**wildcards)
        for number in range(len(plan.settings(config, wildcards)))
    ]


def of_trial(wildcards):
    """Give the run that a trial stands for."""
    return {**wildcards, "seed": config["tuning"]["seed"]}


class Untracked:
    """A parameter whose changes rerun nothing: Snakemake records only values of builtin types."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


def training_options(wildcards):
    """Give the options of a training that its result does not depend on."""
    return Untracked(" ".join(plan.train_options(config, wildcards)))


def trials(wildcards):
    """List the records of the settings that a fold tries for an experiment."""
    return [
        f"{folder}/{name}"
        for folder in trial_folders(wildcards)
        for name in ("history.csv", "train.json")
    ]


def chosen(wildcards):
    """Give the setting that a search found, with its record, where there is a search."""
    if plan.settings(config, wildcards):
        return [
            of_search(name).format(**wildcards)
            for name in ("chosen.json", "choose.json")
        ]
    return []


def chosen_option(wildcards):
    """Give the option that names the setting to train with, if there is one."""
    return [part for path in chosen(wildcards)[:1] for part in ("--chosen", path)]


def foundations(run):
    """List the files of the runs that a run rests on."""
    return [
        f"results/{plan.RUN.format(**below)}/{name}"
        for below in plan.rests_on(config, run).values()
        for name in ("weights.safetensors", "model.json", "seen.txt")
    ]


def foundation_options(run):
    """Give the options that name the folders of the runs that a run rests on."""
    return [
        part
        for role, below in plan.rests_on(config, run).items()
        for part in (f"--{role}", f"results/{plan.RUN.format(**below)}")
    ]


def predictions(wildcards):
    """List the prediction tables that a comparison needs."""
    return [
        f"results/{plan.RUN.format(**run)}/predictions.parquet"
        for run in plan.runs(config, wildcards.comparison)
    ]


def unlabelled(wildcards):
    """List the predictions of scans without label that comparing with people needs."""
    return [
        f"results/{plan.RUN.format(**run)}/unlabelled.parquet"
        for run in plan.runs(config, wildcards.comparison)
    ]


def comparison_people(wildcards):
    """Give the tables of people and models, where the data set tells what people named."""
    if plan.has_people(config, wildcards.comparison):
        return [f"results/comparisons/{wildcards.comparison}/agreement"]
    return []


def people_option(wildcards):
    """Give the option that names the tables of people and models, if there are any."""
    return [
        part for path in comparison_people(wildcards) for part in ("--agreement", path)
    ]


def compared(wildcards):
    """Give the settings of a comparison."""
    return config["comparisons"][wildcards.comparison]


def explained(wildcards):
    """Give the settings of an explanation, with the data set and split of its comparison."""
    return plan.explained(config, wildcards.explanation)


def flagged(wildcards):
    """Give the settings of an anomaly comparison."""
    return config["anomalies"][wildcards.anomaly]


def detected(wildcards):
    """Give the settings of what tip changes are looked for in."""
    return config["tip_changes"][wildcards.tip_change]


def data_of(wanted, name):
    """Give a function for a file or folder of the data set of what `wanted` finds."""
    return lambda wildcards: f"results/data/{wanted(wildcards)['dataset']}/{name}"


def store_of(wanted):
    """Give a function for the store that models of what `wanted` finds were trained and tested on."""

    def path(wildcards):
        found = wanted(wildcards)
        return plan.store_path(config, found["dataset"], found["split"])

    return path


def split_of(wanted):
    """Give a function for the split file of what `wanted` finds."""

    def path(wildcards):
        found = wanted(wildcards)
        return f"results/data/{found['dataset']}/splits/{found['split']}.json"

    return path


def run_of(wanted, name):
    """Give a function for a file of a run of what `wanted` finds."""

    def path(wildcards):
        parts = {key: wanted(wildcards)[key] for key in ("dataset", "split")}
        run = {key: wildcards[key] for key in ("experiment", "fold", "seed")}
        return f"results/{plan.RUN.format(**parts, **run)}/{name}"

    return path


def deployment_comparison(wildcards):
    """Give the settings of the comparison that a deployment is of."""
    name = config["deployments"][wildcards.name]["comparison"]
    return config["comparisons"][name]


def deployment_files(wildcards):
    """List the predictions of a deployment's runs, of their teachers and of each exported form."""
    runs = plan.deployment_runs(config, wildcards.name)
    folders = [f"results/{plan.RUN.format(**run)}" for run in runs]
    forms = config["deployments"][wildcards.name]["forms"]
    taught_by = [
        f"results/{plan.RUN.format(**run)}/predictions.parquet"
        for run in plan.teacher_runs(config, wildcards.name)
    ]
    names = ["model.json", "weights.safetensors", "predictions.parquet"]
    names += [
        f"onnx/{form}.{kind}" for form in forms for kind in ("onnx", "parquet", "json")
    ]
    return taught_by + [f"{folder}/{name}" for folder in folders for name in names]


def histories(wildcards):
    """List the training records that a comparison shows."""
    return [
        f"results/{plan.RUN.format(**run)}/{name}"
        for run in plan.trained(config, wildcards.comparison)
        for name in ("history.csv", "model.json", "train.json")
    ]


def members(name):
    """Give a function that lists one file of the run of each member of an ensemble."""

    def listed(wildcards):
        return [
            of_run(name).format(**{**wildcards, "experiment": member})
            for member in plan.members(config, wildcards.experiment)
        ]

    return listed


def split_store(wildcards):
    """Give the store that a split divides."""
    return plan.store_path(config, wildcards.dataset, wildcards.split)


def realism_store(wildcards, side):
    """Give the store of the real or of the simulated scans that stand side by side."""
    return f"results/data/{config['realism'][wildcards.name][side]}/store.h5"


def attributions(wildcards):
    """List the attributions that an explanation needs."""
    return [
        "results/explanations/{}/attributions/{experiment}/fold{fold}-seed{seed}".format(
            wildcards.explanation, **run
        )
        for run in plan.explained_runs(config, wildcards.explanation)
    ]


def anomaly_tables(wildcards):
    """List the tables of scores that an anomaly comparison needs."""
    return [
        f"results/{plan.RUN.format(**run)}/anomaly.parquet"
        for run in plan.anomaly_runs(config, wildcards.anomaly)
    ]


def curves_scores(wildcards):
    """Give the scores of the comparison that curves are drawn of."""
    comparison = config["curves"][wildcards.name]["comparison"]
    return f"results/comparisons/{comparison}/scores"


def tip_change_scores(wildcards):
    """List the scores of all runs that tip changes are looked for with."""
    return [
        "results/tip-changes/{}/scores/{experiment}/fold{fold}-seed{seed}.parquet".format(
            wildcards.tip_change, **run
        )
        for run in plan.tip_change_runs(config, wildcards.tip_change)
    ]


def targets(_):
    """List the pages of the targets, or their figures, and what is deployed."""
    pages = [
        f"results/comparisons/{name}/summary.html" for name in plan.compared(config)
    ]
    figures = {
        "side_by_side": "results/side-by-side/{}/protocols.svg",
        "curves": "results/curves/{}/curves.svg",
        "explanations": "results/explanations/{}/checks.svg",
        "anomalies": "results/anomalies/{}/anomaly.svg",
        "tip_changes": "results/tip-changes/{}/tip-change.svg",
        "realism": "results/realism/{}",
    }
    deployed = [f"results/deployments/{name}" for name in plan.deployed(config)]
    return (
        pages
        + deployed
        + [
            path.format(name)
            for table, path in figures.items()
            for name in config["targets"]
            if name in config[table]
        ]
    )


def datasets_from(source):
    """Give a pattern for the data sets that come from `source`; it matches nothing if none do."""
    return one_of(
        name for name, item in config["datasets"].items() if item["source"] == source
    )


def none_of(names):
    """Give a pattern for any name in a path but these."""
    return f"(?!(?:{one_of(names)})/)[^/]+"


def one_of(names):
    """Give a pattern for these names; it matches nothing if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"
