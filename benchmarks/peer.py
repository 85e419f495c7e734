"""The most used exporter, in a virtual environment of its own: not in our lock file, and not in our way."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from harness.processes import ROOT, need

FOLDER = ROOT / ".venv-peer"
#: The newest there is on the index, with the newest Celery that works with the redis-py which it takes.
PINNED = ("prometheus-exporter-celery==0.11.2", "celery[redis]==5.6.3", "kombu==5.6.2", "redis==5.3.1")
#: The package has no script. Its image runs a file that does this.
START = "from src.cli import cli; cli(auto_envvar_prefix='CE')"


def installed() -> Path | None:
    """Return its interpreter; None, and say why, where it cannot be installed."""
    python, done = FOLDER / "bin" / "python", FOLDER / "installed"
    if done.exists() and done.read_text() == "\n".join(PINNED):
        return python
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    for command in (
        ["venv", "--quiet", "--clear", "--python", ">=3.11,<3.13", str(FOLDER)],  # what it takes
        ["pip", "install", "--quiet", "--python", str(python), *PINNED],
    ):
        if subprocess.run([need("uv"), *command], env=environment, check=False).returncode != 0:
            print("bench: without the peer, which could not be installed", flush=True)
            return None
    done.write_text("\n".join(PINNED))
    return python
