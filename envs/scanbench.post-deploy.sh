#!/usr/bin/env bash
# Runs in the new environment, from the folder in which Snakemake was started: the repository's root.
set -euo pipefail
pip install --no-deps --editable .
