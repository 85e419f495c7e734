#!/usr/bin/env bash
# make mutants: break the core in some two thousand places, one at a time, and see whether a test of tests/unit/core
# notices. It works on a copy of the tree. Settings are in pyproject.toml, survivors in tests/unit/core/mutation_survivors.md.
#   tests/mutants.sh [MUTANT ...]    all of them, or those named, as in "celery_exporter.core.transitions.*"
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r celery_exporter tests pyproject.toml README.md "$copy"
cd "$copy"
"$root/.venv/bin/mutmut" run --max-children "$(nproc)" "$@"
"$root/.venv/bin/python" "$root/tests/mutants.py" mutants/celery_exporter
