"""The TypeScript compiler checks the dashboards against Grafana's types, and its grammar parses the LogQL.

Without node, npm or the packages, the tests are skipped on a developer's machine and fail in CI.
"""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import npm
from harness.processes import need

from dashboards.committed import BOARDS, Json, targets

TYPES = Path(__file__).parent / "types"
MODULES = TYPES / "node_modules"


@pytest.fixture(scope="module")
def node() -> str:
    """Install the packages with locked versions and hashes, and return the path of node."""
    npm.install(TYPES, "packages of npm")
    return need("node")


@pytest.fixture
def compile_errors(node: str, tmp_path: Path) -> Callable[[dict[str, Json]], list[str]]:
    """Return a function that compiles dashboards and returns the errors."""

    def check(boards: dict[str, Json]) -> list[str]:
        for name in ("tsconfig.json", "dashboard.ts"):
            shutil.copy(TYPES / name, tmp_path)
        (tmp_path / "node_modules").symlink_to(MODULES)
        for uid, board in boards.items():
            (tmp_path / f"{uid}.ts").write_text(
                'import type { Provisioned } from "./dashboard";\n'
                f"export const board: Provisioned = {json.dumps(board, indent=1)};\n"
            )
        result = subprocess.run(
            [node, MODULES / "typescript" / "bin" / "tsc", "--pretty", "false", "-p", tmp_path],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stderr == ""
        return result.stdout.splitlines()

    return check


def test_the_dashboards_have_the_types_of_grafana(compile_errors):
    assert compile_errors(BOARDS) == []


def with_mistake(change: Callable[[dict[str, Any]], Any], kind: str) -> Json:
    """Return a dashboard that has a panel of this kind, with one such panel changed."""
    for board in copy.deepcopy(BOARDS).values():
        for panel in board["panels"]:
            if panel["type"] == kind:
                change(panel)
                return board
    raise AssertionError(kind)


MISTAKES = {
    "an unknown option": (lambda panel: panel["options"].update(colour="red"), "stat"),
    "an unknown value": (lambda panel: panel["options"].update(colorMode="valu"), "stat"),
    "an option of another panel": (lambda panel: panel["options"].update(graphMode="none"), "timeseries"),
    "an unknown custom option": (
        lambda panel: panel["fieldConfig"]["defaults"]["custom"].update(linewidth=1),
        "timeseries",
    ),
    "a string instead of a number": (lambda panel: panel["gridPos"].update(h="8"), "table"),
    "a query without an expression": (lambda panel: panel["targets"][0].pop("expr"), "heatmap"),
    "an unknown panel type": (lambda panel: panel.update(type="tabel"), "table"),
    "an unknown field": (lambda panel: panel.update(titel="x"), "stat"),
}


def test_the_types_find_mistakes(compile_errors):
    """One run compiles all mistakes, because the compiler takes seconds to start."""
    boards = {f"mistake{index}": with_mistake(*mistake) for index, mistake in enumerate(MISTAKES.values())}
    with_errors = {line.partition(".ts(")[0] for line in compile_errors(boards)}
    assert boards.keys() - with_errors == set()


def with_error(node: str, *expressions: str) -> list[str]:
    """Return the expressions that are not LogQL."""
    result = subprocess.run(
        [node, TYPES / "logql.cjs"], input=json.dumps(expressions), capture_output=True, text=True, check=True
    )
    errors: list[str] = json.loads(result.stdout)
    return errors


def test_the_queries_of_loki_are_logql(node):
    expressions = (target["expr"].replace("$__auto", "5m") for _, _, target in targets("loki"))
    assert with_error(node, *expressions) == []


def test_the_grammar_finds_mistakes(node):
    mistakes = ['{state="FAILURE"', "{state=}", '{state="a"} | jsn', 'rate({state="a"})', "sum by state (1)"]
    assert with_error(node, *mistakes) == mistakes
