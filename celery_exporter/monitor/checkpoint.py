"""What outlasts a process: the records of a state file, who writes them, and how they are read back.

Invariant: `/metrics` shows nothing that is not in the file. So it shows a snapshot that was taken together
with a record, once that record is written. A durable queue removes an event only when what it changed is
written. One record has all that changed since the one before, of sums and tasks alike.

While the file cannot be written, the last written snapshot is shown for `MAX_UNSAVED_SECONDS`. After that the
current one is shown, and the file, which is behind it, is moved away: the next process begins at 0, which
Prometheus handles as a counter reset.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from celery_exporter.broker.source import is_same_broker
from celery_exporter.core.cluster import Cluster
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import Timestamp
from celery_exporter.metrics.exposition.series_tracker import (
    SeriesTracker,
    SeriesTrackerChanges,
    SeriesTrackerMemory,
)
from celery_exporter.monitor.cluster_state import ClusterState, new_cluster
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.monitor.event_subscription import EventSubscription
from celery_exporter.monitor.naming import Naming, naming_of
from celery_exporter.persistence import state
from celery_exporter.persistence.digests import DigestChanges, DigestRecorder, SavedDigests
from celery_exporter.persistence.state_file import (
    StateFile,
    StateFileError,
    UnusablePathError,
    first_record,
)

log = logging.getLogger(__name__)

#: Seconds for which the last written snapshot is shown while the file cannot be written.
MAX_UNSAVED_SECONDS = 30.0
#: Tasks encoded under one hold of the lock when all are written: some milliseconds.
CHUNK_TASKS = 1_000


class ExporterRecord(Struct):
    """What is saved besides the cluster."""

    broker: str  # its identity, without secrets
    naming: Naming
    malformed: dict[str, int]
    subscriptions: int
    file_errors: dict[str, int]
    tracker: SeriesTrackerChanges
    unconfirmed: DigestChanges  # messages of a durable queue that may come again: see AmqpConsumer
    shard: str = ""  # as --shard has it
    duplicates: int = 0


class Checkpoint(Struct):
    """One record: what changed up to its moment."""

    cluster: state.Changes
    exporter: ExporterRecord | None = None


class SavedState:
    """The records of a file, added up in their order."""

    def __init__(self) -> None:
        self.cluster = state.SavedCluster()
        self.tracker = SeriesTrackerMemory()
        self.unconfirmed = SavedDigests()
        self.exporter: ExporterRecord | None = None
        self._decode = msgspec.msgpack.Decoder(Checkpoint).decode

    def add(self, record: bytes) -> None:
        """Add the next record; raise msgspec.MsgspecError for bytes that are none."""
        checkpoint = self._decode(record)
        self.cluster.apply(checkpoint.cluster)
        if checkpoint.exporter is not None:
            self.exporter = checkpoint.exporter
            self.tracker.take(checkpoint.exporter.tracker)
            self.unconfirmed.apply(checkpoint.exporter.unconfirmed)


# -- reading ---------------------------------------------------------------------------------------------


class Restored(Struct):
    """What an earlier process left, put into a cluster."""

    cluster: Cluster
    exporter: ExporterRecord
    tracker: SeriesTrackerMemory
    unconfirmed: list[int]  # digests of messages of a durable queue that may come again
    is_renamed: bool  # series have other names or label values than in the file


def restore(file: StateFile, config: MonitorConfig, broker: str) -> Restored | None:
    """Read the file; return None if it holds no state that this exporter can use.

    `broker` is the identity of the broker. Raises UnavailableError if another process has the file, and
    UnusablePathError if it is of another shard.
    """
    saved = SavedState()
    if not file.load(saved.add) or saved.exporter is None:
        return None
    exporter = saved.exporter
    try:
        _check_owner(exporter, config, broker)
    except UnusablePathError:
        file.close()
        raise
    except StateFileError as error:
        file.refuse(str(error))
        return None
    naming = naming_of(config)
    cluster = new_cluster(config)
    cluster.label_sets.renamed = exporter.naming.tasks != naming.tasks
    cluster.label_sets.queues_renamed = exporter.naming.queues != naming.queues
    saved_at = saved.cluster.at.wall if saved.cluster.at else 0.0
    try:
        state.restore(saved.cluster, cluster, Timestamp(0.0, time.time()))
        unconfirmed = saved.unconfirmed.digests()
    except Exception as error:  # noqa: BLE001  intact, but not written by an exporter
        file.refuse(f"it holds a state that cannot be used ({error!r})")
        return None
    age, label_sets, tasks = time.time() - saved_at, len(cluster.label_sets), len(cluster.tasks)
    log.info("restored %d label sets and %d unfinished tasks, saved %.0f s ago", label_sets, tasks, age)
    return Restored(cluster, exporter, saved.tracker, unconfirmed, exporter.naming != naming)


def probe(path: Path, config: MonitorConfig, broker: str) -> bool:
    """Return whether there is a file at a path, and raise StateFileError if this exporter would not use it.

    Raises UnusablePathError if the exporter would not start. `broker` is the identity of the broker. Changes
    nothing.
    """
    record = first_record(path)
    if record is None:
        return False
    saved = SavedState()
    try:
        saved.add(record)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StateFileError(f"it holds a state that cannot be used ({error!r})") from None
    if saved.exporter is not None:
        _check_owner(saved.exporter, config, broker)
    return True


def _check_owner(exporter: ExporterRecord, config: MonitorConfig, broker: str) -> None:
    """Raise StateFileError if the file is of another shard or another broker."""
    if exporter.shard != shard_text(config):
        saved_shard, own_shard = (text or "none" for text in (exporter.shard, shard_text(config)))
        raise UnusablePathError(
            f"it is of shard {saved_shard}, and not of {own_shard}; give each shard a file of its own"
        )
    if not is_same_broker(exporter.broker, broker):
        saved_broker, own_broker = (
            " and ".join(identity.split("\n")) for identity in (exporter.broker, broker)
        )
        raise StateFileError(f"it is of another broker, {saved_broker}, and not of {own_broker}")


def shard_text(config: MonitorConfig) -> str:
    """Return the shard as the state file has it; empty for the whole cluster."""
    return "" if config.shard is None else str(config.shard)


# -- writing ---------------------------------------------------------------------------------------------


class Pending(Struct):
    """A snapshot that may be shown once its record is written; `mark` is of a durable queue."""

    snapshot: Snapshot
    mark: tuple[int, int] | None
    unsaved: int  # snapshots that were shown before it without being written


class CheckpointWriter:
    """Writes what changed, again and again, and keeps the snapshot that may be shown. For any thread.

    `take_snapshot` returns a snapshot, under the lock of the state; `broker` the identity of the broker.
    `holds_state` says whether the file holds the state of an earlier process.
    """

    def __init__(  # noqa: PLR0913  what is saved, and where
        self,
        file: StateFile,
        state_: ClusterState,
        subscription: EventSubscription,
        tracker: SeriesTracker,
        *,
        take_snapshot: Callable[[], Snapshot],
        broker: Callable[[], str],
        naming: Naming,
        shard: str,
        holds_state: bool,
    ) -> None:
        self._file = file
        self._state = state_
        self._subscription = subscription
        self._tracker = tracker
        self._take_snapshot = take_snapshot
        self._broker = broker
        self._naming, self._shard = naming, shard
        self._recorder = state.Recorder(state_.cluster)
        self._digests = DigestRecorder()
        self._is_behind = True  # the file must be rewritten
        self._holds_state = holds_state
        self._saving = threading.Lock()
        self._unsaved = 0  # snapshots that were shown though they are not in the file
        with state_.lock:
            self._shown: Pending | None = self._pending()
        self._written = time.monotonic()

    def snapshot(self) -> Snapshot | None:
        """Return the snapshot that may be shown; None if it is too old, since the file cannot be written."""
        shown = self._shown
        is_current = time.monotonic() - self._written < MAX_UNSAVED_SECONDS
        return shown.snapshot if shown and is_current else None

    def snapshot_or_unsaved(self) -> Snapshot | None:
        """Return the same, under the state's lock; after None the caller shows the current state.

        No older snapshot is shown after that.
        """
        snapshot = self.snapshot()
        self._unsaved += snapshot is None
        return snapshot

    def save(self, wait: float = -1) -> None:
        """Write what changed; raise StateFileError, also if another thread writes for `wait` seconds."""
        if not self._saving.acquire(timeout=wait):
            raise StateFileError("it is being written, which takes long")
        try:
            self._save()
            if self._shown is None:  # a newer one was shown while it was written
                self._save()
        finally:
            self._saving.release()

    def _save(self) -> None:
        needs_rewrite = self._file.needs_compaction or self._is_behind or self._recorder.is_incomplete
        is_usual = self._file.is_intact and not needs_rewrite
        self._is_behind = True
        try:
            pending = self._append() if is_usual else self._rewrite()
        except Exception:
            self._show_unsaved()
            raise
        self._is_behind = False
        self._holds_state = True
        with self._state.lock:
            self._shown = pending if pending.unsaved == self._unsaved else None
            self._written = time.monotonic()
        self._confirm(pending)

    def _append(self) -> Pending:
        with self._state.reading, self._state.lock:  # the mark is of whole messages
            record, pending = self._record(everything=False)
        self._file.append(record)
        return pending

    def _rewrite(self) -> Pending:
        last: list[Pending] = []
        self._file.rewrite(self._records(last))
        return last[-1]

    def _records(self, last: list[Pending]) -> Iterator[bytes]:
        """Yield all there is: the tasks in chunks, and at the end what changed meanwhile."""
        cluster, lock = self._state.cluster, self._state.lock
        with lock:
            self._recorder = state.Recorder(cluster)
            first, _ = self._record(everything=True)
            uuids = cluster.tasks.uuids()
        yield first
        for start in range(0, len(uuids), CHUNK_TASKS):
            with lock:
                tasks = self._recorder.tasks(uuids[start : start + CHUNK_TASKS], self._state.now())
                record = _encode(Checkpoint(tasks))
            yield record
        with self._state.reading, lock:
            final, pending = self._record(everything=False)
        last.append(pending)
        yield final

    def _record(self, *, everything: bool) -> tuple[bytes, Pending]:
        changes = self._recorder.changes(self._state.now())
        record = _encode(Checkpoint(changes, self._exporter_record(everything=everything)))
        return record, self._pending()

    def _exporter_record(self, *, everything: bool) -> ExporterRecord:
        subscription = self._subscription
        return ExporterRecord(
            broker=self._broker(),
            naming=self._naming,
            malformed=dict(subscription.malformed),
            subscriptions=subscription.opened,
            file_errors=self._file.errors,
            tracker=self._tracker.changes(time.monotonic(), everything=everything),
            unconfirmed=self._digests.changes(subscription.unconfirmed(), everything=everything),
            shard=self._shard,
            duplicates=subscription.duplicates(),
        )

    def _pending(self) -> Pending:
        return Pending(self._take_snapshot(), self._subscription.mark, self._unsaved)

    def _confirm(self, pending: Pending) -> None:
        """Let a durable queue remove events that are in the file, and new series show their values."""
        self._tracker.confirm()
        if pending.mark is not None:
            self._subscription.release(pending.mark)

    def _show_unsaved(self) -> None:
        """Show the current state from now on, if the file could not be written for long."""
        if self._holds_state and time.monotonic() - self._written < MAX_UNSAVED_SECONDS:
            return
        if self._holds_state:
            reason = "it could not be written, and what is shown is newer by now"
            self._holds_state = not self._file.move_aside(reason)
        with self._state.lock:
            self._exporter_record(everything=False)  # settles new series, though nothing is written
            pending = self._pending()
        self._shown = None
        self._confirm(pending)


def _encode(checkpoint: Checkpoint) -> bytes:
    try:
        return msgspec.msgpack.encode(checkpoint)
    except (msgspec.MsgspecError, OverflowError, TypeError, ValueError) as error:
        raise StateFileError(f"this state cannot be written, please report it: {error}") from None
