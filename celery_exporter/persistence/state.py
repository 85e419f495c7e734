"""What has to outlast a restart, as plain values: what changed in a cluster since the last time, and all of
that put back into a new one.

Moments of the listening clock mean nothing to the next process, so they are stored beside the clock's own
reading, and shifted when they are put back. The time between is not silence: nobody listened. Only unfinished
tasks grow older meanwhile, for --task-ttl is about them, not about us.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from celery_exporter.core.aggregates import Aggregate, Aggregates
from celery_exporter.core.cluster import Cluster
from celery_exporter.core.duplicates import MAX_ENDS, ExecutionEnd
from celery_exporter.core.events import Event
from celery_exporter.core.histogram import Histogram, places
from celery_exporter.core.queues import Queue
from celery_exporter.core.task_history import Delivery, Generation, TaskHistory
from celery_exporter.core.tasks import AwaitingSent, Task, TaskTable
from celery_exporter.core.types import OTHER, LabelSet, State, Timestamp
from celery_exporter.core.workers import MAX_WORKERS, Worker, WorkerInfo

K = TypeVar("K")
T = TypeVar("T")


class TaskMemory(Struct, array_like=True, gc=False):
    """A task; `state` is how it ended for one that is finished, `key` None for one not introduced yet."""

    uuid: str
    last_seen: float
    label_set: LabelSet | None
    state: State | None
    since: float
    ready: float | None
    resent: dict[int, float] | None
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


class Shape(Struct, frozen=True):
    """How histograms are kept: what is restored fits into no others."""

    runtime_bounds: Sequence[float]
    wait_bounds: Sequence[float]
    native: bool


class Sums(Struct):
    """The sums that are of no key."""

    negative_waits: int
    exceptions_overflowed: int
    events: Mapping[str, int]
    fallbacks: Mapping[str, int]
    limit_rejections: Mapping[str, int]
    overflowed: int
    evicted: int
    repeated: Mapping[str, int]
    reconciled: Mapping[str, int]


class Changes(Struct):
    """What changed in a cluster up to a moment; `gone_…` have what is not there any more."""

    at: Timestamp
    sums: Sums
    shape: Shape | None = None  # None: as before, as with what follows
    aggregates: list[tuple[LabelSet, Aggregate]] = []
    gone_cells: list[LabelSet] = []
    tasks: list[TaskMemory] = []
    gone_tasks: list[str] = []
    workers: list[Worker] = []  # without their profiles
    gone_workers: list[str] = []
    profiles: dict[str, WorkerInfo] = {}  # by worker
    queues: list[Queue] = []
    gone_queues: list[str] = []
    ends: list[ExecutionEnd] = []
    shadows: dict[str, str] | None = None


class Recorder:
    """Tells what changed in a cluster from one time to the next: at first, all but the tasks.

    Not thread-safe: for whoever holds the cluster's lock.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._at = -math.inf
        self._aggregates: Mapping[LabelSet, Aggregate] = {}
        self._workers: dict[str, bytes] = {}
        self._purged = [
            *cluster.registry.purged
        ]  # that an earlier process forgot; what this one does is told as gone
        self._profiles: dict[str, WorkerInfo] = {}
        self._queues: dict[str, bytes] = {}
        self._shadows: dict[str, str] = {}
        cluster.tasks.changed = set()

    def changes(self, now: Timestamp) -> Changes:
        """Return what changed; it shares with the cluster, so encode it before that goes on."""
        cluster = self._cluster
        aggregates = cluster.aggregates
        shape = Shape(aggregates.runtime_bounds, aggregates.wait_bounds, aggregates.native_histograms)
        changes = Changes(now, _sums(cluster), shape if self._at == -math.inf else None)
        before, self._aggregates = self._aggregates, aggregates.snapshot()
        # A cell that was changed since the last snapshot is another object.
        changes.aggregates = [
            (label_set, aggregate)
            for label_set, aggregate in self._aggregates.items()
            if before.get(label_set) is not aggregate
        ]
        changes.gone_cells = [*(before.keys() - self._aggregates.keys())]
        self._add_tasks(changes)
        self._add_workers(changes)
        queues = {queue.name: queue for queue in cluster.queues.records()}
        changes.gone_queues = _update(self._queues, queues, changes.queues)
        changes.ends = cluster.ends.since(self._at)
        if cluster.label_sets.shadows != self._shadows:
            changes.shadows = self._shadows = cluster.label_sets.shadows.copy()
        self._at = now.listening
        return changes

    @property
    def is_lost(self) -> bool:
        """Tell whether so much changed that it was not noted: all has to be told again, by another one."""
        return self._cluster.tasks.changed is None

    def _add_tasks(self, changes: Changes) -> None:
        changed, self._cluster.tasks.changed = self._cluster.tasks.changed, set()
        if changed is None:
            raise ValueError("too much changed since the last time")
        for uuid in changed:
            task = self._cluster.tasks.get(uuid)
            if task is None:
                changes.gone_tasks.append(uuid)
            else:
                changes.tasks.append(_of_task(task, self._cluster.tasks))

    def _add_workers(self, changes: Changes) -> None:
        workers = self._cluster.workers
        bare = {name: msgspec.structs.replace(worker, info=NO_PROFILE) for name, worker in workers.items()}
        gone, self._purged = self._purged, []
        changes.gone_workers = [*gone, *_update(self._workers, bare, changes.workers)]
        before, self._profiles = self._profiles, {name: each.info for name, each in workers.items()}
        changes.profiles = {
            name: info for name, info in self._profiles.items() if before.get(name) is not info
        }

    def tasks(self, uuids: Iterable[str], now: Timestamp) -> Changes:
        """Return these tasks, as far as they are still there; shared, as above."""
        tasks = self._cluster.tasks
        found = [_of_task(task, tasks) for task in map(tasks.get, uuids) if task is not None]
        return Changes(now, _sums(self._cluster), tasks=found)


#: Of a worker whose profile is stored beside it.
NO_PROFILE = WorkerInfo()


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
    )


def _update(known: dict[str, bytes], now: Mapping[str, T], changed: list[T]) -> list[str]:
    """Bring `known` up to date, and `changed` what is another one by now; return what is gone."""
    gone = [*(known.keys() - now.keys())]
    for name in gone:
        del known[name]
    for name, value in now.items():
        encoded = msgspec.msgpack.encode(value)
        if known.get(name) != encoded:
            known[name] = encoded
            changed.append(value)
    return gone


def _remove(known: dict[K, T], gone: Iterable[K]) -> None:
    for name in gone:
        known.pop(name, None)


class Memory:
    """All that changed, one time after the other."""

    def __init__(self) -> None:
        self.at: Timestamp | None = None
        self.sums: Sums | None = None
        self.shape: Shape | None = None
        self.aggregates: dict[LabelSet, Aggregate] = {}
        self.tasks: dict[str, TaskMemory] = {}
        self.workers: dict[str, Worker] = {}
        self.purged: dict[str, None] = {}
        self.profiles: dict[str, WorkerInfo] = {}
        self.queues: dict[str, Queue] = {}
        self.ends: list[ExecutionEnd] = []
        self.shadows: dict[str, str] = {}
        self._keys: dict[LabelSet, LabelSet] = {}
        self._names: dict[str, str] = {}

    def take(self, changes: Changes) -> None:
        """Go on with what changed next."""
        self.at, self.sums = changes.at, changes.sums
        self.shape = changes.shape or self.shape
        self.aggregates.update(changes.aggregates)
        for task in changes.tasks:
            self.tasks[task.uuid] = self._with_shared(task)
        self.workers.update((worker.name, worker) for worker in changes.workers)
        self.profiles.update(changes.profiles)
        self.queues.update((queue.name, queue) for queue in changes.queues)
        _remove(self.aggregates, changes.gone_cells)
        _remove(self.tasks, changes.gone_tasks)
        _remove(self.workers, changes.gone_workers)
        _remove(self.purged, [worker.name for worker in changes.workers])
        self.purged.update(dict.fromkeys(changes.gone_workers))
        _remove(self.profiles, changes.gone_workers)
        _remove(self.queues, changes.gone_queues)
        self.ends += changes.ends
        if len(self.ends) > 2 * MAX_ENDS:
            del self.ends[:-MAX_ENDS]
        if changes.shadows is not None:
            self.shadows = changes.shadows

    def _with_shared(self, task: TaskMemory) -> TaskMemory:
        """Let tasks have one object for a key that is the same, and for a worker's name.

        Each was decoded as one of its own: for 300,000 tasks that is more than all else of them.
        """
        if task.label_set is not None:
            task.label_set = self._keys.setdefault(task.label_set, task.label_set)
        for delivery in task.deliveries or ():
            delivery.worker = self._names.setdefault(delivery.worker, delivery.worker)
        return task


def _of_task(task: Task, tasks: TaskTable) -> TaskMemory:
    history = task.history()
    return TaskMemory(
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
        tasks.deferred.get(task.uuid),
        history.generations,
        tasks.expires.get(task.uuid),
        history.copied,
        tasks.awaiting_sent.get(task.uuid),
    )


def restore(memory: Memory, cluster: Cluster, now: Timestamp) -> None:
    """Put everything back into a cluster that is new; raise ValueError where it does not fit.

    Labels, bounds and limits are today's: sums under a label that is not in use any more are added up without
    it, and histograms over other bounds begin anew, for nobody can tell where their observations belong.
    """
    if memory.at is None or memory.sums is None or memory.shape is None:
        raise ValueError("its beginning is missing")
    aggregates, shift, sums = cluster.aggregates, now.listening - memory.at.listening, memory.sums
    # The rest last, so that it takes no room from a label set that had some.
    for label_set, aggregate in sorted(
        memory.aggregates.items(), key=lambda pair: pair[0].task_name == OTHER
    ):
        restored = cluster.label_sets.restore(label_set)
        aggregate.clients = aggregate.clients if cluster.counts_clients else {}
        aggregates.restore(restored, _fitting(aggregate, memory.shape, aggregates))
        kind = cluster.tasks.group(cluster.label_sets.without_worker(restored))
        kind.last_seen = now.listening  # whether it is idle is seen from now on
    if not cluster.label_sets.renamed:
        cluster.label_sets.shadows.update(memory.shadows)
    aggregates.negative_waits, aggregates.overflowed = sums.negative_waits, sums.exceptions_overflowed
    cluster.registry.purged.update(dict.fromkeys([*memory.purged][-MAX_WORKERS:]))
    for worker in memory.workers.values():
        worker.info = memory.profiles.get(worker.name, NO_PROFILE)
        worker.last_seen += shift
        worker.down_since = None if worker.down_since is None else worker.down_since + shift
        worker.skew_until = now.listening
        worker.idle_since = None  # what it started meanwhile nobody heard
        worker.processes.restore(shift)
        cluster.registry.restore(worker, now)
    shown = (queue for queue in memory.queues.values() if cluster.label_sets.show_queue(queue.name))
    cluster.queues.restore(shown, shift, now.listening)
    cluster.record_inspection({}, now)  # what these answered before
    cluster.events.update({kind: count for kind, count in sums.events.items() if kind in cluster.events})
    cluster.fallbacks.update(sums.fallbacks)
    cluster.limit_rejections.update(sums.limit_rejections)
    cluster.repeated.update(sums.repeated)
    cluster.reconciled.update(sums.reconciled)
    for end in memory.ends:
        cluster.ends.add(msgspec.structs.replace(end, listening=end.listening + shift))
    cluster.ends.expire(now.listening)
    cluster.label_sets.overflowed, cluster.tasks.evicted = sums.overflowed, sums.evicted
    _restore_tasks(memory, cluster, shift, max(0.0, now.wall - memory.at.wall), now)


def _restore_tasks(memory: Memory, cluster: Cluster, shift: float, away: float, now: Timestamp) -> None:
    """Put the tasks back, and take each out of the memory, so that they never take their place twice."""
    # A room is in the order in which its tasks were last heard of, and expiry relies on it.
    tasks = sorted(memory.tasks.values(), key=lambda task: task.last_seen)
    tasks.reverse()  # equal ones, too
    memory.tasks.clear()
    while tasks:
        _restore_task(tasks.pop(), cluster, shift, away, now)
    cluster.tasks.awaiting_sent = dict(
        sorted(cluster.tasks.awaiting_sent.items(), key=lambda held: held[1].since)
    )  # likewise


def _restore_task(memory: TaskMemory, cluster: Cluster, shift: float, away: float, now: Timestamp) -> None:
    last_seen = (
        memory.last_seen + shift - (0.0 if memory.label_set is None else away)
    )  # its task-sent may be on its way
    if cluster.tasks.get(memory.uuid) is not None or (memory.label_set is None and not memory.deferred):
        return  # of no use, and harmful; nobody of ours writes such a thing
    bucket = cluster.tasks.unidentified
    if memory.label_set is not None:
        bucket = cluster.tasks.group(cluster.label_sets.restore(memory.label_set)).buckets[memory.state]
    bucket.group.last_seen = max(bucket.group.last_seen, last_seen)
    task = cluster.tasks.new(memory.uuid, last_seen, bucket, memory.since)
    _restore_story(task, memory, cluster)
    if memory.expires is not None:
        cluster.tasks.expires[task.uuid] = memory.expires
    is_old = (
        last_seen < now.listening - cluster.limits.task_ttl and not memory.deferred
    )  # that has to count yet
    if is_old and not (bucket.state is not None and cluster.is_kept_past_ttl(task, now.wall, {})):
        cluster.tasks.remove(task)
    if memory.deferred:
        awaiting = memory.awaiting and AwaitingSent(memory.awaiting.since + shift, memory.awaiting.was_open)
        cluster.tasks.defer(task, memory.deferred, memory.last_seen + shift, awaiting)


def _restore_story(task: Task, memory: TaskMemory, cluster: Cluster) -> None:
    deliveries = memory.deliveries or []
    for delivery in deliveries:
        worker = cluster.workers.get(delivery.worker)
        if worker is not None:
            delivery.worker = worker.name  # one object for all its tasks
            delivery.pid = worker.task_pid if delivery.pid == worker.task_pid else delivery.pid
    attempt_label_sets = memory.attempt_label_sets and {
        attempt: cluster.label_sets.restore(label_set)
        for attempt, label_set in memory.attempt_label_sets.items()
    }
    sent = ({} if memory.ready is None else {0: memory.ready}) | (memory.resent or {})
    skipped, generations = memory.skipped or None, memory.generations or None
    task.expanded = TaskHistory(
        sent, memory.received, deliveries, memory.ended_by, skipped, attempt_label_sets, generations
    )
    task.expanded.copied = memory.copied
    task.compact()


def _fitting(aggregate: Aggregate, shape: Shape, aggregates: Aggregates) -> Aggregate:
    """Return the cell with today's histograms; raise ValueError if they are not as the file says of all."""
    if any((each.native is not None) != shape.native for each in _histograms(aggregate)):
        raise ValueError("a histogram is not native as the others are")
    waits = [
        each
        for each in (aggregate.queue_wait, aggregate.prefetch_wait, aggregate.latency)
        if each is not None
    ]
    for found, bounds in ((aggregate.runtime.values(), shape.runtime_bounds), (waits, shape.wait_bounds)):
        if any(len(each.counts) != len(bounds) + 1 for each in found):
            raise ValueError("a histogram does not have the buckets that it should")
    new = aggregates.native_histograms and not shape.native  # nobody knows how large what was observed was
    ran = None if new else _places(shape.runtime_bounds, aggregates.runtime_bounds)
    waited = None if new else _places(shape.wait_bounds, aggregates.wait_bounds)
    aggregate.runtime = (
        {} if ran is None else {state: each.thinned(ran) for state, each in aggregate.runtime.items()}
    )
    aggregate.queue_wait = aggregate.queue_wait.thinned(waited) if aggregate.queue_wait and waited else None
    aggregate.prefetch_wait = (
        aggregate.prefetch_wait.thinned(waited) if aggregate.prefetch_wait and waited else None
    )
    aggregate.latency = aggregate.latency.thinned(waited) if aggregate.latency and waited else None
    for histogram in _histograms(aggregate):
        histogram.exemplars = {} if aggregates.exemplars else None
        histogram.native = histogram.native if aggregates.native_histograms else None
    return aggregate


def _places(before: Sequence[float], now: Sequence[float]) -> list[int] | None:
    """Return to which of today's buckets those before go; None if today's are finer, or others."""
    if not set(now) <= set(before):
        return None
    return places(before, now)


def _histograms(aggregate: Aggregate) -> list[Histogram]:
    waits = (aggregate.queue_wait, aggregate.prefetch_wait, aggregate.latency)
    return [each for each in (*aggregate.runtime.values(), *waits) if each is not None]
