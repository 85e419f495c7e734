"""Read what a mutation run left behind: print the survivors and the score of each module, and judge it.

A mutant that no test ran into has survived; one that made the tests hang was noticed.
"""

from __future__ import annotations

import ast
import difflib
import json
import sys
from collections import Counter
from pathlib import Path

#: Of a hundred mutants, how many have to be noticed.
GOAL = 90.0
#: What mutmut writes for a mutant: the exit code of pytest, or its own for one that no test runs.
SURVIVED = {0: "no test failed", 33: "no test runs it"}


def source(tree: ast.Module, name: str) -> list[str]:
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    found.name = name.partition("__mutmut_")[0]
    return ast.unparse(found).splitlines()


def show(module: Path, mutant: str, why: str) -> None:
    tree = ast.parse(module.read_text())
    name = mutant.rpartition(".")[2]
    before, after = source(tree, name.partition("__mutmut_")[0] + "__mutmut_orig"), source(tree, name)
    print(f"\n{mutant}: {why}")
    for line in difflib.unified_diff(before, after, n=0, lineterm=""):
        if not line.startswith(("---", "+++", "@@")):
            print(f"  {line}")


def main(package: Path) -> int:
    rows: dict[str, Counter[bool]] = {}
    for meta in sorted(package.rglob("*.py.meta")):
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        for mutant, code in codes.items():
            if code in SURVIVED:
                show(meta.with_suffix(""), mutant, SURVIVED[code])
        if run := Counter(code not in SURVIVED for code in codes.values() if code is not None):
            rows[meta.name.partition(".")[0]] = run
    rows["all"] = sum(rows.values(), Counter())
    print("\nmodule     mutants  survived   noticed")
    for name, row in rows.items():
        print(f"{name:10} {row.total():7} {row[False]:9} {100 * row[True] / row.total():7.1f} %")
    return 0 if 100 * rows["all"][True] / rows["all"].total() >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
