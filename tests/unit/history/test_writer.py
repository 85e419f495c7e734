"""The thread that writes the history file: it writes all that changed, and goes on whatever the file does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from harness.waiting import eventually

from celery_exporter.core.task_info import TaskInfo
from celery_exporter.core.task_search import TaskFilter
from celery_exporter.history import writer as writer_module
from celery_exporter.history.file import HistoryFileError
from celery_exporter.history.writer import BUFFER_FULL, FAULT, SHUTDOWN, HistoryWriter
from unit.history.task_infos import NOW, plain


class Changes:
    """Tasks that changed, as the monitor keeps them: those beyond the limit are dropped."""

    def __init__(self, limit: int = 10**6) -> None:
        self.changed: list[TaskInfo] = []
        self.dropped = 0
        self._limit = limit

    def add(self, *infos: TaskInfo) -> None:
        free = self._limit - len(self.changed)
        self.changed += infos[:free]
        self.dropped += len(infos[free:])

    def take(self, limit: int) -> tuple[list[TaskInfo], int]:
        taken, self.changed = self.changed[:limit], self.changed[limit:]
        dropped, self.dropped = self.dropped, 0
        return taken, dropped


@pytest.fixture
def start(monkeypatch):
    """Return a function that starts a writer; it is stopped after the test."""
    monkeypatch.setattr(writer_module, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(writer_module, "RETRY_SECONDS", 0.05)
    started = []

    def start_one(
        path: Path, changes: Changes, retention: float = 1e9, max_tasks: int = 10**6
    ) -> HistoryWriter:
        started.append(HistoryWriter(path, changes.take, retention=retention, max_tasks=max_tasks))
        started[-1].start()
        return started[-1]

    yield start_one
    for one in started:
        stop(one)


def stop(writer: HistoryWriter) -> None:
    writer.stop()
    writer.join(time.monotonic() + 60)
    assert not writer._thread.is_alive()


def tasks(count: int, first: int = 0) -> list[TaskInfo]:
    return [plain(f"task-{number}", NOW + number) for number in range(first, first + count)]


def test_what_changed_is_written_and_found(tmp_path, start):
    changes = Changes()
    writer = start(tmp_path / "history", changes)
    changes.add(*tasks(2_500))
    eventually(lambda: writer.view().written == 2_500)
    assert writer.store.find("task-7", 1) == [plain("task-7", NOW + 7)]
    view = writer.view()
    assert (view.tasks, view.error, view.failing_since, view.errors) == (2_500, "", None, 0)
    assert (
        view.size_bytes
        >= sum(path.stat().st_size for path in tmp_path.iterdir() if path.suffix != ".db-shm") / 2
    )
    assert abs(view.last_success - time.time()) < 60


def test_the_last_write_has_all_that_is_left(tmp_path, start):
    changes = Changes()
    first = start(tmp_path / "history", changes)
    eventually(lambda: first.view().tasks == 0)
    changes.add(*tasks(3_000))
    stop(first)
    assert first.view().written == 3_000
    assert [file.name for file in tmp_path.iterdir()] == ["history"]
    second = start(tmp_path / "history", Changes())
    eventually(lambda: second.view().tasks == 3_000)


def test_what_the_caller_drops_is_counted(tmp_path, start):
    changes = Changes(limit=10)
    changes.add(*tasks(15))
    writer = start(tmp_path / "history", changes)
    eventually(lambda: writer.view().written == 10)
    assert writer.view().dropped == {BUFFER_FULL: 5, FAULT: 0, SHUTDOWN: 0}


def test_old_tasks_are_removed(tmp_path, start):
    changes = Changes()
    changes.add(*tasks(10))
    writer = start(tmp_path / "history", changes, max_tasks=4)
    eventually(lambda: writer.view().written == 10 and writer.view().tasks == 4)
    assert len(writer.store.search(TaskFilter(), 100).tasks) == 4


def test_a_task_that_cannot_be_written_costs_its_batch_and_not_the_thread(tmp_path, start, caplog):
    changes = Changes()
    changes.add(plain("task-1", state="NONSENSE"))
    writer = start(tmp_path / "history", changes)
    eventually(lambda: writer.view().dropped[FAULT] == 1)
    changes.add(plain("task-2"))
    eventually(lambda: writer.view().written == 1 and not writer.view().error)
    assert "please report this" in caplog.text


def test_a_directory_that_does_not_exist_yet_is_waited_for(tmp_path, start, caplog):
    changes, path = Changes(), tmp_path / "later" / "history"
    writer = start(path, changes)
    eventually(lambda: writer.view().errors > 1)
    view = writer.view()
    assert f"cannot open {path}: directory {path.parent} does not exist" in view.error
    assert view.failing_since is not None
    assert (view.tasks, view.size_bytes) == (None, None)
    with pytest.raises(HistoryFileError, match="does not exist"):
        writer.store.find("task-1", 1)
    assert caplog.text.count("does not exist") == 1, "an error is logged once"
    changes.add(*tasks(1))
    path.parent.mkdir()
    eventually(lambda: writer.view().written == 1)
    assert writer.view().failing_since is None


def test_a_damaged_file_stays_and_a_new_one_is_begun_once_it_is_moved_away(tmp_path, start, caplog):
    changes, path = Changes(), tmp_path / "history"
    path.write_bytes(b"no database" * 1_000)
    writer = start(path, changes)
    eventually(lambda: writer.view().errors > 1)
    assert "is not a history file of celery-exporter, and stays unchanged" in writer.view().error
    assert caplog.text.count("stays unchanged") == 1
    changes.add(*tasks(3))
    path.rename(tmp_path / "other")
    eventually(lambda: writer.view().written == 3)
    assert (tmp_path / "other").read_bytes() == b"no database" * 1_000


def test_damage_that_shows_while_the_file_is_open_closes_it(tmp_path, start):
    changes, path = Changes(), tmp_path / "history"
    changes.add(*tasks(2_000))
    writer = start(path, changes)
    eventually(lambda: writer.view().written == 2_000)
    writer.store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(8_192)
        file.write(b"\x55" * (path.stat().st_size - 8_192))
    with pytest.raises(HistoryFileError, match="is damaged"):
        writer.store.search(TaskFilter(), 2_000)
    eventually(lambda: writer.view().errors > 2)
    assert "is damaged" in writer.view().error, "the file is not opened again"
    content = path.read_bytes()
    with pytest.raises(HistoryFileError, match="cannot be read"):
        writer.store.search(TaskFilter(), 10)
    changes.add(*tasks(3))
    path.rename(tmp_path / "damaged")
    eventually(lambda: writer.view().tasks == 3)
    assert (tmp_path / "damaged").read_bytes() == content


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_file_that_is_removed_or_moved_has_a_successor(tmp_path, start, caplog, is_removed):
    changes, path = Changes(), tmp_path / "history"
    changes.add(*tasks(3))
    writer = start(path, changes)
    eventually(lambda: writer.view().written == 3)
    if is_removed:
        path.unlink()
    else:
        path.rename(tmp_path / "elsewhere")
    eventually(lambda: writer.view().tasks == 0)
    changes.add(*tasks(1, 10))
    eventually(lambda: writer.view().tasks == 1)
    assert writer.store.find("task-10", 1) == tasks(1, 10)
    assert "was removed or moved, and a new one is begun" in caplog.text
    assert writer.view().errors == 1


def test_tasks_wait_while_the_disk_is_full(tmp_path, start):
    changes, path = Changes(), tmp_path / "history"
    changes.add(*tasks(3))
    writer = start(path, changes)
    eventually(lambda: writer.view().written == 3)
    writer.store._writer.execute("PRAGMA max_page_count = 1")
    changes.add(*tasks(2_500, 10))
    eventually(lambda: writer.view().errors > 1)
    view = writer.view()
    assert "database or disk is full. Free space on its disk" in view.error
    assert (view.written, view.tasks) == (3, 3)
    assert writer.store.find("task-1", 1) == tasks(1, 1), "it can be searched meanwhile"
    writer.store._writer.execute("PRAGMA max_page_count = 1000000")
    eventually(lambda: writer.view().tasks == 2_503)
    assert writer.view().dropped == {BUFFER_FULL: 0, FAULT: 0, SHUTDOWN: 0}


def test_a_file_is_taken_over_when_the_exporter_before_ends(tmp_path, start):
    changes, path = Changes(), tmp_path / "history"
    first, second = start(path, Changes()), start(path, changes)
    eventually(lambda: {first.view().tasks, second.view().tasks} == {0, None})
    holder, waiter = (first, second) if first.store.is_open else (second, first)
    assert "is in use by another exporter" in eventually(lambda: waiter.view().error)
    stop(holder)
    eventually(lambda: waiter.view().tasks == 0 and not waiter.view().error)


def test_what_could_not_be_written_before_the_end_is_counted(tmp_path, start):
    changes, path = Changes(), tmp_path / "history"
    writer = start(path, changes)
    eventually(lambda: writer.view().tasks == 0)
    writer.store._writer.execute("PRAGMA query_only = ON")
    changes.add(*tasks(3))
    eventually(lambda: writer.view().error)
    stop(writer)
    assert writer.view().dropped[SHUTDOWN] == 3


def test_tasks_are_removed_after_the_retention(tmp_path, start, monkeypatch):
    changes, now = Changes(), NOW
    monkeypatch.setattr(writer_module.time, "time", lambda: now)
    changes.add(*tasks(100))
    writer = start(tmp_path / "history", changes, retention=1_000)
    eventually(lambda: writer.view().written == 100)
    now += 100  # so that there is a mark
    changes.add(*tasks(100, 100))
    eventually(lambda: writer.view().written == 200)
    now += 1_000
    eventually(lambda: writer.view().tasks == 100)
    now += 1_100
    eventually(lambda: writer.view().tasks == 0)
