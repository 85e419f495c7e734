"""A state file whose disk hangs or is full for a while: no page shows less than an earlier one."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.configs import monitor_config
from harness.waiting import eventually

from celery_exporter.broker.consumers.acknowledgements import RELAYED_LINES, Acknowledgements
from celery_exporter.broker.consumers.amqp_consumer import PREFETCH_OF_RELAYED, AmqpConsumer
from celery_exporter.broker.message import Message
from celery_exporter.broker.source import ConfigSource
from celery_exporter.core import tasks
from celery_exporter.core.events import Event
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.monitor import checkpoint
from celery_exporter.monitor.event_subscription import CHUNK_EVENTS
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.persistence import state_file
from celery_exporter.persistence.state_file import StateFileError

HEARTBEAT = {"type": "worker-heartbeat", "hostname": "w@h", "timestamp": 1.75e9, "pid": 1, "clock": 1}
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


def fail_full() -> None:
    raise OSError(28, "No space left on device")


class CountingMonitor:
    """A monitor that counts sent tasks, with a state file on a simulated disk."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path, self.disk, self.sent = path, disk, 0
        self.monitor = self._new()
        self.checkpoint.save()

    def _new(self) -> Monitor:
        config = monitor_config(UNREACHABLE_URL, state_file=str(self.path))
        return Monitor(config, SeriesTracker(time.monotonic(), time.time(), is_saved=True))

    @property
    def checkpoint(self) -> checkpoint.CheckpointWriter:
        return self.monitor.checkpoint

    def send(self, count: int = 1) -> None:
        events = []
        for _ in range(count):
            self.sent += 1
            events.append(Event("task-sent", time.time(), "c@h", uuid=f"u{self.sent}", name="add", queue="q"))
        self.monitor.subscription.apply_events(events)

    def shown(self) -> int:
        aggregates = self.monitor.snapshot().aggregates
        return sum(sum(aggregate.transitions) for aggregate in aggregates.values())

    def restart(self) -> int:
        """Replace the process; return what the new one shows."""
        self.monitor._file.close()
        self.monitor = self._new()
        return self.shown()


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(state_file, "os", disk)
    return disk


@pytest.fixture
def counting(tmp_path, disk):
    return CountingMonitor(tmp_path / "state", disk)


def fail_to_save(counting: CountingMonitor) -> None:
    with pytest.raises(StateFileError):
        counting.checkpoint.save()


def test_a_page_shows_what_is_written(counting):
    counting.send(5)
    assert counting.shown() == 0
    counting.checkpoint.save()
    counting.send(2)
    assert counting.shown() == counting.restart() == 5


def test_a_disk_that_is_full_for_a_while_does_not_change_the_page(counting, disk):
    counting.send(5)
    disk.before_sync = fail_full
    fail_to_save(counting)
    assert counting.shown() == 0
    disk.before_sync = lambda: None
    counting.checkpoint.save()
    assert counting.shown() == counting.restart() == 5


def test_a_disk_that_stays_full_leaves_no_outdated_file(counting, disk, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "MAX_UNSAVED_SECONDS", 0.0)
    counting.send(5)
    disk.before_sync = fail_full
    fail_to_save(counting)
    assert counting.shown() == 5
    assert not (tmp_path / "state").exists() or not (tmp_path / "state").read_bytes()
    assert (tmp_path / "state.unread-1").exists()
    disk.before_sync = lambda: None
    counting.send()
    counting.checkpoint.save()
    assert counting.restart() == 6


def test_new_series_leave_0_although_another_file_has_the_path(counting, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "MAX_UNSAVED_SECONDS", 0.0)
    (tmp_path / "new").write_bytes(b"of another program")
    (tmp_path / "new").replace(tmp_path / "state")
    tracker = counting.monitor._tracker
    shown = []
    for _ in range(5):
        session = tracker.begin("prometheus", time.monotonic())
        shown.append(not session.needs_zero(1))
        tracker.end("prometheus", session, time.monotonic())
        fail_to_save(counting)
    assert shown[0] is False
    assert shown[-1] is True
    assert (tmp_path / "state").read_bytes() == b"of another program"


def test_a_file_that_cannot_be_moved_away_is_overwritten_when_the_disk_works_again(
    counting, disk, monkeypatch, caplog
):
    monkeypatch.setattr(checkpoint, "MAX_UNSAVED_SECONDS", 0.0)
    counting.send(5)
    disk.before_sync = fail_full
    with monkeypatch.context() as readonly:
        readonly.setattr(
            Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
        )
        for _ in range(3):
            fail_to_save(counting)
    assert caplog.text.count("it could not be moved aside: Read-only file system") == 1
    disk.before_sync = lambda: None
    counting.checkpoint.save()
    assert counting.restart() == 5


def test_counts_that_were_shown_during_a_slow_write_do_not_decrease_after_it(counting, disk, monkeypatch):
    finished = threading.Event()
    disk.before_sync = finished.wait
    counting.send(5)
    save = threading.Thread(target=counting.checkpoint.save)
    save.start()
    eventually(counting.checkpoint._saving.locked)
    monkeypatch.setattr(checkpoint, "MAX_UNSAVED_SECONDS", 0.0)
    counting.send(100)
    assert counting.shown() == 105
    monkeypatch.setattr(checkpoint, "MAX_UNSAVED_SECONDS", 600.0)
    finished.set()
    save.join()
    assert counting.shown() == counting.restart() == 105


def test_a_save_during_a_slow_write_times_out(counting, disk):
    finished = threading.Event()
    disk.before_sync = finished.wait
    save = threading.Thread(target=counting.checkpoint.save)
    save.start()
    eventually(counting.checkpoint._saving.locked)
    with pytest.raises(StateFileError, match="takes long"):
        counting.checkpoint.save(wait=0.01)
    finished.set()
    save.join()


def test_after_too_many_changes_the_whole_state_is_written(counting, monkeypatch):
    monkeypatch.setattr(tasks, "MAX_CHANGED", 3)
    counting.send(10)
    counting.monitor.state.cluster.expire(counting.monitor.state.now())
    assert counting.monitor.state.cluster.tasks.changed is None
    counting.checkpoint.save()
    assert counting.restart() == 10
    assert len(counting.monitor.state.cluster.tasks) == 10


def test_after_a_record_that_cannot_be_written_the_file_is_rewritten(counting, monkeypatch):
    counting.send(5)
    with monkeypatch.context() as broken:
        broken.setattr(
            checkpoint, "_encode", lambda _: (_ for _ in ()).throw(UnicodeEncodeError("a", "", 0, 1, ""))
        )
        with pytest.raises(UnicodeEncodeError):
            counting.checkpoint.save()
    counting.send(2)
    counting.checkpoint.save()
    assert counting.shown() == counting.restart() == 7


class CountedReads:
    """A durable queue whose mark has the number of reads."""

    is_active, duplicates, mark = None, 0, (1, 0)

    def standby_queue(self) -> str | None:
        return None

    def unconfirmed(self, _mark: tuple[int, int]) -> list[int]:
        return []

    def release(self, mark: tuple[int, int]) -> None:
        pass


def test_a_record_has_all_events_of_the_messages_up_to_its_mark(tmp_path):
    """RabbitMQ delivers the messages after the mark again."""
    config = monitor_config(UNREACHABLE_URL, state_file=str(tmp_path / "state"))
    consumer = CountedReads()
    monitor = Monitor(config, SeriesTracker(time.monotonic(), time.time(), is_saved=True), consumer)
    reads, events_of_each, wrong = 40, 3 * CHUNK_EVENTS, []
    message = Message(json.dumps([HEARTBEAT] * events_of_each).encode(), "application/json", "utf-8")
    is_over = threading.Event()

    def save() -> None:
        while not is_over.is_set():
            monitor.checkpoint.save()
            pending = monitor.checkpoint._shown
            counted = pending.snapshot.events["worker-heartbeat"]
            if pending.mark is not None and counted != pending.mark[1] * events_of_each:
                wrong.append((pending.mark, counted))

    thread = threading.Thread(target=save)
    thread.start()
    for number in range(1, reads + 1):
        consumer.mark = (1, number)
        monitor.subscription.apply([message])
    is_over.set()
    thread.join()
    monitor.discard()
    assert wrong == []


# -- lines of a relay ----------------------------------------------------------------------------------------


class Shard:
    """A shard behind a relay, with a state file."""

    def __init__(self, path: Path) -> None:
        config = monitor_config("amqp://127.0.0.1:1", event_queue="lines", state_file=str(path))
        self._path = path
        self.acks = Acknowledgements(PREFETCH_OF_RELAYED, relayed=True)
        self._consumer = AmqpConsumer(ConfigSource(config.broker), acks=self.acks)
        tracker = SeriesTracker(time.monotonic(), time.time(), is_saved=True)
        self.monitor = Monitor(config, tracker, self._consumer)
        self.acks.start_connection()
        self.save()

    def receive(self, *lines: bytes) -> list[bool]:
        """Use new lines, each in a message; return which were new."""
        tag = self.acks.mark[1]
        is_new = [self.acks.deliver(tag + n, line, redelivered=False) for n, line in enumerate(lines, 1)]
        self.acks.end_read()
        self._consumer.mark = self.acks.mark
        self.monitor.subscription.apply([])
        return is_new

    def save(self) -> int:
        """Return the number of bytes that are appended."""
        before = self._path.stat().st_size
        self.monitor.checkpoint.save()
        return self._path.stat().st_size - before

    def kill(self) -> None:
        """Close the file without a last save."""
        self.monitor.discard()


def lines(start: int, count: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def test_a_shard_writes_the_digests_of_new_lines_only(tmp_path):
    shard = Shard(tmp_path / "state")
    idle = shard.save()
    shard.receive(*lines(0, RELAYED_LINES))
    assert shard.save() < idle + 9 * RELAYED_LINES
    assert shard.save() < idle + 50
    shard.receive(*lines(RELAYED_LINES, 100))
    assert shard.save() < idle + 9 * 100 + 50
    shard.kill()


def test_a_killed_shard_drops_the_lines_that_are_in_its_state_file(tmp_path):
    killed = Shard(tmp_path / "state")
    for number in range(30):
        killed.receive(*lines(1_000 * number, 1_000))
        killed.save()
    killed.acks.start_connection()
    killed.receive(b"saved")
    killed.save()
    killed.receive(b"not saved")
    killed.kill()
    shard = Shard(tmp_path / "state")
    last = lines(30_000 - RELAYED_LINES + 1, RELAYED_LINES - 1)
    assert not any(shard.receive(*last, b"saved"))
    assert shard.receive(b"not saved", b"0") == [True, True]
    shard.kill()
