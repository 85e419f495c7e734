"""What a package gets at its build: the commit, for `--version`, and a readme with links for an index."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

#: The file is in the root of a source package and of an image build (see Dockerfile), and in the package of a
#: wheel.
NAME = "REVISION"


class Readme(MetadataHookInterface):
    """Makes the links of README.md absolute: a package index has no other files of the repository."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme, whose links point to the tag of this version."""
        root = Path(self.root)
        version = re.search(
            '^__version__ = "(.+)"$', (root / "celery_exporter/__init__.py").read_text(), re.MULTILINE
        )
        text = with_absolute_links(
            (root / "README.md").read_text(), metadata["urls"]["Homepage"], f"v{version[1]}"
        )
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def with_absolute_links(markdown: str, repository: str, tag: str) -> str:
    """Return a readme whose relative links and pictures are URLs of files in a repository on GitHub."""
    link = re.compile(r"(?<=\]\()(?!https?://|#)(?=[^)\s]+\))")
    picture = re.compile(r"(!\[[^\]]*\]\()(?!https?://)")
    return link.sub(f"{repository}/blob/{tag}/", picture.sub(rf"\g<1>{repository}/raw/{tag}/", markdown))


class Revision(BuildHookInterface[Any]):
    """Adds the commit to a package, if the sources are in git or contain the file."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file. An editable install gets none, because its sources change."""
        root = Path(self.root)
        revision = None if version == "editable" else _revision_from_file(root) or _revision_from_git(root)
        if revision is None:
            return
        self._folder = tempfile.TemporaryDirectory()  # until the end of this process
        path = Path(self._folder.name, NAME)
        path.write_text(revision + "\n")
        target = NAME if self.target_name == "sdist" else f"celery_exporter/{NAME}"
        build_data["force_include"][str(path)] = target


def _revision_from_file(root: Path) -> str | None:
    path = root / NAME
    return path.read_text().strip() or None if path.exists() else None


def _revision_from_git(root: Path) -> str | None:
    if not (root / ".git").exists():  # a repository in a parent folder is another one
        return None
    try:
        revision = _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        # Untracked files are part of the package, but `git describe` does not report them as dirty.
        untracked = _git(root, "status", "--porcelain", "--untracked-files", "--", "celery_exporter")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{revision}-dirty" if untracked and not revision.endswith("-dirty") else revision


def _git(root: Path, *arguments: str) -> str:
    """Return the output of git for this repository, independent of GIT_* variables that a hook sets."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG_")
    }
    command = ["git", "-C", str(root), *arguments]
    result = subprocess.run(  # noqa: S603  git
        command, env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()
