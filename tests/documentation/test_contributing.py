"""Each module has a unit test of its name, or is in the table of docs/contributing/tests.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from harness.processes import ROOT

from documentation.test_docs import DOCS

PACKAGE = ROOT / "celery_exporter"
UNIT = ROOT / "tests/unit"
#: Unit tests of the package as a whole, by the subject that they have instead of a module.
WITHOUT_MODULE = {
    "test_golden_replay.py",
    "test_imports.py",
    "test_private_attributes.py",
    "test_releases.py",
}
TABLE = dict(
    re.findall(r"^\| `(\S+\.py)` \| `(\S+)` \|$", (DOCS / "contributing/tests.md").read_text(), re.MULTILINE)
)


def has_code(path: Path) -> bool:
    """Return whether a module has more than a docstring, imports and constants of metadata."""
    return path.name != "__init__.py" or any(
        isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(path.read_text()).body
    )


def unit_test_of(module: Path) -> Path:
    name = module.parent.name if module.name == "__init__.py" else module.stem
    return UNIT / module.parent / f"test_{name}.py"


MODULES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if has_code(path)]


def test_modules_without_a_unit_test_of_their_name_are_in_the_table():
    assert [str(module) for module in MODULES if not unit_test_of(module).exists()] == list(TABLE)


def test_tests_in_the_table_exist():
    assert [test for test in TABLE.values() if not (ROOT / test).is_file()] == []


def test_unit_tests_are_named_after_modules():
    tests = {path.relative_to(UNIT) for path in UNIT.rglob("test_*.py")}
    named = {unit_test_of(module).relative_to(UNIT) for module in MODULES}
    assert {str(test) for test in tests - named} == WITHOUT_MODULE
