"""Scanbench: from raw scans to an honest comparison of models. Wiring only; see docs/."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from scanbench.config_files import check
from scanbench.errors import UserError
from scanbench.failures import Failures

min_version("9.0")

# Jobs call `scanbench` of the environment that runs Snakemake, whether it is activated or not.
os.environ.update(
    PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
)

failures = Failures()
logger.addHandler(failures)


# Snakemake's own message for a wrong file names neither the file nor the line, and of a key that stands
# twice it passes one over. Overlays that are no YAML have stopped it before this line.
try:
    # The command line may name config.yaml, too.
    named = map(os.path.relpath, ("config.yaml", *workflow.configfiles))
    for path in dict.fromkeys(named):
        if os.path.exists(path):
            check(Path(path))
except UserError as error:
    raise WorkflowError(str(error)) from None


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


# Used with `--software-deployment-method apptainer` only; made from envs/scanbench.def.
container: "envs/scanbench.sif"


include: "workflow/rules/common.smk"


config = resolved(config)


wildcard_constraints:
    dataset="[^/]+",
    split="[^/]+",
    experiment="[^/]+",
    comparison="[^/]+",
    explanation="[^/]+",
    anomaly="[^/]+",
    name="[^/]+",
    tip_change="[^/]+",
    fold=r"\d+",
    seed=r"\d+",
    trial=r"\d+",


# On a cluster these run on the submitting host: compute nodes often have no network, and what takes
# seconds is not worth a place in the queue.
localrules:
    all,
    fetch,
    choose,
    combine,
    combine_unlabelled,
    curves,
    protocols,


rule all:
    input:
        targets,


include: "workflow/rules/ingest.smk"
include: "workflow/rules/convert.smk"
include: "workflow/rules/split.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/predict.smk"
include: "workflow/rules/combine.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/agreement.smk"
include: "workflow/rules/tip_change.smk"
include: "workflow/rules/render.smk"
include: "workflow/rules/protocols.smk"
include: "workflow/rules/explain.smk"
include: "workflow/rules/anomaly.smk"
include: "workflow/rules/curves.smk"
include: "workflow/rules/realism.smk"
include: "workflow/rules/deploy.smk"


onerror:
    logger.error("\n".join(["", "What failed:", *failures.lines()]))
