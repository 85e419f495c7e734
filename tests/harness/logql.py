"""Checks LogQL with Grafana's parser, which its query editor uses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from harness import npm
from harness.processes import need

FOLDER = Path(__file__).parent / "logql"


def syntax_errors(queries: list[str]) -> list[str]:
    """Return a message for each query with a syntax error."""
    npm.install(FOLDER, "@grafana/lezer-logql")
    result = subprocess.run(
        [need("node"), FOLDER / "check.mjs"],
        input=json.dumps(queries),
        capture_output=True,
        text=True,
        check=True,
    )
    positions = zip(queries, json.loads(result.stdout), strict=True)
    return [f"{query!r} at {position}" for query, position in positions if position is not None]
