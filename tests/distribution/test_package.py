"""Packages contain the commit that they are built from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
from harness.processes import ROOT, need
from readme_renderer import markdown
from trove_classifiers import classifiers as known_classifiers

import celery_exporter

PARTS = (
    *("celery_exporter", "alerts", "dashboards"),
    *("hatch_build.py", "pyproject.toml", "README.md", "LICENSE"),
)
NO_CONFIG = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


@pytest.fixture
def sources(tmp_path) -> Path:
    """Return a copy of the sources of a package, outside of a repository."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    return folder


def git_environment() -> dict[str, str]:
    """Return the environment without GIT_* variables, which can point to another repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | NO_CONFIG


def git(folder: Path, *arguments: str) -> str:
    """Return the output of a git command."""
    author = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    result = subprocess.run(
        [need("git"), "-C", folder, *author, *arguments],
        env=git_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def committed(folder: Path) -> str:
    """Create a repository with one commit, and return the commit."""
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--no-gpg-sign", "--message", "all")
    return git(folder, "rev-parse", "HEAD")


def build(folder: Path, target: str) -> Path:
    """Build a wheel or an sdist without a network, and return its path."""
    directory = folder.parent / target
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(directory)]
    if os.geteuid() == 0:
        command = [need("unshare"), "--net", *command]
    subprocess.run(command, cwd=folder, env={**os.environ, **NO_CONFIG}, check=True, capture_output=True)
    (package,) = directory.iterdir()
    return package


def version_output(wheel: Path) -> str:
    """Return the output of --version of a wheel."""
    site = wheel.parent / "site"
    shutil.unpack_archive(wheel, site, "zip")
    result = subprocess.run(
        [sys.executable, "-m", "celery_exporter", "--version"],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=site,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def test_a_wheel_from_a_repository_has_its_commit(sources):
    commit = committed(sources)
    assert f"\ncommit {commit}, Python " in version_output(build(sources, "wheel"))


def test_a_wheel_with_uncommitted_changes_is_dirty(sources):
    commit = committed(sources)
    (sources / "README.md").write_text("changed\n")
    assert f"\ncommit {commit}-dirty, " in version_output(build(sources, "wheel"))


def test_a_source_package_has_its_commit(sources, tmp_path):
    commit = committed(sources)
    with tarfile.open(build(sources, "sdist")) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert f"\ncommit {commit}, " in version_output(build(unpacked, "wheel"))


def test_a_wheel_with_an_untracked_module_is_dirty(sources):
    commit = committed(sources)
    (sources / "celery_exporter" / "extra.py").touch()
    assert f"\ncommit {commit}-dirty, " in version_output(build(sources, "wheel"))


def test_untracked_files_outside_of_the_package_are_ignored(sources):
    commit = committed(sources)
    (sources / "notes.txt").touch()
    assert f"\ncommit {commit}, " in version_output(build(sources, "wheel"))


def test_a_repository_in_the_environment_is_ignored(sources, tmp_path, monkeypatch):
    """Hooks and git rebase --exec set these variables."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    other_commit = committed(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    commit = committed(sources)
    assert f"\ncommit {commit}, " in version_output(build(sources, "wheel"))
    monkeypatch.undo()
    assert git(other, "rev-parse", "HEAD") == other_commit != commit


def test_without_a_repository_there_is_no_commit_even_in_a_parent_repository(sources, tmp_path):
    git(tmp_path, "init", "--quiet")
    assert "commit" not in version_output(build(sources, "wheel"))


def test_the_readme_of_a_package_renders_and_has_no_link_into_the_repository(sources):
    with zipfile.ZipFile(build(sources, "wheel")) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        metadata = BytesParser().parsebytes(wheel.read(name))
    assert set(metadata.get_all("Classifier")) <= known_classifiers
    page = markdown.render(metadata.get_payload())
    assert page is not None
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(links) > 40
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    pictures = [link for link in links if link.endswith((".png", ".svg"))]
    assert pictures
    assert all(f"/raw/v{celery_exporter.__version__}/docs/img/" in link for link in pictures)
    # Every one that points into the repository names a file of it.
    into = [link.partition(f"/v{celery_exporter.__version__}/")[2] for link in links]
    assert [path for path in into if path and not (ROOT / path.partition("#")[0]).exists()] == []
