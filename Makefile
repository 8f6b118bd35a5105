# make results   the main job: environment, pipeline, report
# make test      every check and test
# The rest are parts of these two.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
CORES ?= all
CONFIG ?= config/quick.yaml
# Named after the configuration, as one folder of results holds those of several.
NAME := $(subst $() ,-,$(strip $(basename $(notdir $(CONFIG)))))
$(foreach file,$(CONFIG),$(if $(wildcard $(file)),,$(error $(file): no such file: CONFIG names a configuration)))
REPORT ?= results/report$(addprefix -,$(NAME)).html
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c ^GPU || true)

# uv does not read pip's settings; hand over where pip looks for packages, whatever that is.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_EXTRA_INDEX_URL ?= $(shell $(PYTHON) -m pip config get global.extra-index-url 2>/dev/null)
export UV_INDEX_STRATEGY ?= unsafe-best-match
# One thread a job: Snakemake runs as many jobs as there are cores.
export OMP_NUM_THREADS ?= 1
# Large arrays are kept between the steps of a training instead of being mapped anew each time.
export MALLOC_MMAP_THRESHOLD_ ?= 8589934592
export MALLOC_TRIM_THRESHOLD_ ?= 8589934592
export PATH := $(abspath $(BIN)):$(PATH)

SLURM := slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core

SNAKEMAKE = $(BIN)/snakemake --configfile config.yaml $(CONFIG)
GPU_LIMIT = $(if $(filter-out 0,$(GPUS)),--resources gpu=$(GPUS))

.PHONY: help env lock check-config results report test slurm lint audit dry-run bench clean

help:  ## list what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 12

env: $(VENV)/.complete  ## create the environment from the pinned lock

$(VENV)/.complete: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

lock:  ## resolve requirements.in anew
	$(BIN)/python -m uv pip compile --quiet --python-version 3.11 --generate-hashes --custom-compile-command "make lock" --upgrade -o requirements.lock requirements.in

# Snakemake says of a wrong file neither its name nor the line.
check-config: env
	@$(BIN)/python -m scanbench.config_files config.yaml $(CONFIG)

results: env check-config  ## run the pipeline (CONFIG=config/quick.yaml) and write the report
	$(SNAKEMAKE) --cores $(CORES) $(GPU_LIMIT) --rerun-incomplete
	$(MAKE) --no-print-directory report

report: env check-config  ## write the HTML report of what has run
	$(SNAKEMAKE) --cores 1 --quiet all --report $(REPORT)
	@echo "Report:   $(REPORT)"
	@$(SNAKEMAKE) --summary 2>/dev/null | sed -nE \
		-e 's|^(results/comparisons/[^/]+/)summary\.html\t.*|Summary:  \1summary.html\nFigures:  \1figures/\nTables:   \1tables/|p' \
		-e 's|^(results/side-by-side/[^/]+/protocols)\.svg\t.*|Side by side: \1.svg, \1.csv|p' \
		-e 's|^(results/curves/[^/]+/)curves\.svg\t.*|Curves:   \1curves.svg, \1reached.csv|p' \
		-e 's|^(results/realism/[^/\t]+)\t.*|Real and simulated: \1/scans.svg, \1/realism.md|p'

# Long files first, in this order: else one worker ends with them alone while the other is idle.
test: env lint slurm  ## every check and test
	$(BIN)/python -m pytest tests/workflow tests/unit -n 2 --dist loadfile --no-loadscope-reorder --durations 10

slurm:  ## SLURM from Debian's packages, for its tests
	@dpkg -s $(SLURM) >/dev/null 2>&1 || \
	{ apt-get update -q && apt-get install -qy --no-install-recommends $(SLURM); } >/dev/null 2>&1 || \
	echo "SLURM cannot be installed here (it takes root and apt-get): its tests are skipped"

lint: env  ## ruff, mypy, snakefmt, snakemake --lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

audit: env  ## look for known flaws of the pinned packages (asks PyPI)
	$(BIN)/python -m uv tool run pip-audit@2.10.1 --strict --disable-pip --require-hashes -r requirements.lock

dry-run: env check-config  ## plan the full study, or what CONFIG= names, without running it
	$(if $(filter file,$(origin CONFIG)),$(BIN)/snakemake,$(SNAKEMAKE)) --dry-run --quiet rules

bench: env  ## the speed benchmarks
	$(BIN)/python benchmarks/run.py

clean:  ## remove what the pipeline made
	rm -rf results/data results/tuning results/runs results/comparisons results/side-by-side results/curves results/explanations results/anomalies results/tip-changes results/realism results/deployments results/records results/logs results/benchmarks results/report*.html .snakemake
