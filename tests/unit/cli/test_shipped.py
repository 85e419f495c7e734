"""`alerts` and `dashboards`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from harness.exporter import run_cli


@pytest.mark.parametrize("kind", ["alerts", "dashboards"])
def test_the_paths_of_the_written_files_are_printed(kind, tmp_path):
    done = run_cli(kind, "--out", str(tmp_path))
    written = {str(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert (done.returncode, done.stderr, {*done.stdout.splitlines()}) == (0, "", written)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    done = run_cli("alerts", "--out", str(tmp_path / "file"))
    expected = f"celery-exporter: --out: cannot write '{tmp_path}/file': File exists\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_all_files_are_written_if_the_reader_of_the_output_ends_early(tmp_path):
    """As with `| head -1`. The closed pipe is no error of --out."""
    process = subprocess.Popen(
        [sys.executable, "-m", "celery_exporter", "dashboards", "--out", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()
    assert {path.parent.name for path in tmp_path.rglob("*.json")} == {"import", "provisioning"}
