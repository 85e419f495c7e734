"""The state of a cluster as plain values: recorded as changes, and restored into a new cluster.

The listening clock starts at 0 in each process. So listening times are stored together with the current
reading of the clock, and shifted when they are restored. The time between two processes does not count as
silence, since no exporter was listening. Only the age of unfinished tasks includes it, because --task-ttl
limits the real age of a task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from celery_exporter.core.aggregates import Aggregate, Aggregates
from celery_exporter.core.beats import Beat
from celery_exporter.core.cluster import Cluster
from celery_exporter.core.duplicates import MAX_ENDS, ExecutionEnd
from celery_exporter.core.events import Event
from celery_exporter.core.expected import SavedExpected, Watch
from celery_exporter.core.histogram import Histogram, bucket_indexes
from celery_exporter.core.measurements import REST, Pair, Summary
from celery_exporter.core.queues import Queue
from celery_exporter.core.task_history import Delivery, Generation, TaskHistory
from celery_exporter.core.tasks import AwaitingSent, Task, TaskTable
from celery_exporter.core.types import OTHER, LabelSet, State, Timestamp
from celery_exporter.core.workers import MAX_WORKERS, Worker, WorkerInfo

K = TypeVar("K")
T = TypeVar("T")


class TaskRecord(Struct, array_like=True, gc=False):
    """A task. `state` is its state, or the final one. `label_set` is None for an unidentified task."""

    uuid: str
    last_seen: float
    label_set: LabelSet | None
    state: State | None
    since: float
    ready: float | None  # of attempt 0
    resent: dict[int, float] | None  # since when the other attempts wait
    attempt_label_sets: dict[int, LabelSet] | None
    received: int | None
    skipped: set[int] | None
    deliveries: list[Delivery] | None
    ended_by: str
    deferred: list[Event] | None
    generations: list[Generation] | None = None
    expires: float | None = None
    copied: bool = False
    awaiting: AwaitingSent | None = None


class HistogramLayout(Struct, frozen=True):
    """The buckets of all histograms in a state file."""

    runtime_bounds: Sequence[float]
    wait_bounds: Sequence[float]
    native: bool


class Sums(Struct):
    """The sums that have no label set."""

    negative_waits: int
    exceptions_overflowed: int
    events: Mapping[str, int]
    fallbacks: Mapping[str, int]
    limit_rejections: Mapping[str, int]
    overflowed: int
    evicted: int
    repeated: Mapping[str, int]
    reconciled: Mapping[str, int]
    measurements_overflowed: int = 0


class Changes(Struct):
    """What changed in a cluster up to a timestamp. `removed_…` has what no longer exists."""

    at: Timestamp
    sums: Sums
    layout: HistogramLayout | None = None  # None: unchanged, as with the following fields
    aggregates: list[tuple[LabelSet, Aggregate]] = []
    removed_label_sets: list[LabelSet] = []
    tasks: list[TaskRecord] = []
    removed_tasks: list[str] = []
    workers: list[Worker] = []  # without their `info`
    removed_workers: list[str] = []
    infos: dict[str, WorkerInfo] = {}  # by worker
    queues: list[Queue] = []
    removed_queues: list[str] = []
    ends: list[ExecutionEnd] = []
    shadows: dict[str, str] | None = None
    measurements: list[tuple[Pair, Summary]] = []
    removed_measurements: list[Pair] = []
    beats: list[Beat] | None = None  # all of them; None: unchanged
    watches: list[Watch] | None = None  # the same, of expected tasks
    watched: float | None = None  # wall time of the newest watch


class Recorder:
    """Records what changes in a cluster. The first changes contain everything except the tasks.

    Not thread-safe: the caller holds the lock of the cluster.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._at = -math.inf
        self._aggregates: Mapping[LabelSet, Aggregate] = {}
        self._workers: dict[str, bytes] = {}
        # Workers that an earlier process removed: the first changes contain them again.
        self._purged = [*cluster.registry.purged]
        self._infos: dict[str, WorkerInfo] = {}
        self._queues: dict[str, bytes] = {}
        self._shadows: dict[str, str] = {}
        self._measurements: dict[Pair, Summary] = {}
        self._beats: bytes = b""
        self._watches: bytes = b""
        cluster.tasks.changed = set()

    def changes(self, now: Timestamp) -> Changes:
        """Return what changed since the last call; encode it before the shared objects change again."""
        cluster = self._cluster
        aggregates = cluster.aggregates
        layout = HistogramLayout(
            aggregates.runtime_bounds, aggregates.wait_bounds, aggregates.native_histograms
        )
        changes = Changes(now, _sums(cluster), layout if self._at == -math.inf else None)
        before, self._aggregates = self._aggregates, aggregates.snapshot()
        # An aggregate that changed after a snapshot is another object.
        changes.aggregates = [
            (label_set, aggregate)
            for label_set, aggregate in self._aggregates.items()
            if before.get(label_set) is not aggregate
        ]
        changes.removed_label_sets = [*(before.keys() - self._aggregates.keys())]
        self._add_tasks(changes)
        self._add_workers(changes)
        queues = {queue.name: queue for queue in cluster.queues.records()}
        changes.removed_queues = _update(self._queues, queues, changes.queues)
        changes.ends = cluster.ends.since(self._at)
        if cluster.label_sets.shadows != self._shadows:
            changes.shadows = self._shadows = cluster.label_sets.shadows.copy()
        self._add_measurements(changes)
        beats = [*cluster.beats.by_name.values()]
        encoded = msgspec.msgpack.encode(beats)
        if encoded != self._beats:
            changes.beats, self._beats = beats, encoded
        self._add_expected(changes)
        self._at = now.listening
        return changes

    @property
    def is_incomplete(self) -> bool:
        """Return whether there were too many changes to record: a new recorder has to start from nothing."""
        return self._cluster.tasks.changed is None

    def _add_tasks(self, changes: Changes) -> None:
        changed, self._cluster.tasks.changed = self._cluster.tasks.changed, set()
        if changed is None:
            raise ValueError("too many changes since the last record")
        for uuid in changed:
            task = self._cluster.tasks.get(uuid)
            if task is None:
                changes.removed_tasks.append(uuid)
            else:
                changes.tasks.append(_record_of(task, self._cluster.tasks))

    def _add_workers(self, changes: Changes) -> None:
        workers = self._cluster.workers
        bare = {name: msgspec.structs.replace(worker, info=NO_INFO) for name, worker in workers.items()}
        purged, self._purged = self._purged, []
        changes.removed_workers = [*purged, *_update(self._workers, bare, changes.workers)]
        before, self._infos = self._infos, {name: worker.info for name, worker in workers.items()}
        changes.infos = {name: info for name, info in self._infos.items() if before.get(name) is not info}

    def _add_measurements(self, changes: Changes) -> None:
        before, self._measurements = self._measurements, self._cluster.measurements.snapshot()
        changes.measurements = [
            (pair, summary)
            for pair, summary in self._measurements.items()
            if before.get(pair) is not summary  # they never change: a new one replaces it
        ]
        changes.removed_measurements = [*(before.keys() - self._measurements.keys())]

    def _add_expected(self, changes: Changes) -> None:
        expected = self._cluster.expected
        changes.watched = expected.watched
        encoded = b"" if expected.watched is None else msgspec.msgpack.encode(expected.watches)
        if encoded != self._watches:
            changes.watches, self._watches = expected.watches, encoded

    def tasks(self, uuids: Iterable[str], now: Timestamp) -> Changes:
        """Return those of these tasks that still exist, as changes; encode them as above."""
        tasks = self._cluster.tasks
        records = [_record_of(task, tasks) for task in map(tasks.get, uuids) if task is not None]
        return Changes(now, _sums(self._cluster), tasks=records)


#: The `info` of a recorded worker, whose info is stored separately.
NO_INFO = WorkerInfo()


def _sums(cluster: Cluster) -> Sums:
    return Sums(
        negative_waits=cluster.aggregates.negative_waits,
        exceptions_overflowed=cluster.aggregates.overflowed,
        events=cluster.events,
        fallbacks=cluster.fallbacks,
        limit_rejections=cluster.limit_rejections,
        overflowed=cluster.label_sets.overflowed,
        evicted=cluster.tasks.evicted,
        repeated=cluster.repeated,
        reconciled=cluster.reconciled,
        measurements_overflowed=cluster.measurements.overflowed,
    )


def _update(encodings: dict[str, bytes], values: Mapping[str, T], changed: list[T]) -> list[str]:
    """Bring `encodings` up to date with `values`; add changed values to `changed`, return removed names."""
    removed = [*(encodings.keys() - values.keys())]
    for name in removed:
        del encodings[name]
    for name, value in values.items():
        encoded = msgspec.msgpack.encode(value)
        if encodings.get(name) != encoded:
            encodings[name] = encoded
            changed.append(value)
    return removed


def _remove(values: dict[K, T], removed: Iterable[K]) -> None:
    for name in removed:
        values.pop(name, None)


def _record_of(task: Task, tasks: TaskTable) -> TaskRecord:
    history = task.history()
    return TaskRecord(
        task.uuid,
        task.last_seen,
        None if task.bucket is tasks.unidentified else task.bucket.group.label_set,
        task.bucket.effective_state,
        task.since,
        history.sent.get(0),
        {attempt: ready for attempt, ready in history.sent.items() if attempt},
        history.attempt_label_sets,
        history.received,
        history.skipped,
        history.deliveries,
        history.ended_by,
        _without_ancestry(tasks.deferred.get(task.uuid)),
        history.generations,
        tasks.expires.get(task.uuid),
        history.copied,
        tasks.awaiting_sent.get(task.uuid),
    )


def _without_ancestry(events: list[Event] | None) -> list[Event] | None:
    """Return events without what only records need: arguments may hold secrets, and no restart needs them."""
    if events is None or all(type(event) is Event for event in events):
        return events
    return [Event(*(getattr(event, name) for name in Event.__struct_fields__)) for event in events]


class SavedCluster:
    """The state of a cluster that follows from all changes since the beginning."""

    def __init__(self) -> None:
        self.at: Timestamp | None = None
        self.sums: Sums | None = None
        self.layout: HistogramLayout | None = None
        self.aggregates: dict[LabelSet, Aggregate] = {}
        self.tasks: dict[str, TaskRecord] = {}
        self.workers: dict[str, Worker] = {}
        self.purged: dict[str, None] = {}
        self.infos: dict[str, WorkerInfo] = {}
        self.queues: dict[str, Queue] = {}
        self.ends: list[ExecutionEnd] = []
        self.shadows: dict[str, str] = {}
        self.measurements: dict[Pair, Summary] = {}
        self.beats: list[Beat] = []
        self.expected: SavedExpected | None = None
        self._label_sets: dict[LabelSet, LabelSet] = {}
        self._names: dict[str, str] = {}

    def apply(self, changes: Changes) -> None:
        """Apply the next changes."""
        self.at, self.sums = changes.at, changes.sums
        self.layout = changes.layout or self.layout
        self.aggregates.update(changes.aggregates)
        for task in changes.tasks:
            self.tasks[task.uuid] = self._with_shared(task)
        self.workers.update((worker.name, worker) for worker in changes.workers)
        self.infos.update(changes.infos)
        self.queues.update((queue.name, queue) for queue in changes.queues)
        _remove(self.aggregates, changes.removed_label_sets)
        _remove(self.tasks, changes.removed_tasks)
        _remove(self.workers, changes.removed_workers)
        _remove(self.purged, [worker.name for worker in changes.workers])
        self.purged.update(dict.fromkeys(changes.removed_workers))
        _remove(self.infos, changes.removed_workers)
        _remove(self.queues, changes.removed_queues)
        self.ends += changes.ends
        if len(self.ends) > 2 * MAX_ENDS:
            del self.ends[:-MAX_ENDS]
        if changes.shadows is not None:
            self.shadows = changes.shadows
        self.measurements.update(changes.measurements)
        _remove(self.measurements, changes.removed_measurements)
        if changes.beats is not None:
            self.beats = changes.beats
        if changes.watched is not None:
            watches = self.expected.watches if self.expected and changes.watches is None else changes.watches
            self.expected = SavedExpected(changes.watched, watches or [])

    def _with_shared(self, task: TaskRecord) -> TaskRecord:
        """Replace equal label sets and worker names by one object each.

        Each was decoded as its own object. For 300,000 tasks these take more memory than the rest.
        """
        if task.label_set is not None:
            task.label_set = self._label_sets.setdefault(task.label_set, task.label_set)
        for delivery in task.deliveries or ():
            delivery.worker = self._names.setdefault(delivery.worker, delivery.worker)
        return task


# -- restoring -------------------------------------------------------------------------------------------


def restore(saved: SavedCluster, cluster: Cluster, now: Timestamp) -> None:
    """Restore a saved state into a new cluster; raise ValueError if it is inconsistent.

    The current labels, bounds and limits apply. Sums with a label that is no longer in use are added up
    without it. Histograms with other bounds start at zero, since their observations cannot be assigned to the
    new buckets.
    """
    if saved.at is None or saved.sums is None or saved.layout is None:
        raise ValueError("its beginning is missing")
    shift = now.listening - saved.at.listening
    _restore_aggregates(saved, saved.layout, cluster, now)
    _restore_measurements(saved, cluster, now)
    aggregates, sums = cluster.aggregates, saved.sums
    aggregates.negative_waits, aggregates.overflowed = sums.negative_waits, sums.exceptions_overflowed
    _restore_workers(saved, cluster, shift, now)
    cluster.beats.restore(saved.beats, shift)
    if saved.expected is not None:
        cluster.expected.restore(saved.expected)
    shown = (queue for queue in saved.queues.values() if cluster.label_sets.show_queue(queue.name))
    cluster.queues.restore(shown, shift, now.listening)
    cluster.record_inspection({}, now)  # derives label sets from the restored replies
    cluster.events.update({kind: count for kind, count in sums.events.items() if kind in cluster.events})
    cluster.fallbacks.update(sums.fallbacks)
    cluster.limit_rejections.update(sums.limit_rejections)
    cluster.repeated.update(sums.repeated)
    cluster.reconciled.update(sums.reconciled)
    for end in saved.ends:
        cluster.ends.add(msgspec.structs.replace(end, listening=end.listening + shift))
    cluster.ends.expire(now.listening)
    cluster.label_sets.overflowed, cluster.tasks.evicted = sums.overflowed, sums.evicted
    cluster.measurements.overflowed = sums.measurements_overflowed
    _restore_tasks(saved, cluster, shift, max(0.0, now.wall - saved.at.wall), now)


def _restore_aggregates(
    saved: SavedCluster, layout: HistogramLayout, cluster: Cluster, now: Timestamp
) -> None:
    # `other` comes last, so that the limit of label sets admits the others first.
    for label_set, aggregate in sorted(saved.aggregates.items(), key=lambda pair: pair[0].task_name == OTHER):
        restored = cluster.label_sets.restore(label_set)
        aggregate.clients = aggregate.clients if cluster.counts_clients else {}
        cluster.aggregates.restore(restored, _with_layout(aggregate, layout, cluster.aggregates))
        group = cluster.tasks.group(cluster.label_sets.without_worker(restored))
        group.last_seen = now.listening  # the time until it is idle starts now
    if not cluster.label_sets.renamed:
        cluster.label_sets.shadows.update(saved.shadows)


def _restore_measurements(saved: SavedCluster, cluster: Cluster, now: Timestamp) -> None:
    # `other` comes last, so that the limit admits the others first.
    for (name, field), summary in sorted(saved.measurements.items(), key=lambda item: item[0] == REST):
        if shown := cluster.label_sets.restored_name(name):
            cluster.measurements.restore((shown, field), summary, now.listening)


def _restore_workers(saved: SavedCluster, cluster: Cluster, shift: float, now: Timestamp) -> None:
    cluster.registry.purged.update(dict.fromkeys([*saved.purged][-MAX_WORKERS:]))
    for worker in saved.workers.values():
        worker.info = saved.infos.get(worker.name, NO_INFO)
        worker.last_seen += shift
        worker.down_since = None if worker.down_since is None else worker.down_since + shift
        worker.skew_until = now.listening
        worker.idle_since = None  # it may have started tasks meanwhile
        worker.processes.restore(shift)
        cluster.registry.restore(worker, now)


def _restore_tasks(
    saved: SavedCluster, cluster: Cluster, shift: float, away_seconds: float, now: Timestamp
) -> None:
    """Restore the tasks; remove each record before, so that both are never in memory together."""
    # Tasks of a bucket are in the order of their newest events, and expiry relies on it.
    records = sorted(saved.tasks.values(), key=lambda record: record.last_seen)
    records.reverse()  # `pop` takes the last one
    saved.tasks.clear()
    while records:
        _restore_task(records.pop(), cluster, shift, away_seconds, now)
    # Expiry relies on the order of waits, too.
    waiting = cluster.tasks.awaiting_sent.items()
    cluster.tasks.awaiting_sent = dict(sorted(waiting, key=lambda item: item[1].since))


def _restore_task(
    record: TaskRecord, cluster: Cluster, shift: float, away_seconds: float, now: Timestamp
) -> None:
    last_seen = record.last_seen + shift
    if record.label_set is not None:  # the task-sent of an unidentified task may still arrive
        last_seen = record.last_seen + shift - away_seconds
    if cluster.tasks.get(record.uuid) is not None or (record.label_set is None and not record.deferred):
        return  # invalid: the recorder does not write such a record
    bucket = cluster.tasks.unidentified
    if record.label_set is not None:
        bucket = cluster.tasks.group(cluster.label_sets.restore(record.label_set)).buckets[record.state]
    bucket.group.last_seen = max(bucket.group.last_seen, last_seen)
    task = cluster.tasks.new(record.uuid, last_seen, bucket, record.since)
    _restore_history(task, record, cluster)
    if record.expires is not None:
        cluster.tasks.expires[task.uuid] = record.expires
    # Deferred events have to be counted first.
    is_old = last_seen < now.listening - cluster.limits.task_ttl and not record.deferred
    if is_old and not (bucket.state is not None and cluster.is_kept_past_ttl(task, now.wall, {})):
        cluster.tasks.remove(task)
    if record.deferred:
        awaiting = record.awaiting and AwaitingSent(record.awaiting.since + shift, record.awaiting.was_open)
        cluster.tasks.defer(task, record.deferred, record.last_seen + shift, awaiting)


def _restore_history(task: Task, record: TaskRecord, cluster: Cluster) -> None:
    deliveries = record.deliveries or []
    for delivery in deliveries:
        worker = cluster.workers.get(delivery.worker)
        if worker is not None:
            delivery.worker = worker.name  # one object for all its tasks
            delivery.pid = worker.task_pid if delivery.pid == worker.task_pid else delivery.pid
    attempt_label_sets = record.attempt_label_sets and {
        attempt: cluster.label_sets.restore(label_set)
        for attempt, label_set in record.attempt_label_sets.items()
    }
    sent = ({} if record.ready is None else {0: record.ready}) | (record.resent or {})
    skipped, generations = record.skipped or None, record.generations or None
    task.expanded = TaskHistory(
        sent, record.received, deliveries, record.ended_by, skipped, attempt_label_sets, generations
    )
    task.expanded.copied = record.copied
    task.compact()


def _with_layout(aggregate: Aggregate, layout: HistogramLayout, aggregates: Aggregates) -> Aggregate:
    """Return the aggregate with the current buckets; raise ValueError if it contradicts its layout."""
    _check_layout(aggregate, layout)
    is_native_new = (
        aggregates.native_histograms and not layout.native
    )  # the sizes of old observations are unknown
    runtime = None if is_native_new else _indexes(layout.runtime_bounds, aggregates.runtime_bounds)
    wait = None if is_native_new else _indexes(layout.wait_bounds, aggregates.wait_bounds)
    aggregate.runtime = (
        {}
        if runtime is None
        else {state: histogram.rebucketed(runtime) for state, histogram in aggregate.runtime.items()}
    )
    aggregate.queue_wait = _rebucketed(aggregate.queue_wait, wait)
    aggregate.prefetch_wait = _rebucketed(aggregate.prefetch_wait, wait)
    aggregate.latency = _rebucketed(aggregate.latency, wait)
    for histogram in (*aggregate.runtime.values(), *_waits(aggregate)):
        histogram.exemplars = {} if aggregates.exemplars else None
        histogram.native = histogram.native if aggregates.native_histograms else None
    return aggregate


def _check_layout(aggregate: Aggregate, layout: HistogramLayout) -> None:
    runtimes, waits = [*aggregate.runtime.values()], _waits(aggregate)
    if any((histogram.native is not None) != layout.native for histogram in (*runtimes, *waits)):
        raise ValueError("a histogram is not native as the others are")
    for histograms, bounds in ((runtimes, layout.runtime_bounds), (waits, layout.wait_bounds)):
        if any(len(histogram.counts) != len(bounds) + 1 for histogram in histograms):
            raise ValueError("a histogram does not have the buckets that it should")


def _rebucketed(histogram: Histogram | None, indexes: list[int] | None) -> Histogram | None:
    return histogram.rebucketed(indexes) if histogram and indexes else None


def _indexes(before: Sequence[float], after: Sequence[float]) -> list[int] | None:
    """Return the new index of each bucket; None if the bounds `after` are not among those `before`."""
    if not set(after) <= set(before):
        return None
    return bucket_indexes(before, after)


def _waits(aggregate: Aggregate) -> list[Histogram]:
    waits = (aggregate.queue_wait, aggregate.prefetch_wait, aggregate.latency)
    return [histogram for histogram in waits if histogram is not None]
