"""What has to outlast a restart, as plain values: taken from cluster and ledger, put back into a new one.

Moments of the listening clock mean nothing to the next process, so they are stored beside the clock's own
reading, and shifted when they are put back. The time between is not silence: nobody listened. Only unfinished
tasks grow older meanwhile, for --task-ttl is about them, not about us.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from celery_exporter.core.cluster import Cluster
from celery_exporter.core.events import Event
from celery_exporter.core.histograms import Histogram, places
from celery_exporter.core.ledger import Cell, Ledger
from celery_exporter.core.queues import Queue
from celery_exporter.core.repeats import End
from celery_exporter.core.tasks import Delivery, Generation, Hold, Story, Task, TaskTable
from celery_exporter.core.words import OTHER, Key, Moment, State
from celery_exporter.core.workers import Worker


class TaskMemory(Struct, array_like=True, gc=False):
    """A task; `state` is how it ended for one that is finished, `key` None for one not introduced yet."""

    uuid: str
    heard: float
    key: Key | None
    state: State | None
    since: float
    ready: float | None
    resent: dict[int, float] | None
    keys: dict[int, Key] | None
    received: int | None
    skipped: set[int] | None
    deliveries: list[Delivery] | None
    ended_by: str
    parked: list[Event] | None
    generations: list[Generation] | None = None
    expires: float | None = None
    copied: bool = False
    hold: Hold | None = None


class ClusterMemory(Struct):
    """Everything but the tasks, of which there may be so many that they are taken a part at a time."""

    at: Moment
    runtime_bounds: Sequence[float]
    wait_bounds: Sequence[float]
    cells: list[tuple[Key, Cell]]
    negative_waits: int
    exceptions_folded: int
    workers: list[Worker]
    queues: list[Queue | str]  # files of earlier builds hold bare names
    events: Mapping[str, int]
    fallbacks: Mapping[str, int]
    refused: Mapping[str, int]
    folded: int
    evicted: int
    native: bool = False  # do histograms count natively, too
    repeated: Mapping[str, int] = {}
    reconciled: Mapping[str, int] = {}
    shadows: Mapping[str, str] = {}
    ends: list[End] = []


def of_cluster(cluster: Cluster, now: Moment) -> ClusterMemory:
    """Return what is to be remembered; it shares with the cluster, so encode it before that goes on."""
    ledger = cluster.ledger
    return ClusterMemory(
        at=now,
        runtime_bounds=ledger.runtime_bounds,
        wait_bounds=ledger.wait_bounds,
        native=ledger.native,
        cells=list(ledger.snapshot().items()),
        negative_waits=ledger.negative_waits,
        exceptions_folded=ledger.folded,
        workers=list(cluster.workers.values()),
        queues=list(cluster.queues.records()),
        events=cluster.events,
        fallbacks=cluster.fallbacks,
        refused=cluster.refused,
        folded=cluster.keys.folded,
        evicted=cluster.tasks.evicted,
        repeated=cluster.repeated,
        reconciled=cluster.reconciled,
        shadows=cluster.keys.shadows,
        ends=list(cluster.ends),
    )


def of_tasks(cluster: Cluster, uuids: Iterable[str]) -> list[TaskMemory]:
    """Return what is to be remembered of these tasks, as far as they are still there; shared, as above."""
    found = map(cluster.tasks.get, uuids)
    return [_of_task(task, cluster.tasks) for task in found if task is not None]


def _of_task(task: Task, tasks: TaskTable) -> TaskMemory:
    story = task.tell()
    return TaskMemory(
        task.uuid,
        task.heard,
        None if task.room is tasks.limbo else task.room.kind.key,
        task.room.place,
        task.since,
        story.sent.get(0),
        {attempt: ready for attempt, ready in story.sent.items() if attempt},
        story.keys,
        story.received,
        story.skipped,
        story.deliveries,
        story.ended_by,
        tasks.parked.get(task.uuid),
        story.generations,
        tasks.expires.get(task.uuid),
        story.copied,
        tasks.held.get(task.uuid),
    )


def restore(memory: ClusterMemory, tasks: Iterable[TaskMemory], cluster: Cluster, now: Moment) -> None:
    """Put everything back into a cluster that is new; raise ValueError where it does not fit.

    Labels, bounds and limits are today's: sums under a label that is not in use any more are added up without
    it, and histograms over other bounds begin anew, for nobody can tell where their observations belong.
    """
    ledger, shift = cluster.ledger, now.listened - memory.at.listened
    # The rest last, so that it takes no room from a label set that had some.
    for key, cell in sorted(memory.cells, key=lambda pair: pair[0].task_name == OTHER):
        restored = cluster.keys.restore(key)
        cell.clients = cell.clients if cluster.clients else {}
        ledger.restore(restored, _fitting(cell, memory, ledger))
        kind = cluster.tasks.kind(cluster.keys.without_worker(restored))
        kind.heard = now.listened  # whether it is idle is seen from now on
    if not cluster.keys.renamed:
        cluster.keys.shadows.update(memory.shadows)
    ledger.negative_waits, ledger.folded = memory.negative_waits, memory.exceptions_folded
    for worker in memory.workers:
        worker.heard += shift
        worker.down_since = None if worker.down_since is None else worker.down_since + shift
        worker.skew_until = now.listened
        worker.idle_since = None  # what it started meanwhile nobody heard
        worker.processes.restore(worker.pid, worker.processed, shift, now)
        cluster.restore_worker(worker, now)
    shown = (
        each
        for each in memory.queues
        if cluster.keys.show_queue(each if isinstance(each, str) else each.name)
    )
    cluster.queues.restore(shown, shift, now.listened)
    cluster.learn({}, now)  # what these answered before
    cluster.events.update({kind: count for kind, count in memory.events.items() if kind in cluster.events})
    cluster.fallbacks.update(memory.fallbacks)
    cluster.refused.update(memory.refused)
    cluster.repeated.update(memory.repeated)
    cluster.reconciled.update(memory.reconciled)
    for end in memory.ends:
        cluster.ends.note(msgspec.structs.replace(end, listened=end.listened + shift))
    cluster.keys.folded, cluster.tasks.evicted = memory.folded, memory.evicted
    away = max(0.0, now.wall - memory.at.wall)
    # A room is in the order in which its tasks were last heard of, and expiry relies on it.
    for task in sorted(tasks, key=lambda task: task.heard):
        _restore_task(task, cluster, shift, away, now)
    cluster.tasks.held = dict(sorted(cluster.tasks.held.items(), key=lambda held: held[1].since))  # likewise


def _restore_task(memory: TaskMemory, cluster: Cluster, shift: float, away: float, now: Moment) -> None:
    heard = memory.heard + shift - (0.0 if memory.key is None else away)  # its task-sent may be on its way
    if cluster.tasks.get(memory.uuid) is not None or (memory.key is None and not memory.parked):
        return  # of no use, and harmful; nobody of ours writes such a thing
    room = cluster.tasks.limbo
    if memory.key is not None:
        room = cluster.tasks.kind(cluster.keys.restore(memory.key)).rooms[memory.state]
    room.kind.heard = max(room.kind.heard, heard)
    task = cluster.tasks.new(memory.uuid, heard, room, memory.since)
    _restore_story(task, memory, cluster)
    if memory.expires is not None:
        cluster.tasks.expires[task.uuid] = memory.expires
    is_old = heard < now.listened - cluster.limits.task_ttl and not memory.parked  # that has to count yet
    if is_old and not (room.state is not None and cluster.outlives(task, now.wall, {})):
        cluster.tasks.forget(task)
    if memory.parked:
        hold = memory.hold and Hold(memory.hold.since + shift, memory.hold.was_open)
        cluster.tasks.park(task, memory.parked, memory.heard + shift, hold)


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
    task.story = Story(sent, memory.received, deliveries, memory.ended_by, skipped, keys, generations)
    task.story.copied = memory.copied
    task.fold()


def _fitting(cell: Cell, memory: ClusterMemory, ledger: Ledger) -> Cell:
    """Return the cell with today's histograms; raise ValueError if they are not as the file says of all."""
    if any((each.native is not None) != memory.native for each in _histograms(cell)):
        raise ValueError("a histogram is not native as the others are")
    waits = [each for each in (cell.queued, cell.prefetched) if each is not None]
    for found, bounds in ((cell.ran.values(), memory.runtime_bounds), (waits, memory.wait_bounds)):
        if any(len(each.counts) != len(bounds) + 1 for each in found):
            raise ValueError("a histogram does not have the buckets that it should")
    new = ledger.native and not memory.native  # nobody knows how large what was observed was
    ran = None if new else _places(memory.runtime_bounds, ledger.runtime_bounds)
    waited = None if new else _places(memory.wait_bounds, ledger.wait_bounds)
    cell.ran = {} if ran is None else {state: each.thinned(ran) for state, each in cell.ran.items()}
    cell.queued = cell.queued.thinned(waited) if cell.queued and waited else None
    cell.prefetched = cell.prefetched.thinned(waited) if cell.prefetched and waited else None
    for histogram in _histograms(cell):
        histogram.exemplars = {} if ledger.exemplars else None
        histogram.native = histogram.native if ledger.native else None
    return cell


def _places(before: Sequence[float], now: Sequence[float]) -> list[int] | None:
    """Return to which of today's buckets those before go; None if today's are finer, or others."""
    if not set(now) <= set(before):
        return None
    return places(before, now)


def _histograms(cell: Cell) -> list[Histogram]:
    return [each for each in (*cell.ran.values(), cell.queued, cell.prefetched) if each is not None]
