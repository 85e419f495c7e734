"""Packages as people build them: each says which commit it is made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from harness.processes import ROOT, need

PARTS = ("celery_exporter", "hatch_build.py", "pyproject.toml", "README.md", "LICENSE")
NOBODY = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


@pytest.fixture
def sources(tmp_path) -> Path:
    """Return a copy of what a package is made of, which is in no repository."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    return folder


def surroundings() -> dict[str, str]:
    """Return the environment without what leads git to another repository, as that of a hook does."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | NOBODY


def git(folder: Path, *arguments: str) -> str:
    person = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    done = subprocess.run(
        [need("git"), "-C", folder, *person, *arguments],
        env=surroundings(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def committed(folder: Path) -> str:
    """Make a repository of it, and return its one commit."""
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--no-gpg-sign", "--message", "all")
    return git(folder, "rev-parse", "HEAD")


def build(folder: Path, target: str) -> Path:
    """Build a wheel or an sdist without a network, and return its path."""
    to = folder.parent / target
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(to)]
    subprocess.run(command, cwd=folder, env={**os.environ, **NOBODY}, check=True, capture_output=True)
    (made,) = to.iterdir()
    return made


def said_version(wheel: Path) -> str:
    """Return what --version prints from a wheel."""
    site = wheel.parent / "site"
    shutil.unpack_archive(wheel, site, "zip")
    done = subprocess.run(
        [sys.executable, "-m", "celery_exporter", "--version"],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=site,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_wheel_made_in_a_repository_says_its_commit(sources):
    commit = committed(sources)
    assert f"\ncommit {commit}, Python " in said_version(build(sources, "wheel"))


def test_a_wheel_of_what_nobody_committed_says_so(sources):
    commit = committed(sources)
    (sources / "README.md").write_text("changed\n")
    assert f"\ncommit {commit}-dirty, " in said_version(build(sources, "wheel"))


def test_a_source_package_knows_it_too(sources, tmp_path):
    commit = committed(sources)
    with tarfile.open(build(sources, "sdist")) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert f"\ncommit {commit}, " in said_version(build(unpacked, "wheel"))


def test_a_wheel_with_a_module_that_nobody_committed_says_so(sources):
    commit = committed(sources)
    (sources / "celery_exporter" / "extra.py").touch()
    assert f"\ncommit {commit}-dirty, " in said_version(build(sources, "wheel"))


def test_what_is_beside_the_package_does_not_count(sources):
    commit = committed(sources)
    (sources / "notes.txt").touch()
    assert f"\ncommit {commit}, " in said_version(build(sources, "wheel"))


def test_a_repository_that_the_environment_names_is_left_alone(sources, tmp_path, monkeypatch):
    """As in a hook, or in git rebase --exec."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    theirs = committed(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    commit = committed(sources)
    assert f"\ncommit {commit}, " in said_version(build(sources, "wheel"))
    monkeypatch.undo()
    assert git(other, "rev-parse", "HEAD") == theirs != commit


def test_where_nobody_knows_it_nothing_is_said_and_no_repository_around_it_is_asked(sources, tmp_path):
    git(tmp_path, "init", "--quiet")
    assert "commit" not in said_version(build(sources, "wheel"))
