"""Writes tasks to the history file, once a second, from a thread of its own.

The exporter goes on without a file that cannot be used: tasks wait for it with the caller, within its bound,
and the file is tried again. A file that is damaged or not ours stays as it is; as soon as it is moved away, a
new one is begun.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from celery_exporter.core.snapshot import HistoryView
from celery_exporter.core.task_info import TaskInfo
from celery_exporter.history.file import FileDamagedError, FileMovedError, HistoryFileError
from celery_exporter.history.store import HistoryStore
from celery_exporter.runtime.threads import new_thread

log = logging.getLogger(__name__)

#: Returns up to so many tasks that changed, and how many were dropped since the last call, since the caller
#: keeps no more.
Take = Callable[[int], "tuple[list[TaskInfo], int]"]

INTERVAL_SECONDS = 1.0
#: Tasks of one transaction: the caller may hold a lock while it describes them.
BATCH = 1_000
#: Seconds of each interval in which batches are written, and then old tasks removed.
WRITE_SECONDS, PRUNE_SECONDS = 0.6, 0.2
#: Seconds until a file that could not be opened is tried again: an exporter that stops may still have it.
RETRY_SECONDS = 10.0
#: Seconds between two log lines about faults of ours.
LOG_INTERVAL_SECONDS = 60.0

#: Why tasks were not written, by the names that sinks have: the caller's bound, a fault of ours, the end.
BUFFER_FULL, FAULT, SHUTDOWN = DROPPED = ("buffer_full", "fault", "shutdown")


class HistoryWriter:
    """Writes what `take` returns. Call `start`, then `stop` when nothing changes any more, then `join`.

    `retention` is in seconds. Other threads may search the `store` at any time.
    """

    def __init__(self, path: Path, take: Take, *, retention: float, max_tasks: int) -> None:
        self.store = HistoryStore(path)
        self._take = take
        self._retention = retention
        self._max_tasks = max_tasks
        self._stopping = threading.Event()
        self._deadline = math.inf  # monotonic time of the end of the last write
        self._next_open = 0.0  # monotonic time before which the file is not opened
        self._next_log = 0.0  # monotonic time before which no further fault of ours is logged
        self._pending: list[TaskInfo] = []  # taken and not written yet
        self._lock = threading.Lock()  # guards the accounts, for `view`
        self._written = self._errors = 0
        self._dropped = dict.fromkeys(DROPPED, 0)
        self._last_success: float | None = None  # epoch seconds
        self._error = ""
        self._failing_since: float | None = None  # epoch seconds
        self._thread = new_thread("history", self._run)

    # -- from other threads ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; the file need not be usable."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to write what is left, and to end."""
        self._stopping.set()

    def join(self, deadline: float) -> None:
        """Wait for the last write until a monotonic time."""
        self._deadline = deadline
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            log.error("history file %s: the last tasks were not written in time", self.store.path)

    def view(self) -> HistoryView:
        """Return a copy of the accounts."""
        store, is_open = self.store, self.store.is_open
        with self._lock:
            return HistoryView(
                path=str(store.path),
                written=self._written,
                dropped=dict(self._dropped),
                errors=self._errors,
                last_success=self._last_success,
                tasks=store.count if is_open else None,
                size_bytes=store.size_bytes if is_open else None,
                error=self._error,
                failing_since=self._failing_since,
            )

    # -- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                begin = time.monotonic()
                self._round(begin + WRITE_SECONDS)
                self._stopping.wait(max(0.0, begin + INTERVAL_SECONDS - time.monotonic()))
            self._next_open = 0.0
            self._round(math.inf)
            self._drop(SHUTDOWN, len(self._pending))
        finally:
            self.store.close()

    def _round(self, end: float) -> None:
        """Write what changed, until a monotonic time, and remove what is old."""
        try:
            if not self.store.is_open and not self._open():
                return
            self.store.check()
            is_more = True
            while is_more and time.monotonic() < min(end, self._deadline):
                is_more = self._write()
            end = time.monotonic() + PRUNE_SECONDS
            while self._prune() and time.monotonic() < min(end, self._deadline):
                pass
        except (FileMovedError, FileDamagedError) as error:
            self.store.close(str(error))
            self._fail(error)
        except HistoryFileError as error:
            self._fail(error)
        except Exception:
            if time.monotonic() >= self._next_log:
                self._next_log = time.monotonic() + LOG_INTERVAL_SECONDS
                log.exception("history file: %d tasks are lost, please report this", len(self._pending))
            self._drop(FAULT, len(self._pending))
            self._pending = []
            self._fail("a fault of the exporter: the log has it")
        else:
            self._succeed()

    def _open(self) -> bool:
        """Open the file if it is time to; return whether it is open."""
        if time.monotonic() < self._next_open:
            self._drop(BUFFER_FULL, self._take(0)[1])
            return False
        self._next_open = time.monotonic() + RETRY_SECONDS
        self.store.open()
        self._next_open = 0.0
        return True

    def _write(self) -> bool:
        """Write one batch; return whether there may be more."""
        if not self._pending:
            self._pending, dropped = self._take(BATCH)
            self._drop(BUFFER_FULL, dropped)
        count = len(self._pending)
        if count:
            self.store.write(self._pending)
            self._pending = []
        with self._lock:
            self._written += count
        return count >= BATCH

    def _prune(self) -> bool:
        """Remove some old tasks; return whether there may be more."""
        return self.store.prune(time.time(), self._retention, self._max_tasks) > 0

    def _drop(self, reason: str, count: int) -> None:
        with self._lock:
            self._dropped[reason] += count

    def _succeed(self) -> None:
        with self._lock:
            before, self._error = self._error, ""
            self._last_success, self._failing_since = time.time(), None
        if before:
            log.info("history file %s: tasks are written again", self.store.path)

    def _fail(self, error: HistoryFileError | str) -> None:
        """Note an error; log it unless it is the same as before."""
        text = str(error)
        with self._lock:
            before, self._error = self._error, text
            self._errors += 1
            if self._failing_since is None:
                self._failing_since = time.time()
        if text != before:
            log.error("history file: %s. The exporter goes on without it", text)
