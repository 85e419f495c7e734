"""Files that are not ours, damaged, in use or not writable stay as they are; the error says what to do."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from celery_exporter.core.task_search import TaskFilter
from celery_exporter.history import store as store_module
from celery_exporter.history.file import FileDamagedError, FileMovedError, HistoryFileError, QueryTimeoutError
from celery_exporter.history.schema import SCHEMA_VERSION
from celery_exporter.history.store import HistoryStore
from unit.history.task_infos import NOW, plain

ALL = TaskFilter()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history"


def filled(path: Path, tasks: int = 3_000) -> bytes:
    """Write a history file; return its bytes."""
    store = opened(path)
    store.write([plain(f"task-{number}", NOW + number) for number in range(tasks)])
    store.close()
    return path.read_bytes()


def opened(path: Path) -> HistoryStore:
    store = HistoryStore(path)
    store.open()
    return store


def open_and_read(store: HistoryStore) -> None:
    store.open()
    store.search(ALL, 10_000)


def refused(path: Path, error: type[HistoryFileError] = HistoryFileError) -> str:
    """Expect that the file at a path is refused and stays as it is; return the error."""
    before = path.read_bytes()
    store = HistoryStore(path)
    with pytest.raises(error) as caught:
        open_and_read(store)
    store.close()
    assert path.read_bytes() == before
    text = str(caught.value)
    assert "\n" not in text
    with pytest.raises(HistoryFileError):
        store.find("task-1", 1)
    return text


# -- files that are refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 50, 100, 10_000])
def test_random_bytes_are_no_history_file(path, size):
    path.write_bytes(random.Random(size).randbytes(size))
    assert "is not a history file of celery-exporter, and stays unchanged. Give another path" in refused(path)


def test_the_database_of_another_application_is_no_history_file(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE task (id INTEGER PRIMARY KEY)")
    connection.close()
    assert "is not a history file" in refused(path)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1])
def test_another_version_is_refused(path, version):
    filled(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    text = refused(path)
    assert f"has version {version}, this exporter uses version {SCHEMA_VERSION}. Move it away" in text


def test_a_truncated_file_is_damaged(path):
    content = filled(path)
    path.write_bytes(content[: len(content) // 2])
    assert "is damaged (database disk image is malformed), and stays as it is" in refused(
        path, FileDamagedError
    )


def test_a_new_file_is_begun_after_a_damaged_one_was_moved_away(path):
    content = filled(path)
    path.write_bytes(content[: len(content) // 2])
    refused(path)
    path.with_name("history-wal").write_bytes(content[:10_000])
    path.rename(path.with_name("damaged"))
    store = opened(path)
    store.write([plain()])
    assert store.search(ALL, 10).tasks == [plain()]
    store.close()


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_within_a_file_are_damage_or_do_no_harm(path, seed):
    content, generator = bytearray(filled(path)), random.Random(seed)
    for _ in range(1 + 4 * seed):
        start = generator.randrange(100, len(content) - 4_096)
        content[start : start + 4_096] = generator.randbytes(4_096)
    path.write_bytes(content)
    store = HistoryStore(path)
    with suppress(FileDamagedError):
        open_and_read(store)
        store.find("task-17", 1)
        store.write([plain("task-17", NOW + 10_000)])
        store.prune(NOW, 0, 0)
    store.close()


def test_damage_in_the_details_of_a_task_is_reported(path):
    filled(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE task SET details = x'c1'")
    connection.close()
    assert "is damaged" in refused(path, FileDamagedError)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/history", "directory .*missing does not exist"),
        ("file/history", "Not a directory"),
        ("", "Is a directory"),
        ("fifo", "is not a regular file. Give another path"),
    ],
)
def test_a_path_that_cannot_be_a_file_is_refused(tmp_path, name, reason):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(HistoryFileError, match=reason):
        HistoryStore(tmp_path / name).open()


def test_a_read_only_file_system_is_reported():
    with pytest.raises(HistoryFileError, match=r"cannot open /proc/.* for writing|does not exist"):
        HistoryStore(Path("/proc/history")).open()


def test_a_file_that_must_not_be_written_is_reported(path):
    store = opened(path)
    store._writer.execute("PRAGMA query_only = ON")
    with pytest.raises(HistoryFileError, match="Let the exporter write the file and its directory"):
        store.write([plain()])
    store._writer.execute("PRAGMA query_only = OFF")
    store.write([plain()])
    assert store.find(plain().uuid, 1) == [plain()]
    store.close()


# -- several processes and readers -----------------------------------------------------------------------


def test_a_second_exporter_is_kept_out(path):
    first = opened(path)
    with pytest.raises(HistoryFileError, match=r"is in use by another exporter\. Give each exporter"):
        opened(path)
    first.write([plain()])
    first.close()
    second = opened(path)
    assert second.count == 1
    second.close()


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    store = opened(tmp_path / "link")
    store.write([plain()])
    store.close()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").stat().st_size > 0
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600


def test_a_reader_sees_what_was_committed_and_cannot_write(path):
    store = opened(path)
    store.write([plain("task-1")])
    assert len(store.search(ALL, 10).tasks) == 1
    store.write([plain("task-2")])
    assert len(store.search(ALL, 10).tasks) == 2
    with pytest.raises(sqlite3.OperationalError):
        store._reader.execute("DELETE FROM task")
    store.close()


def test_a_search_that_takes_too_long_is_ended(path, monkeypatch):
    monkeypatch.setattr(store_module, "READ_SECONDS", -1.0)
    monkeypatch.setattr(store_module, "_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(store_module, "_STEPS", 1_000)
    filled(path)
    store = opened(path)
    store._read_lock.acquire()
    with pytest.raises(QueryTimeoutError, match="another search takes long"):
        store.search(ALL, 10)
    store._read_lock.release()
    monkeypatch.setattr(store_module, "_WAIT_SECONDS", 60.0)
    with pytest.raises(QueryTimeoutError, match="took too long"):
        store.search(TaskFilter(min_runtime=1e6), 10)
    monkeypatch.setattr(store_module, "READ_SECONDS", 60.0)
    assert len(store.search(ALL, 10).tasks) == 10
    store.close()


# -- faults while it is open -----------------------------------------------------------------------------


def test_a_full_disk_keeps_what_was_written(path):
    store = opened(path)
    store.write([plain("task-0")])
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(HistoryFileError, match=r"database or disk is full\. Free space on its disk"):
        store.write([plain(f"task-{number}", client=f"c-{number}") for number in range(1, 1_000)])
    assert store.count == len(store.search(ALL, 10_000).tasks) == 1
    store._writer.execute("PRAGMA max_page_count = 1000000")
    store.write([plain(f"task-{number}", client=f"c-{number}") for number in range(1, 1_000)])
    assert store.find("task-7", 1)[0].client == "c-7"
    assert store.count == 1_000
    store.close()


@pytest.mark.parametrize("fault", ["removed", "moved", "replaced"])
def test_a_file_that_is_no_longer_at_its_path_is_noticed(path, fault):
    store = opened(path)
    store.write([plain("task-1")])
    store.check()
    if fault == "removed":
        path.unlink()
    else:
        path.rename(path.with_name("elsewhere"))
    if fault == "replaced":
        path.write_bytes(b"another file")
    with pytest.raises(FileMovedError):
        store.check()
    store.close()
    if fault == "moved":
        elsewhere = opened(path.with_name("elsewhere"))
        assert elsewhere.count == 1, "all is in the file that was moved"
        elsewhere.close()
    if fault == "replaced":
        assert "is not a history file" in refused(path)
        return
    store.open()
    assert store.count == 0
    store.write([plain("task-2")])
    assert [info.uuid for info in store.search(ALL, 10).tasks] == ["task-2"]
    store.close()


#: Records that the writer below keeps at least.
_KEPT = 20_000
_WRITE = f"""
import sys
from pathlib import Path
from celery_exporter.history.store import HistoryStore
from unit.history.task_infos import NOW, plain
store = HistoryStore(Path(sys.argv[1]))
store.open()
number = store.count
while True:
    numbers = range(number, number + 200)
    store.write([plain(f"task-{{i}}", NOW + i, client=f"client-{{i}}") for i in numbers])
    number += 200
    print(number, flush=True)
    store.prune(NOW + number, {_KEPT}, 100_000)
"""


def test_a_file_stays_intact_when_its_writer_is_killed(path):
    tests = Path(__file__).parents[2]
    written, generator = 0, random.Random(1)
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITE, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(tests)},
        )
        for _ in range(generator.randrange(6)):
            written = int(process.stdout.readline())
        time.sleep(generator.random() / 50)
        process.send_signal(signal.SIGKILL)
        written = max([written, *map(int, process.communicate()[0].split())])
        if not path.exists():
            continue
        store = opened(path)
        assert store.count >= min(written, _KEPT)
        assert store._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        newest = store.search(ALL, 100).tasks
        assert all(info.client == info.uuid.replace("task", "client") for info in newest)
        store.close()
    assert written > 0
