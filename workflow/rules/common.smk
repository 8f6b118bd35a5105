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
        return resolve(config, yaml.safe_load(schema.read_text(encoding="utf-8")))
    except UserError as error:
        raise WorkflowError(str(error)) from None


@cache
def code(*modules):
    """List the sources of modules as inputs: editing one reruns what depends on it."""
    return [os.path.relpath(path) for path in sources.closure(*modules)]


def model_code(wildcards):
    """List the sources of an experiment's model."""
    name = config["experiments"][wildcards.experiment]["model"].replace("-", "_")
    return code(f"scanbench.{config['study']}.models.{name}")


def if_there(path):
    """List a user's path as input only if it is there: a dry run needs no data.

    The job itself names what is missing.
    """
    return [path] if path and os.path.exists(path) else []


def local_clone(wildcards):
    """Give the user's clone of the public images, if the data set names one."""
    return if_there(config["datasets"][wildcards.dataset]["path"])


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
        if_there(path)
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


def histories(wildcards):
    """List the training records that a comparison shows."""
    return [
        f"results/{plan.RUN.format(**run)}/{name}"
        for run in plan.trained(config, wildcards.comparison)
        for name in ("history.csv", "model.json", "train.json", "predict.json")
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


def comparison_store(wildcards):
    """Give the store that a comparison's models were trained and tested on."""
    wanted = config["comparisons"][wildcards.comparison]
    return plan.store_path(config, wanted["dataset"], wanted["split"])


def comparison_split(wildcards):
    """Give the split of a comparison."""
    wanted = config["comparisons"][wildcards.comparison]
    return f"results/data/{wanted['dataset']}/splits/{wanted['split']}.json"


def comparison_scans(wildcards):
    """Give the scans folder of a comparison."""
    dataset = config["comparisons"][wildcards.comparison]["dataset"]
    return f"results/data/{dataset}/scans"


def curves_scores(wildcards):
    """Give the scores of the comparison that curves are drawn of."""
    comparison = config["curves"][wildcards.name]["comparison"]
    return f"results/comparisons/{comparison}/scores"


def targets(_):
    """List the pages of the targets, and the figures of protocols side by side and of curves."""
    pages = [
        f"results/comparisons/{name}/summary.html" for name in plan.compared(config)
    ]
    sides = [name for name in config["targets"] if name in config["side_by_side"]]
    curves = [name for name in config["targets"] if name in config["curves"]]
    return [
        *pages,
        *(f"results/side-by-side/{name}/protocols.svg" for name in sides),
        *(f"results/curves/{name}/curves.svg" for name in curves),
    ]


def datasets_from(source):
    """Give a pattern for the data sets that come from `source`; it matches nothing if none do."""
    return one_of(
        name for name, item in config["datasets"].items() if item["source"] == source
    )


def one_of(names):
    """Give a pattern for these names; it matches nothing if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"
