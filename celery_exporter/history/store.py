"""The history file: tasks in SQLite, by id and the newest first.

One thread writes (`open`, `check`, `write`, `prune`, `close`). Others read (`find`, `search`) at the same
time, one after the other, each for a bounded time. A task has one row. What is written later replaces it, but
for what the later one does not know.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from celery_exporter.core.task_info import TaskInfo
from celery_exporter.core.task_merge import merged
from celery_exporter.core.task_search import Cursor, Page, TaskFilter
from celery_exporter.history import codec, file, query
from celery_exporter.history.codec import Row, units
from celery_exporter.history.file import FileDamagedError, FileMovedError, HistoryFileError, QueryTimeoutError
from celery_exporter.history.schema import COLUMNS

log = logging.getLogger(__name__)

#: Seconds that a search may take, and those that it waits for another one.
READ_SECONDS, _WAIT_SECONDS = 5.0, 5.0
#: Steps of SQLite's virtual machine between two looks at the clock, which take the global lock: 20 ms.
_STEPS = 1_000_000
#: Rows that one call of `prune` removes at most: 0.1 s.
MAX_PRUNED = 2_000
#: Marks within the retention: a task stays for up to so much of it longer.
MARKS = 50
#: Texts whose ids are in memory.
_MAX_TEXTS = 10_000
#: A text counts as used for so much longer than it is, so that it is seldom written.
_USED_AHEAD = units(600.0)
#: Seconds between two removals of texts.
_TEXTS_INTERVAL_SECONDS = 600.0

_ROW = f"({','.join('?' * len(COLUMNS))})"
_UPDATES = ",".join(f"{column}=excluded.{column}" for column in COLUMNS if column != "id")
#: Rows of one statement → the statement; one statement takes Python's global lock once.
_UPSERTS = {
    size: f"INSERT INTO task ({','.join(COLUMNS)}) VALUES {','.join([_ROW] * size)} "
    f"ON CONFLICT (id) DO UPDATE SET {_UPDATES}"
    for size in query.SIZES
}

_T = TypeVar("_T")


class HistoryStore:
    """The history file at a path. All methods raise HistoryFileError."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))  # so that a symbolic link stays one
        #: Tasks in the file, as of the last write.
        self.count = 0
        self._why = "it is not open yet"
        #: Damage that was found: that file is not opened again.
        self._damage: FileDamagedError | None = None
        self._damaged: tuple[int, int] | None = None  # its identity
        self._descriptor: int | None = None  # of the locked file
        self._writer: sqlite3.Connection | None = None
        self._texts = _Texts()
        self._marked = 0  # the highest id of a row before the newest mark
        self._next_mark = 0  # epoch, in units
        self._next_text_prune = 0.0
        self._read_lock = threading.Lock()  # guards the reader
        self._reader: sqlite3.Connection | None = None

    # -- the thread that writes --------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Return whether the file is open."""
        return self._writer is not None

    def open(self) -> None:
        """Lock and open the file; create it if there is none. A file that is refused stays unchanged."""
        try:
            self._descriptor = file.lock(self.path)
            if self._damage is not None and file.identity(self._descriptor) == self._damaged:
                raise self._damage
            self._damage = None
            writer = self._writer = file.connect_writer(self.path)
            with self._translated():
                self.count = writer.execute("SELECT count(*) FROM task").fetchone()[0]
                self._marked, self._next_mark = writer.execute(_NEWEST_MARK).fetchone()
        except HistoryFileError as error:
            self.close(str(error))
            raise

    def close(self, why: str = "it is closed") -> None:
        """Close the file, which releases its lock; it may be opened again. Searches then say `why`."""
        self._why = why
        reader = self._reader
        if reader is not None:
            reader.interrupt()
        with self._read_lock:
            for connection in (self._reader, self._writer):
                if connection is not None:
                    connection.close()
            self._reader = self._writer = None
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None
        self._texts.clear()

    @property
    def size_bytes(self) -> int:
        """Return the bytes on disk."""
        return file.bytes_on_disk(self.path)

    def check(self) -> None:
        """Raise FileDamagedError if a search found damage, or FileMovedError if the file was moved.

        All that was written is in a file that was moved.
        """
        if self._damage is not None:
            raise self._damage
        if self._descriptor is not None and not file.is_open_file_at(self.path, self._descriptor):
            with suppress(sqlite3.Error):  # SQLite does not do so when such a file is closed
                self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raise FileMovedError(f"{self.path} was removed or moved, and a new one is begun")

    def write(self, infos: Sequence[TaskInfo]) -> None:
        """Add tasks, or replace their rows, in one transaction."""
        by_uuid: dict[str, list[TaskInfo]] = {}  # usually one
        for info in infos:
            by_uuid.setdefault(info.uuid, []).append(info)
        added = 0
        with self._transaction() as connection:
            for uuids in query.chunks([*by_uuid]):
                added += self._write_chunk(connection, {uuid: by_uuid[uuid] for uuid in uuids})
        self.count += added

    def _write_chunk(self, connection: sqlite3.Connection, infos: Mapping[str, list[TaskInfo]]) -> int:
        """Write some tasks, each from its descriptions, the oldest first; return how many have no row yet."""
        rows = query.rows_of(connection, [*infos])
        older_infos = query.infos(connection, rows)
        self._renew(connection, rows)
        former = {info.uuid: (row.id, [info]) for row, info in zip(rows, older_infos, strict=True)}
        self._texts.connection = connection
        values: list[tuple[Any, ...]] = []
        for uuid, descriptions in infos.items():
            number, older = former.get(uuid, (None, []))
            info = reduce(lambda before, after: merged(after, before), [*older, *descriptions])
            values.append((number, *codec.encode(info, self._texts.id_of)))
        start = 0
        while start < len(values):
            size = max(size for size in query.SIZES if size <= len(values) - start)
            part = values[start : start + size]
            connection.execute(_UPSERTS[size], [value for row in part for value in row])
            start += size
        return len(infos) - len(rows)

    def _renew(self, connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
        """Give the rows from before the newest mark a new id: they change now."""
        old = [row for row in rows if row.id <= self._marked]
        if not old:  # the usual case
            return
        newest = connection.execute("SELECT max(id) FROM task").fetchone()[0]
        for number, row in enumerate(old, newest + 1):
            connection.execute("UPDATE task SET id = ? WHERE id = ?", (number, row.id))
            row.id = number

    def prune(self, now: float, retention: float, max_tasks: int) -> int:
        """Remove tasks that last changed `retention` seconds ago, and the oldest beyond `max_tasks`.

        Return how many were removed, `MAX_PRUNED` at most; the others follow with the next calls. `now` is
        epoch seconds. If that clock goes back, nothing expires until it has caught up.
        """
        with self._translated():
            expired = self._connection().execute(_EXPIRED, (units(now - retention),)).fetchone()[0] or 0
        excess = min(self.count - max_tasks, MAX_PRUNED)
        is_mark_due = units(now) >= self._next_mark
        if excess <= 0 and not expired and not is_mark_due:
            return 0
        with self._transaction() as connection:
            if is_mark_due:
                connection.execute(_ADD_MARK, (units(now), self._marked))
            removed = _delete(connection, "1", excess) if excess > 0 else 0
            removed += _delete(connection, f"id <= {expired}", MAX_PRUNED - removed)
            connection.execute(_REMOVE_MARKS)
            if removed and time.monotonic() >= self._next_text_prune:
                self._next_text_prune = time.monotonic() + _TEXTS_INTERVAL_SECONDS
                self._prune_texts(connection)
            marked = connection.execute(_NEWEST_MARK).fetchone()[0]
        self._marked = marked
        if is_mark_due:
            self._next_mark = units(now + retention / MARKS)
        self.count -= removed
        return removed

    def _prune_texts(self, connection: sqlite3.Connection) -> None:
        """Remove texts that no task refers to."""
        oldest = connection.execute("SELECT min(since) FROM task").fetchone()[0]
        if oldest is not None:
            connection.execute("DELETE FROM text WHERE used < ?", (oldest,))
            self._texts.clear()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._translated():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                self._texts.clear()  # some may not be in the file
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _connection(self) -> sqlite3.Connection:
        if self._writer is None:
            raise HistoryFileError(f"the history file cannot be read: {self._why}")
        return self._writer

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of SQLite into HistoryFileError, and note damage."""
        try:
            with file.translated(self.path):
                yield
        except FileDamagedError as error:
            if self._descriptor is not None:
                self._damage, self._damaged = error, file.identity(self._descriptor)
            raise

    # -- other threads -----------------------------------------------------------------------------------

    def tasks(self, uuids: Sequence[str]) -> list[TaskInfo]:
        """Return the tasks with these ids, as far as the file has them."""
        return self._read(
            lambda connection: [
                info
                for chunk in query.chunks(uuids)
                for info in query.infos(connection, query.rows_of(connection, chunk))
            ]
        )

    def find(self, prefix: str, limit: int) -> list[TaskInfo]:
        """Return up to so many tasks whose id begins with a text; with a whole id, that one."""
        return self._read(lambda connection: query.find(connection, prefix, limit))

    def search(self, filter_: TaskFilter, limit: int, before: Cursor | None = None) -> Page:
        """Return the newest tasks after a place that are like the filter says."""
        return self._read(lambda connection: query.search(connection, filter_, limit, before))

    def _read(self, function: Callable[[sqlite3.Connection], _T]) -> _T:
        if not self._read_lock.acquire(timeout=_WAIT_SECONDS):
            raise QueryTimeoutError("another search takes long: try again")
        try:
            self._connection()
            reader = self._reader = self._reader or file.connect_reader(self.path)
            end = time.monotonic() + READ_SECONDS
            reader.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
            with self._translated():
                reader.execute("BEGIN")  # all queries of a search see one state of the file
                try:
                    return function(reader)
                finally:
                    reader.set_progress_handler(None, 0)
                    if reader.in_transaction:
                        reader.execute("COMMIT")
        finally:
            self._read_lock.release()


_NEWEST_MARK = "SELECT coalesce(max(id), 0), coalesce(max(at), 0) FROM mark"
_EXPIRED = "SELECT max(id) FROM mark WHERE at < ?"
_ADD_MARK = "INSERT INTO mark (id, at) SELECT id, ? FROM (SELECT max(id) AS id FROM task) WHERE id > ?"
#: Those below the first row; all if there is none, since ids begin with 1 again then.
_REMOVE_MARKS = "DELETE FROM mark WHERE id < coalesce((SELECT min(id) FROM task), id + 1)"


class _Texts:
    """The ids of texts, and until when each is used; those used lately are in memory."""

    def __init__(self) -> None:
        self.connection: sqlite3.Connection | None = None
        self._known: dict[str, tuple[int, int]] = {}

    def clear(self) -> None:
        self._known.clear()

    def id_of(self, text: str | None, since: int) -> int | None:
        """Return the id of a text that a task with this `since` uses; None for None."""
        if text is None:
            return None
        known = self._known.get(text)
        if known is None or known[1] < since:
            known = self._use(text, since)
        return known[0]

    def _use(self, text: str, since: int) -> tuple[int, int]:
        assert self.connection is not None  # noqa: S101
        used = since + _USED_AHEAD
        self.connection.execute(
            "INSERT INTO text (text, used) VALUES (?, ?) "
            "ON CONFLICT (text) DO UPDATE SET used = max(used, excluded.used)",
            (text, used),
        )
        if len(self._known) >= _MAX_TEXTS:
            self._known.clear()
        row = self.connection.execute("SELECT id, used FROM text WHERE text = ?", (text,)).fetchone()
        self._known[text] = (row[0], row[1])
        return self._known[text]


def _delete(connection: sqlite3.Connection, where: str, limit: int) -> int:
    """Remove the oldest tasks that fulfil a condition, so many at most; return their number."""
    return connection.execute(
        f"DELETE FROM task WHERE id IN (SELECT id FROM task WHERE {where} ORDER BY id LIMIT ?)", (limit,)
    ).rowcount
