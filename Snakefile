"""Scanbench: from raw scans to an honest comparison of models. Wiring only; see docs/."""

from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


config = resolved(config)


wildcard_constraints:
    dataset="[^/]+",
    split="[^/]+",
    experiment="[^/]+",
    comparison="[^/]+",
    name="[^/]+",
    fold=r"\d+",
    seed=r"\d+",
    trial=r"\d+",


localrules:
    all,


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
include: "workflow/rules/render.smk"
include: "workflow/rules/protocols.smk"
include: "workflow/rules/curves.smk"
