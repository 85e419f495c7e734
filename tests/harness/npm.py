"""Packages of npm that tests use, in the versions and with the hashes of a lock file."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

from harness.processes import missing, need


def install(folder: Path, what: str) -> None:
    """Install the packages of a folder, unless those of its lock file are there: once, if in parallel."""
    lock, done = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
            clean_install(folder, what)
            done.touch()


def clean_install(folder: Path, what: str) -> None:
    """Install the packages of a folder; skip the test, or fail it in CI, if that is impossible."""
    command = [need("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        missing(f"{what} (npm ci: {result.stderr.strip()[-300:]})")
