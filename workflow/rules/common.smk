"""Functions that the rules share: where things are, and what a job depends on."""

import os
import re
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

from scanbench import plan, sources
from scanbench.config import resolve
from scanbench.errors import UserError


def resolved(config):
    """Fill in defaults and refuse mistakes with one line."""
    schema = Path(workflow.basedir, "workflow/schemas/config.schema.yaml")
    try:
        return resolve(config, yaml.safe_load(schema.read_text(encoding="utf-8")))
    except UserError as error:
        raise WorkflowError(str(error)) from None


def code(*modules):
    """List the sources of modules as inputs: editing one reruns what depends on it."""
    return [os.path.relpath(path) for path in sources.closure(*modules)]


def model_code(wildcards):
    """List the sources of an experiment's model."""
    name = config["experiments"][wildcards.experiment]["model"].replace("-", "_")
    return code(f"scanbench.{config['study']}.models.{name}")


def source_folder(wildcards):
    """Give the folder of raw files: the user's own, or one that a rule makes."""
    path = plan.source_path(config, wildcards.dataset)
    # A user's folder that is not there yet must not stop a dry run; ingest names it if missing.
    made_by_rule = not config["datasets"][wildcards.dataset].get("path")
    return path if made_by_rule or os.path.exists(path) else []


def label_table(wildcards):
    """Give the user's label table, if the data set names one that is there."""
    path = plan.label_path(config, wildcards.dataset)
    return path if path and os.path.exists(path) else []


def predictions(wildcards):
    """List the prediction tables that a comparison needs."""
    return [
        f"results/{plan.RUN.format(**run)}/predictions.parquet"
        for run in plan.runs(config, wildcards.comparison)
    ]


def histories(wildcards):
    """List the training records that a comparison shows."""
    return [
        f"results/{plan.RUN.format(**run)}/{name}"
        for run in plan.runs(config, wildcards.comparison)
        for name in ("history.csv", "model.json", "train.json")
    ]


def comparison_store(wildcards):
    """Give the store that a comparison's models were trained and tested on."""
    dataset = config["comparisons"][wildcards.comparison]["dataset"]
    return f"results/data/{dataset}/store.h5"


def comparison_split(wildcards):
    """Give the split of a comparison."""
    wanted = config["comparisons"][wildcards.comparison]
    return f"results/data/{wanted['dataset']}/splits/{wanted['split']}.json"


def comparison_scans(wildcards):
    """Give the scans folder of a comparison."""
    dataset = config["comparisons"][wildcards.comparison]["dataset"]
    return f"results/data/{dataset}/scans"


def datasets_from(source):
    """Give a pattern for the data sets that come from `source`; it matches nothing if none do."""
    names = [
        name for name, item in config["datasets"].items() if item["source"] == source
    ]
    return "|".join(re.escape(name) for name in names) or "(?!)"
