"""The check of the state file: whether an exporter could use it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from harness.configs import monitor_config

from celery_exporter.doctor.state_checks import run_state_check
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.persistence.state_file import VERSION, StateFile
from celery_exporter.status.finding import Finding

URL = "redis://127.0.0.1:1/0"
HEAD = b"celery-exporter state %d\n"


def of_exporter(path: Path, url: str = URL, **options: str) -> MonitorConfig:
    return monitor_config(url, state_file=str(path), **options)


def written(config: MonitorConfig) -> Monitor:
    """Return a monitor that has written its file, and holds it open."""
    monitor = Monitor(config, SeriesTracker(time.monotonic(), time.time(), is_saved=True))
    monitor.checkpoint.save()
    return monitor


def checked(config: MonitorConfig) -> Finding:
    """Run the check, which must change nothing."""
    folder = config.state_file.parent
    before = {path: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else None
    finding = run_state_check(config.state_file, config)
    if before is not None:
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    return finding


@pytest.mark.parametrize("content", [None, b"", HEAD % VERSION])
def test_a_file_without_a_record_can_be_used(tmp_path, content):
    if content is not None:
        (tmp_path / "state").write_bytes(content)
    finding = checked(of_exporter(tmp_path / "state"))
    assert (finding.check, finding.severity) == ("state", "ok")
    assert "does not exist yet" in finding.message


@pytest.mark.parametrize(
    ("options", "owner"), [({}, "this broker"), ({"shard": "1/2"}, "this broker and shard")]
)
def test_the_file_of_an_exporter_that_runs_is_no_problem(tmp_path, options, owner):
    """The lock stays with it, and another user or password is the same broker."""
    monitor = written(of_exporter(tmp_path / "state", **options))
    finding = checked(of_exporter(tmp_path / "state", "redis://me:pw@127.0.0.1:1/0", **options))
    assert (finding.severity, finding.message.endswith(f": is that of {owner}")) == ("ok", True)
    monitor.checkpoint.save()
    monitor.discard()


@pytest.mark.parametrize(
    ("url", "options", "severity", "reason"),
    [
        (URL, {"shard": "1/2"}, "critical", "it is of shard none, and not of 1/2"),
        ("redis://127.0.0.1:1/5", {}, "warning", "it is of another broker, 127.0.0.1:1/0, and not of"),
    ],
)
def test_a_file_of_another_exporter_is_a_problem(tmp_path, url, options, severity, reason):
    written(of_exporter(tmp_path / "state")).discard()
    finding = checked(of_exporter(tmp_path / "state", url, **options))
    assert (finding.severity, reason in finding.message) == (severity, True)


@pytest.mark.parametrize(
    ("content", "severity", "reason"),
    [
        (b"text", "critical", "is not a state file of celery-exporter"),
        (HEAD % (VERSION - 1), "warning", "it has version"),
        (HEAD % VERSION + b"\x10\0\0\0", "warning", "it ends within its first record"),
        (HEAD % VERSION + bytes(12) + b"text", "warning", "it is damaged: a checksum does not match"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_problem(tmp_path, content, severity, reason):
    (tmp_path / "state").write_bytes(content)
    finding = checked(of_exporter(tmp_path / "state"))
    assert (finding.severity, reason in finding.message) == (severity, True)


def test_a_record_of_another_program_is_a_problem(tmp_path):
    file = StateFile(tmp_path / "state")
    file.load(lambda _: None)
    file.rewrite([b"text"])
    file.close()
    finding = checked(of_exporter(tmp_path / "state"))
    assert (finding.severity, "it holds a state that cannot be used" in finding.message) == ("warning", True)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("missing/state", "missing does not exist"), (".", "is not a regular file"), ("fifo", "regular file")],
)
def test_a_path_without_a_file_is_critical(tmp_path, path, reason):
    os.mkfifo(tmp_path / "fifo")
    finding = run_state_check(tmp_path / path, of_exporter(tmp_path / path))
    assert (finding.severity, reason in finding.message) == ("critical", True)


def test_a_directory_that_must_not_be_written_is_critical(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root
    finding = checked(of_exporter(tmp_path / "state"))
    assert (finding.severity, "is not writable" in finding.message) == ("critical", True)
