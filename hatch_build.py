"""Writes down which commit a package is made of, for `celery-exporter --version`."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: In a source package, in an image's build (see Dockerfile), and, in the package itself, in a wheel.
NAME = "REVISION"


class Revision(BuildHookInterface[Any]):
    """Of sources that are not in git, and in which nobody wrote it down, there is none."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file, but for an editable install: what runs there changes."""
        root = Path(self.root)
        revision = None if version == "editable" else _written(root) or _asked(root)
        if revision is None:
            return
        self._folder = tempfile.TemporaryDirectory()  # until the end of this process
        path = Path(self._folder.name, NAME)
        path.write_text(revision + "\n")
        place = NAME if self.target_name == "sdist" else f"celery_exporter/{NAME}"
        build_data["force_include"][str(path)] = place


def _written(root: Path) -> str | None:
    path = root / NAME
    return path.read_text().strip() or None if path.exists() else None


def _asked(root: Path) -> str | None:
    if not (root / ".git").exists():  # a repository around it is another one
        return None
    try:
        revision = _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        # What is not in git is not dirty to it, and goes into the package all the same.
        new = _git(root, "status", "--porcelain", "--untracked-files", "--", "celery_exporter")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{revision}-dirty" if new and not revision.endswith("-dirty") else revision


def _git(root: Path, *arguments: str) -> str:
    """Ask the repository that is here, whatever the environment of a hook says."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG_")
    }
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, env=ours, capture_output=True, text=True, check=True)  # noqa: S603  git
    return done.stdout.strip()
