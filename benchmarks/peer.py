"""Installs the most used exporter in a separate virtual environment, outside of our lock file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from harness.processes import ROOT, need

FOLDER = ROOT / ".venv-peer"
#: The newest version on the package index, and the newest Celery that supports the redis-py that it requires.
PINNED = ("prometheus-exporter-celery==0.11.2", "celery[redis]==5.6.3", "kombu==5.6.2", "redis==5.3.1")
#: The package has no script. Its image runs a file with this code.
START = "from src.cli import cli; cli(auto_envvar_prefix='CE')"


def installed() -> Path | None:
    """Return its interpreter; print a message and return None if the installation fails."""
    python, marker = FOLDER / "bin" / "python", FOLDER / "installed"
    if marker.exists() and marker.read_text() == "\n".join(PINNED):
        return python
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    for command in (
        [
            "venv",
            "--quiet",
            "--clear",
            "--python",
            ">=3.11,<3.13",
            str(FOLDER),
        ],  # the versions that it supports
        ["pip", "install", "--quiet", "--python", str(python), *PINNED],
    ):
        if subprocess.run([need("uv"), *command], env=environment, check=False).returncode != 0:
            print("bench: the peer could not be installed; it is left out", flush=True)
            return None
    marker.write_text("\n".join(PINNED))
    return python
