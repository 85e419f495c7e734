"""The files of each release are read by today's exporter, which continues its counters and open tasks.

`tests/data/releases` has the state file and the history file of each release, and what has to be read from
them. The folder of the version that is not released yet is written by `make golden`. If a test of an older
folder fails, the new code has to read that format, too: docs/reference/stability.md promises it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from harness import saved_files
from harness.processes import ROOT, need

from celery_exporter import __version__

RELEASES = ROOT / "tests/data/releases"
CURRENT = RELEASES / __version__


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.fixture(scope="module")
def current(tmp_path_factory) -> Path:
    """Return a folder with the files of today's code, which UPDATE_GOLDEN=1 copies to the releases."""
    folder = tmp_path_factory.mktemp("current")
    saved_files.write(folder)
    if "UPDATE_GOLDEN" in os.environ:
        tag = [need("git"), "-C", ROOT, "rev-parse", "--quiet", "--verify", f"refs/tags/v{__version__}"]
        assert subprocess.run(tag, check=False).returncode, f"{__version__} is released: raise the version"
        CURRENT.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            (CURRENT / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_files_of_this_version_are_those_that_it_writes(current):
    """Otherwise the next release would be tested with files that this one does not write."""
    names = sorted(path.name for path in current.iterdir())
    assert names == sorted(path.name for path in CURRENT.iterdir()), "run make golden"
    history = [saved_files.history_dump(folder / saved_files.HISTORY) for folder in (current, CURRENT)]
    assert history[0] == history[1]
    for name in {*names} - {saved_files.HISTORY}:
        assert (current / name).read_bytes() == (CURRENT / name).read_bytes(), name


@pytest.mark.parametrize("release", sorted(RELEASES.iterdir()), ids=lambda folder: folder.name)
def test_counters_open_tasks_and_the_history_of_a_release_continue(release, tmp_path):
    metrics, tasks = saved_files.read(release, tmp_path)
    assert [line for line in lines(release / saved_files.METRICS) if line not in metrics] == []
    assert [line for line in lines(release / saved_files.TASKS) if line not in tasks] == []
    assert [path.name for path in tmp_path.glob("*.unread-*")] == []
