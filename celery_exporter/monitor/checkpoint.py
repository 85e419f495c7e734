"""What of an exporter outlasts it: records of a state file, and who writes them.

Invariant: a page shows nothing that is not in the file. So what is shown is a copy that was taken together
with a record, once that is written; and a durable queue is told to forget an event only when what it changed
is written. A record has all that changed since the one before, of sums and tasks alike: they have one moment.

While the file cannot be written, pages are as old as what was written last, for a while; then they show what
is known, and the file, which is behind that, is moved away: a later process begins at 0, which Prometheus
takes for what it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Protocol

import msgspec
from msgspec import Struct

from celery_exporter.core.cluster import Cluster
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import Timestamp
from celery_exporter.metrics.exposition.series_tracker import SeriesTrackerChanges, SeriesTrackerMemory
from celery_exporter.persistence.state import Changes, Memory, Recorder
from celery_exporter.persistence.state_file import StateFile, StateFileError

#: Seconds for which pages stay as they were when the file cannot be written.
PATIENCE = 30.0
#: Tasks that are encoded under one hold of the lock, where all of them are: some milliseconds.
AT_ONCE = 1_000


class Own(Struct):
    """What is not of the cluster. `broker` is which one, `naming` by what settings series are named."""

    broker: str
    naming: str
    malformed: dict[str, int]
    reconnects: int
    file_errors: dict[str, int]
    tracker: SeriesTrackerChanges
    unconfirmed: list[int]  # messages of a durable queue that may come again: see AmqpReader


class Checkpoint(Struct):
    """One record: what changed up to its moment."""

    cluster: Changes
    own: Own | None = None


class Saved:
    """All records of a file, one after the other."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.tracker = SeriesTrackerMemory()
        self.own: Own | None = None
        self._decode = msgspec.msgpack.Decoder(Checkpoint).decode

    def take(self, record: bytes) -> None:
        """Go on with the next record; raise msgspec.MsgspecError for what is none."""
        checkpoint = self._decode(record)
        self.memory.take(checkpoint.cluster)
        if checkpoint.own is not None:
            self.own = checkpoint.own
            self.tracker.take(checkpoint.own.tracker)


class Page(Struct):
    """What may be shown once the record that was taken with it is written; `mark` is of the event queue."""

    snapshot: Snapshot
    mark: tuple[int, int] | None
    unsaved: int = 0  # pages that were shown before it without being written


class Saveable(Protocol):
    """Whose state is saved. All but `lock` and `saved` is for whoever holds the lock."""

    lock: threading.Lock
    cluster: Cluster

    def moment(self) -> Timestamp:
        """Return what time it is."""

    def own(self, *, everything: bool) -> Own:
        """Return what is not of the cluster; `everything` where nothing was written yet."""

    def page(self) -> Page:
        """Return a copy of what is known."""

    def saved(self, page: Page) -> None:
        """Take note that all that a page shows is written."""


class Saver:
    """Writes what changed, again and again, and keeps what may be shown. Any thread may call it."""

    def __init__(self, file: StateFile, state: Saveable, *, holds_state: bool) -> None:
        self._file = file
        self._state = state
        self._recorder = Recorder(state.cluster)
        self._is_behind = True  # the file needs to be written anew
        self._holds_state = holds_state  # does the file
        self._saving = threading.Lock()
        self._unsaved = 0  # pages that were shown though they are not in the file
        with state.lock:
            self._page: Page | None = state.page()
        self._written = time.monotonic()

    def shown(self) -> Snapshot | None:
        """Return what may be shown; None if it is too old, for the file cannot be written."""
        page = self._page
        return page.snapshot if page and time.monotonic() - self._written < PATIENCE else None

    def shown_or_unsaved(self) -> Snapshot | None:
        """Return the same, under the state's lock; None is taken for that what is known now is shown.

        Then nothing older may be, later.
        """
        snapshot = self.shown()
        self._unsaved += snapshot is None
        return snapshot

    def save(self, wait: float = -1) -> None:
        """Write what changed; raise StateFileError, also if somebody else writes for `wait` seconds."""
        if not self._saving.acquire(timeout=wait):
            raise StateFileError("it is being written, which takes long")
        try:
            self._save()
            if self._page is None:  # newer was shown while it was written
                self._save()
        finally:
            self._saving.release()

    def _save(self) -> None:
        is_usual = self._file.is_sound and not (
            self._file.is_long or self._is_behind or self._recorder.is_lost
        )
        self._is_behind = True
        try:
            page = self._append() if is_usual else self._rewrite()
        except Exception:
            self._give_up()
            raise
        self._is_behind = False
        self._holds_state = True
        with self._state.lock:
            self._page = page if page.unsaved == self._unsaved else None
            self._written = time.monotonic()
        self._state.saved(page)

    def _append(self) -> Page:
        with self._state.lock:
            record, page = self._record(everything=False)
        self._file.append(record)
        return page

    def _rewrite(self) -> Page:
        pages: list[Page] = []
        self._file.rewrite(self._records(pages))
        return pages[-1]

    def _records(self, pages: list[Page]) -> Iterator[bytes]:
        """Yield all that there is: the tasks a part at a time, and what changed meanwhile at last."""
        state = self._state
        with state.lock:
            self._recorder = Recorder(state.cluster)
            first, _ = self._record(everything=True)
            uuids = state.cluster.tasks.uuids()
        yield first
        for start in range(0, len(uuids), AT_ONCE):
            with state.lock:
                some = self._recorder.tasks(uuids[start : start + AT_ONCE], state.moment())
                part = _encoded(Checkpoint(some))
            yield part
        with state.lock:
            last, page = self._record(everything=False)
        pages.append(page)
        yield last

    def _record(self, *, everything: bool) -> tuple[bytes, Page]:
        changes = self._recorder.changes(self._state.moment())
        record = _encoded(Checkpoint(changes, self._state.own(everything=everything)))
        page = self._state.page()
        page.unsaved = self._unsaved
        return record, page

    def _give_up(self) -> None:
        """Show what is known from now on, if the file could not be written for long."""
        if self._holds_state and time.monotonic() - self._written < PATIENCE:
            return
        if self._holds_state:
            why = "it could not be written, and what is shown is newer by now"
            self._holds_state = not self._file.put_aside(why)
        with self._state.lock:
            self._state.own(everything=False)  # by which new series are settled, though nothing is written
            page = self._state.page()
        self._page = None
        self._state.saved(page)


def _encoded(checkpoint: Checkpoint) -> bytes:
    try:
        return msgspec.msgpack.encode(checkpoint)
    except (msgspec.MsgspecError, OverflowError, TypeError, ValueError) as error:
        raise StateFileError(f"this state cannot be written, please report it: {error}") from None
