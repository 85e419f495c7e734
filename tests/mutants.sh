#!/usr/bin/env bash
# Runs mutation tests of the core on a copy of the tree (make mutants): each mutant is one change in a line, and a test of
# tests/unit/core should fail. Settings are in pyproject.toml, accepted survivors in tests/unit/core/mutation_survivors.md.
#   tests/mutants.sh [MUTANT ...]    all mutants, or the named ones, such as "celery_exporter.core.transitions.*"
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r celery_exporter tests pyproject.toml README.md "$copy"
cd "$copy"
"$root/.venv/bin/mutmut" run --max-children "$(nproc)" "$@"
"$root/.venv/bin/python" "$root/tests/mutants.py" mutants/celery_exporter
