"""The dashboards against Grafana's own TypeScript types, by the compiler.

Node and npm come with the machine. Without them, or the packages, it skips at a desk and fails in CI.
"""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.processes import missing, need

from dashboards.committed import BOARDS, Json

TYPES = Path(__file__).parent / "types"
MODULES = TYPES / "node_modules"


@pytest.fixture(scope="module")
def node() -> str:
    """Install the two packages, at the versions and hashes that are locked; return the path of node."""
    program, npm, lock = need("node"), need("npm"), TYPES / "package-lock.json"
    installed = MODULES / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=TYPES,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            missing(f"@grafana/schema (npm ci: {done.stderr.strip()[-300:]})")
        installed.touch()
    return program


@pytest.fixture
def complaints(node: str, tmp_path: Path) -> Callable[[dict[str, Json]], list[str]]:
    """`complaints(boards)` has the compiler read them, and returns its errors."""

    def check(boards: dict[str, Json]) -> list[str]:
        for name in ("tsconfig.json", "dashboard.ts"):
            shutil.copy(TYPES / name, tmp_path)
        (tmp_path / "node_modules").symlink_to(MODULES)
        for uid, board in boards.items():
            (tmp_path / f"{uid}.ts").write_text(
                'import type { Provisioned } from "./dashboard";\n'
                f"export const board: Provisioned = {json.dumps(board, indent=1)};\n"
            )
        done = subprocess.run(
            [node, MODULES / "typescript" / "bin" / "tsc", "--pretty", "false", "-p", tmp_path],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    return check


def test_the_dashboards_are_what_grafana_takes(complaints):
    assert complaints(BOARDS) == []


def wrong(change: Callable[[dict[str, Any]], Any], kind: str) -> Json:
    """Return Overview, or another board that has it, with one panel of this kind changed."""
    for board in copy.deepcopy(BOARDS).values():
        for panel in board["panels"]:
            if panel["type"] == kind:
                change(panel)
                return board
    raise AssertionError(kind)


MISTAKES = {
    "an option that is none": (lambda panel: panel["options"].update(colour="red"), "stat"),
    "a word that is none": (lambda panel: panel["options"].update(colorMode="valu"), "stat"),
    "an option of another panel": (lambda panel: panel["options"].update(graphMode="none"), "timeseries"),
    "a custom option that is none": (
        lambda panel: panel["fieldConfig"]["defaults"]["custom"].update(linewidth=1),
        "timeseries",
    ),
    "a text for a number": (lambda panel: panel["gridPos"].update(h="8"), "table"),
    "a query without expression": (lambda panel: panel["targets"][0].pop("expr"), "heatmap"),
    "a panel that is none": (lambda panel: panel.update(type="tabel"), "table"),
    "a field that is none": (lambda panel: panel.update(titel="x"), "stat"),
}


def test_the_types_find_mistakes(complaints):
    """One run over all: the compiler takes seconds to start. That they are fine without is the test above."""
    boards = {f"mistake{place}": wrong(*mistake) for place, mistake in enumerate(MISTAKES.values())}
    blamed = {line.partition(".ts(")[0] for line in complaints(boards)}
    assert boards.keys() - blamed == set()
