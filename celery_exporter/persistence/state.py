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
from celery_exporter.core.events import Event
from celery_exporter.core.histogram import Histogram, places
from celery_exporter.core.queues import Queue
from celery_exporter.core.repeats import MAX_ENDS, End
from celery_exporter.core.tasks import Delivery, Generation, Hold, Task, TaskHistory, TaskTable
from celery_exporter.core.types import OTHER, LabelSet, State, Timestamp
from celery_exporter.core.workers import MAX_WORKERS, Worker, WorkerInfo

K = TypeVar("K")
T = TypeVar("T")


class TaskMemory(Struct, array_like=True, gc=False):
    """A task; `state` is how it ended for one that is finished, `key` None for one not introduced yet."""

    uuid: str
    heard: float
    key: LabelSet | None
    state: State | None
    since: float
    ready: float | None
    resent: dict[int, float] | None
    keys: dict[int, LabelSet] | None
    received: int | None
    skipped: set[int] | None
    deliveries: list[Delivery] | None
    ended_by: str
    deferred: list[Event] | None
    generations: list[Generation] | None = None
    expires: float | None = None
    copied: bool = False
    hold: Hold | None = None


class Shape(Struct, frozen=True):
    """How histograms are kept: what is restored fits into no others."""

    runtime_bounds: Sequence[float]
    wait_bounds: Sequence[float]
    native: bool


class Sums(Struct):
    """The sums that are of no key."""

    negative_waits: int
    exceptions_folded: int
    events: Mapping[str, int]
    fallbacks: Mapping[str, int]
    refused: Mapping[str, int]
    folded: int
    evicted: int
    repeated: Mapping[str, int]
    reconciled: Mapping[str, int]


class Changes(Struct):
    """What changed in a cluster up to a moment; `gone_…` have what is not there any more."""

    at: Timestamp
    sums: Sums
    shape: Shape | None = None  # None: as before, as with what follows
    cells: list[tuple[LabelSet, Aggregate]] = []
    gone_cells: list[LabelSet] = []
    tasks: list[TaskMemory] = []
    gone_tasks: list[str] = []
    workers: list[Worker] = []  # without their profiles
    gone_workers: list[str] = []
    profiles: dict[str, WorkerInfo] = {}  # by worker
    queues: list[Queue] = []
    gone_queues: list[str] = []
    ends: list[End] = []
    shadows: dict[str, str] | None = None


class Recorder:
    """Tells what changed in a cluster from one time to the next: at first, all but the tasks.

    Not thread-safe: for whoever holds the cluster's lock.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._at = -math.inf
        self._cells: Mapping[LabelSet, Aggregate] = {}
        self._workers: dict[str, bytes] = {}
        self._purged = [*cluster.purged]  # that an earlier process forgot; what this one does is told as gone
        self._profiles: dict[str, WorkerInfo] = {}
        self._queues: dict[str, bytes] = {}
        self._shadows: dict[str, str] = {}
        cluster.tasks.changed = set()

    def changes(self, now: Timestamp) -> Changes:
        """Return what changed; it shares with the cluster, so encode it before that goes on."""
        cluster = self._cluster
        aggregates = cluster.aggregates
        shape = Shape(aggregates.runtime_bounds, aggregates.wait_bounds, aggregates.native)
        changes = Changes(now, _sums(cluster), shape if self._at == -math.inf else None)
        before, self._cells = self._cells, aggregates.snapshot()
        # A cell that was changed since the last snapshot is another object.
        changes.cells = [(key, cell) for key, cell in self._cells.items() if before.get(key) is not cell]
        changes.gone_cells = [*(before.keys() - self._cells.keys())]
        self._add_tasks(changes)
        self._add_workers(changes)
        queues = {queue.name: queue for queue in cluster.queues.records()}
        changes.gone_queues = _update(self._queues, queues, changes.queues)
        changes.ends = cluster.ends.since(self._at)
        if cluster.keys.shadows != self._shadows:
            changes.shadows = self._shadows = cluster.keys.shadows.copy()
        self._at = now.listened
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
        bare = {name: msgspec.structs.replace(worker, profile=NO_PROFILE) for name, worker in workers.items()}
        gone, self._purged = self._purged, []
        changes.gone_workers = [*gone, *_update(self._workers, bare, changes.workers)]
        before, self._profiles = self._profiles, {name: each.profile for name, each in workers.items()}
        changes.profiles = {
            name: profile for name, profile in self._profiles.items() if before.get(name) is not profile
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
        exceptions_folded=cluster.aggregates.folded,
        events=cluster.events,
        fallbacks=cluster.fallbacks,
        refused=cluster.refused,
        folded=cluster.keys.folded,
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
        self.cells: dict[LabelSet, Aggregate] = {}
        self.tasks: dict[str, TaskMemory] = {}
        self.workers: dict[str, Worker] = {}
        self.purged: dict[str, None] = {}
        self.profiles: dict[str, WorkerInfo] = {}
        self.queues: dict[str, Queue] = {}
        self.ends: list[End] = []
        self.shadows: dict[str, str] = {}
        self._keys: dict[LabelSet, LabelSet] = {}
        self._names: dict[str, str] = {}

    def take(self, changes: Changes) -> None:
        """Go on with what changed next."""
        self.at, self.sums = changes.at, changes.sums
        self.shape = changes.shape or self.shape
        self.cells.update(changes.cells)
        for task in changes.tasks:
            self.tasks[task.uuid] = self._with_shared(task)
        self.workers.update((worker.name, worker) for worker in changes.workers)
        self.profiles.update(changes.profiles)
        self.queues.update((queue.name, queue) for queue in changes.queues)
        _remove(self.cells, changes.gone_cells)
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
        if task.key is not None:
            task.key = self._keys.setdefault(task.key, task.key)
        for delivery in task.deliveries or ():
            delivery.worker = self._names.setdefault(delivery.worker, delivery.worker)
        return task


def _of_task(task: Task, tasks: TaskTable) -> TaskMemory:
    story = task.tell()
    return TaskMemory(
        task.uuid,
        task.heard,
        None if task.room is tasks.unidentified else task.room.kind.key,
        task.room.place,
        task.since,
        story.sent.get(0),
        {attempt: ready for attempt, ready in story.sent.items() if attempt},
        story.keys,
        story.received,
        story.skipped,
        story.deliveries,
        story.ended_by,
        tasks.deferred.get(task.uuid),
        story.generations,
        tasks.expires.get(task.uuid),
        story.copied,
        tasks.held.get(task.uuid),
    )


def restore(memory: Memory, cluster: Cluster, now: Timestamp) -> None:
    """Put everything back into a cluster that is new; raise ValueError where it does not fit.

    Labels, bounds and limits are today's: sums under a label that is not in use any more are added up without
    it, and histograms over other bounds begin anew, for nobody can tell where their observations belong.
    """
    if memory.at is None or memory.sums is None or memory.shape is None:
        raise ValueError("its beginning is missing")
    aggregates, shift, sums = cluster.aggregates, now.listened - memory.at.listened, memory.sums
    # The rest last, so that it takes no room from a label set that had some.
    for key, cell in sorted(memory.cells.items(), key=lambda pair: pair[0].task_name == OTHER):
        restored = cluster.keys.restore(key)
        cell.clients = cell.clients if cluster.clients else {}
        aggregates.restore(restored, _fitting(cell, memory.shape, aggregates))
        kind = cluster.tasks.kind(cluster.keys.without_worker(restored))
        kind.heard = now.listened  # whether it is idle is seen from now on
    if not cluster.keys.renamed:
        cluster.keys.shadows.update(memory.shadows)
    aggregates.negative_waits, aggregates.folded = sums.negative_waits, sums.exceptions_folded
    cluster.purged.update(dict.fromkeys([*memory.purged][-MAX_WORKERS:]))
    for worker in memory.workers.values():
        worker.profile = memory.profiles.get(worker.name, NO_PROFILE)
        worker.heard += shift
        worker.down_since = None if worker.down_since is None else worker.down_since + shift
        worker.skew_until = now.listened
        worker.idle_since = None  # what it started meanwhile nobody heard
        worker.processes.restore(shift)
        cluster.restore_worker(worker, now)
    shown = (queue for queue in memory.queues.values() if cluster.keys.show_queue(queue.name))
    cluster.queues.restore(shown, shift, now.listened)
    cluster.learn({}, now)  # what these answered before
    cluster.events.update({kind: count for kind, count in sums.events.items() if kind in cluster.events})
    cluster.fallbacks.update(sums.fallbacks)
    cluster.refused.update(sums.refused)
    cluster.repeated.update(sums.repeated)
    cluster.reconciled.update(sums.reconciled)
    for end in memory.ends:
        cluster.ends.note(msgspec.structs.replace(end, listened=end.listened + shift))
    cluster.ends.expire(now.listened)
    cluster.keys.folded, cluster.tasks.evicted = sums.folded, sums.evicted
    _restore_tasks(memory, cluster, shift, max(0.0, now.wall - memory.at.wall), now)


def _restore_tasks(memory: Memory, cluster: Cluster, shift: float, away: float, now: Timestamp) -> None:
    """Put the tasks back, and take each out of the memory, so that they never take their place twice."""
    # A room is in the order in which its tasks were last heard of, and expiry relies on it.
    tasks = sorted(memory.tasks.values(), key=lambda task: task.heard)
    tasks.reverse()  # equal ones, too
    memory.tasks.clear()
    while tasks:
        _restore_task(tasks.pop(), cluster, shift, away, now)
    cluster.tasks.held = dict(sorted(cluster.tasks.held.items(), key=lambda held: held[1].since))  # likewise


def _restore_task(memory: TaskMemory, cluster: Cluster, shift: float, away: float, now: Timestamp) -> None:
    heard = memory.heard + shift - (0.0 if memory.key is None else away)  # its task-sent may be on its way
    if cluster.tasks.get(memory.uuid) is not None or (memory.key is None and not memory.deferred):
        return  # of no use, and harmful; nobody of ours writes such a thing
    room = cluster.tasks.unidentified
    if memory.key is not None:
        room = cluster.tasks.kind(cluster.keys.restore(memory.key)).rooms[memory.state]
    room.kind.heard = max(room.kind.heard, heard)
    task = cluster.tasks.new(memory.uuid, heard, room, memory.since)
    _restore_story(task, memory, cluster)
    if memory.expires is not None:
        cluster.tasks.expires[task.uuid] = memory.expires
    is_old = heard < now.listened - cluster.limits.task_ttl and not memory.deferred  # that has to count yet
    if is_old and not (room.state is not None and cluster.outlives(task, now.wall, {})):
        cluster.tasks.forget(task)
    if memory.deferred:
        hold = memory.hold and Hold(memory.hold.since + shift, memory.hold.was_open)
        cluster.tasks.park(task, memory.deferred, memory.heard + shift, hold)


def _restore_story(task: Task, memory: TaskMemory, cluster: Cluster) -> None:
    deliveries = memory.deliveries or []
    for delivery in deliveries:
        worker = cluster.workers.get(delivery.worker)
        if worker is not None:
            delivery.worker = worker.name  # one object for all its tasks
            delivery.pid = worker.task_pid if delivery.pid == worker.task_pid else delivery.pid
    keys = memory.keys and {attempt: cluster.keys.restore(key) for attempt, key in memory.keys.items()}
    sent = ({} if memory.ready is None else {0: memory.ready}) | (memory.resent or {})
    skipped, generations = memory.skipped or None, memory.generations or None
    task.story = TaskHistory(sent, memory.received, deliveries, memory.ended_by, skipped, keys, generations)
    task.story.copied = memory.copied
    task.fold()


def _fitting(cell: Aggregate, shape: Shape, aggregates: Aggregates) -> Aggregate:
    """Return the cell with today's histograms; raise ValueError if they are not as the file says of all."""
    if any((each.native is not None) != shape.native for each in _histograms(cell)):
        raise ValueError("a histogram is not native as the others are")
    waits = [each for each in (cell.queue_wait, cell.prefetch_wait, cell.latency) if each is not None]
    for found, bounds in ((cell.runtime.values(), shape.runtime_bounds), (waits, shape.wait_bounds)):
        if any(len(each.counts) != len(bounds) + 1 for each in found):
            raise ValueError("a histogram does not have the buckets that it should")
    new = aggregates.native and not shape.native  # nobody knows how large what was observed was
    ran = None if new else _places(shape.runtime_bounds, aggregates.runtime_bounds)
    waited = None if new else _places(shape.wait_bounds, aggregates.wait_bounds)
    cell.runtime = {} if ran is None else {state: each.thinned(ran) for state, each in cell.runtime.items()}
    cell.queue_wait = cell.queue_wait.thinned(waited) if cell.queue_wait and waited else None
    cell.prefetch_wait = cell.prefetch_wait.thinned(waited) if cell.prefetch_wait and waited else None
    cell.latency = cell.latency.thinned(waited) if cell.latency and waited else None
    for histogram in _histograms(cell):
        histogram.exemplars = {} if aggregates.exemplars else None
        histogram.native = histogram.native if aggregates.native else None
    return cell


def _places(before: Sequence[float], now: Sequence[float]) -> list[int] | None:
    """Return to which of today's buckets those before go; None if today's are finer, or others."""
    if not set(now) <= set(before):
        return None
    return places(before, now)


def _histograms(cell: Aggregate) -> list[Histogram]:
    waits = (cell.queue_wait, cell.prefetch_wait, cell.latency)
    return [each for each in (*cell.runtime.values(), *waits) if each is not None]
