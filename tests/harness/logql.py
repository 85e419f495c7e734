"""Checks LogQL with Grafana's parser, which its query editor uses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from harness.processes import missing, need

FOLDER = Path(__file__).parent / "logql"


def syntax_errors(queries: list[str]) -> list[str]:
    """Return a message for each query with a syntax error."""
    node = _installed()
    result = subprocess.run(
        [node, FOLDER / "check.mjs"], input=json.dumps(queries), capture_output=True, text=True, check=True
    )
    positions = zip(queries, json.loads(result.stdout), strict=True)
    return [f"{query!r} at {position}" for query, position in positions if position is not None]


def _installed() -> str:
    """Install the parser with locked versions and hashes, and return the path of node."""
    program, npm, lock = need("node"), need("npm"), FOLDER / "package-lock.json"
    installed = FOLDER / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        result = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            missing(f"@grafana/lezer-logql (npm ci: {result.stderr.strip()[-300:]})")
        installed.touch()
    return program
