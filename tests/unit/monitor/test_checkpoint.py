"""Pages and a state file whose disk hangs, is full, or comes back: no page shows less than one before it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.configs import monitor_config
from harness.waiting import eventually

from celery_exporter.core import tasks
from celery_exporter.core.events import Event
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.monitor import checkpoint as saving
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.persistence import state_file as statefile
from celery_exporter.persistence.state_file import StateFileError

UNREACHABLE_URL = "redis://127.0.0.1:1/0"


class Disk:
    """Stands for `os`; `before_sync` is called before each fdatasync."""

    def __init__(self) -> None:
        self.before_sync: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def fdatasync(self, descriptor: int) -> None:
        self.before_sync()
        os.fdatasync(descriptor)


def full() -> None:
    raise OSError(28, "No space left on device")


class Counting:
    """A monitor that counts tasks that were sent, with a state file on a disk of its own."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path, self.disk, self.sent = path, disk, 0
        self.monitor = self._new()
        self.checkpoint.save()

    def _new(self) -> Monitor:
        config = monitor_config(UNREACHABLE_URL, state_file=str(self.path))
        return Monitor(config, SeriesTracker(time.monotonic(), time.time(), is_saved=True))

    @property
    def checkpoint(self) -> saving.CheckpointWriter:
        return self.monitor.checkpoint

    def send(self, count: int = 1) -> None:
        events = []
        for _ in range(count):
            self.sent += 1
            events.append(Event("task-sent", time.time(), "c@h", uuid=f"u{self.sent}", name="add", queue="q"))
        self.monitor.subscription.apply_events(events)

    def shown(self) -> int:
        aggregates = self.monitor.snapshot(web_config_up_to_date=None).aggregates
        return sum(sum(aggregate.transitions) for aggregate in aggregates.values())

    def killed(self) -> int:
        """Go on in another process; return what it shows."""
        self.monitor._file.close()
        self.monitor = self._new()
        return self.shown()


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(statefile, "os", disk)
    return disk


@pytest.fixture
def counting(tmp_path, disk):
    return Counting(tmp_path / "state", disk)


def fail_to_save(counting: Counting) -> None:
    with pytest.raises(StateFileError):
        counting.checkpoint.save()


def test_a_page_shows_what_is_written(counting):
    counting.send(5)
    assert counting.shown() == 0
    counting.checkpoint.save()
    counting.send(2)
    assert counting.shown() == counting.killed() == 5


def test_a_disk_that_is_full_for_a_while_changes_nothing_that_is_shown(counting, disk):
    counting.send(5)
    disk.before_sync = full
    fail_to_save(counting)
    assert counting.shown() == 0
    disk.before_sync = lambda: None
    counting.checkpoint.save()
    assert counting.shown() == counting.killed() == 5


def test_a_disk_that_stays_full_leaves_no_file_that_is_behind(counting, disk, monkeypatch, tmp_path):
    monkeypatch.setattr(saving, "MAX_UNSAVED_SECONDS", 0.0)
    counting.send(5)
    disk.before_sync = full
    fail_to_save(counting)
    assert counting.shown() == 5
    assert not (tmp_path / "state").exists() or not (tmp_path / "state").read_bytes()
    assert (tmp_path / "state.unread-1").exists()
    disk.before_sync = lambda: None
    counting.send()
    counting.checkpoint.save()
    assert counting.killed() == 6


def test_new_series_leave_their_0_though_something_is_in_the_place_of_the_file(
    counting, monkeypatch, tmp_path
):
    monkeypatch.setattr(saving, "MAX_UNSAVED_SECONDS", 0.0)
    (tmp_path / "new").write_bytes(b"of another program")
    (tmp_path / "new").replace(tmp_path / "state")
    firsts = counting.monitor._tracker
    shown = []
    for _ in range(5):
        visit = firsts.begin("prometheus", time.monotonic())
        shown.append(not visit.needs_zero(1))
        firsts.end("prometheus", visit, time.monotonic())
        fail_to_save(counting)
    assert shown[0] is False
    assert shown[-1] is True
    assert (tmp_path / "state").read_bytes() == b"of another program"


def test_a_file_that_cannot_be_moved_away_is_written_over_when_the_disk_is_back(
    counting, disk, monkeypatch, caplog
):
    monkeypatch.setattr(saving, "MAX_UNSAVED_SECONDS", 0.0)
    counting.send(5)
    disk.before_sync = full
    with monkeypatch.context() as readonly:
        readonly.setattr(
            Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
        )
        for _ in range(3):
            fail_to_save(counting)
    assert caplog.text.count("it could not be moved aside: Read-only file system") == 1
    disk.before_sync = lambda: None
    counting.checkpoint.save()
    assert counting.killed() == 5


def test_what_was_shown_while_a_write_hung_is_not_taken_back_when_it_ends(counting, disk, monkeypatch):
    over = threading.Event()
    disk.before_sync = over.wait
    counting.send(5)
    saves = threading.Thread(target=counting.checkpoint.save)
    saves.start()
    eventually(counting.checkpoint._saving.locked)
    monkeypatch.setattr(saving, "MAX_UNSAVED_SECONDS", 0.0)
    counting.send(100)
    assert counting.shown() == 105
    monkeypatch.setattr(saving, "MAX_UNSAVED_SECONDS", 600.0)
    over.set()
    saves.join()
    assert counting.shown() == counting.killed() == 105


def test_who_waits_while_a_write_hangs_does_not_wait_for_ever(counting, disk):
    over = threading.Event()
    disk.before_sync = over.wait
    saves = threading.Thread(target=counting.checkpoint.save)
    saves.start()
    eventually(counting.checkpoint._saving.locked)
    with pytest.raises(StateFileError, match="takes long"):
        counting.checkpoint.save(wait=0.01)
    over.set()
    saves.join()


def test_changes_that_are_too_many_to_note_are_written_as_a_whole(counting, monkeypatch):
    monkeypatch.setattr(tasks, "MAX_CHANGED", 3)
    counting.send(10)
    counting.monitor.state.cluster.expire(counting.monitor.state.now())
    assert counting.monitor.state.cluster.tasks.changed is None
    counting.checkpoint.save()
    assert counting.killed() == 10
    assert len(counting.monitor.state.cluster.tasks) == 10


def test_after_a_record_that_cannot_be_written_the_file_is_rewritten(counting, monkeypatch):
    counting.send(5)
    with monkeypatch.context() as broken:
        broken.setattr(
            saving, "_encode", lambda _: (_ for _ in ()).throw(UnicodeEncodeError("a", "", 0, 1, ""))
        )
        with pytest.raises(UnicodeEncodeError):
            counting.checkpoint.save()
    counting.send(2)
    counting.checkpoint.save()
    assert counting.shown() == counting.killed() == 7
