"""An immutable copy of everything that is shown, at one moment. Times are epoch seconds of our clock.

Whoever renders (a profile, a page, a sink) sees this and nothing else. None means: not known, so not shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from celery_exporter.core.aggregates import Aggregate, Failure
from celery_exporter.core.cluster import Cluster
from celery_exporter.core.reconcile import REASONS
from celery_exporter.core.tasks import TasksInState
from celery_exporter.core.types import EXCLUDED, LabelSet
from celery_exporter.core.workers import Worker


class WorkerView(Struct, frozen=True):
    """One worker, as celery_worker_* metrics show it. What it does now is not known of one that is down."""

    name: str
    up: bool
    active: int | None
    processed_total: int
    restarts: int
    missed: int
    loadavg: tuple[float, float, float] | None
    heartbeat: float | None
    clock_skew: float | None
    events: bool | None
    software: str
    version: str
    system: str
    pool: str | None
    pool_size: int | None
    prefetch_count: int | None
    max_resident_bytes: int | None
    pool_max: int | None = None
    shared: bool = False  # several processes use this name
    left: bool = False  # it said goodbye
    down_for: float | None = None  # seconds of listening


class QueueView(Struct, frozen=True):
    """One queue, as the broker and the workers told it; or several that have one name by --queue-name-rule.

    `consumers` is None of one that needs none (`QueueTable.needs_consumer`) and has none. Of several queues
    it is 0 if messages wait in one of them that has none.
    """

    name: str
    length: int | None
    consumers: int | None
    worker_processes: int | None
    oldest: float | None
    workers: int | None


class JobView(Struct, frozen=True):
    """How one background collector fares; `success` is None until it has run once."""

    name: str
    success: bool | None
    seconds: float | None
    last_success: float | None
    error: str = ""  # why it failed the last time; empty if it did not


class QueueStats(Struct, frozen=True):
    """What a broker says that a queue holds. None: this kind of broker does not tell."""

    length: int
    consumers: int | None = None
    oldest_ids: tuple[str, ...] = ()  # uuids of the tasks at the head, one for each priority


class ExporterState(Struct, frozen=True):
    """What is not of the cluster: the broker, this exporter, the time."""

    at: float
    started: float  # when this exporter began
    version: str
    broker_up: bool
    queue_stats: Mapping[str, QueueStats]
    unacked: int | None
    workers_known: bool  # workers were asked, and answered
    jobs: Sequence[JobView]
    malformed: Mapping[str, int]
    event_lag: float | None
    last_event: float | None
    reconnects: int
    state_errors: Mapping[str, int]  # by operation; empty without a state file
    web_config_up_to_date: bool | None  # None without a file
    listening: float = (
        0.0  # seconds for which the event subscription was open: what is not known may yet come
    )
    last_refused: float | None = None  # when an event in a serialiser that is not accepted was last read
    unmeasured: Collection[str] = ()  # queues that workers consume, and of which the broker did not tell
    missing: Collection[str] = ()  # queues that the broker says it does not have
    blocked: str | None = None  # why the broker blocks publishers; empty: it does not; None: it does not tell
    no_events: str = ""  # why no event can arrive on this transport; empty: they can
    refused_answers: Collection[str] = ()  # serialisers of answers to inspection that are not accepted


class Snapshot(Struct, frozen=True):
    """The cluster and this exporter, at one moment."""

    exporter: ExporterState
    runtime_bounds: Sequence[float]
    wait_bounds: Sequence[float]
    aggregates: Mapping[LabelSet, Aggregate]
    tasks: Sequence[TasksInState]
    prefetched: (
        Mapping[tuple[LabelSet, str], int] | None
    )  # received and not started, by worker; None: not counted
    failures: Sequence[Failure]  # some of the newest, the newest first
    workers: Sequence[WorkerView]
    queues: Sequence[QueueView]
    unconsumed: Mapping[str, int | None]  # length of each queue that needs a consumer and has none
    requested: Collection[str]  # names of queues that were asked for
    queue_names: int  # known, before they are called something else
    queue_table_full: bool
    events: Mapping[str, int]
    fallbacks: Mapping[str, int]
    limit_rejections: Mapping[str, int]
    reconciled: Mapping[str, int]  # tasks by the reason for which they were taken out without an event
    repeated: Mapping[str, int]  # events by type that told once more what was counted already
    tasks_tracked: int
    tasks_evicted: int
    negative_waits: int
    series: int
    series_overflowed: int


def take_snapshot(cluster: Cluster, exporter: ExporterState, *, prefetched: bool = False) -> Snapshot:
    """Return a copy of everything, for which nobody needs the lock any more.

    What workers have `prefetched` is told if it is asked for, since each of these tasks is looked at for it.
    """
    aggregates = cluster.aggregates
    serving = _serving(cluster, exporter)
    return Snapshot(
        exporter=exporter,
        runtime_bounds=aggregates.runtime_bounds,
        wait_bounds=aggregates.wait_bounds,
        aggregates=_shown(aggregates.snapshot()),
        tasks=[group for group in cluster.tasks.in_states() if group.label_set != EXCLUDED],
        prefetched=cluster.prefetched() if prefetched else None,
        failures=list(reversed(aggregates.failures)),
        workers=[_worker_view(worker, exporter.listening) for worker in cluster.workers.values()],
        queues=_queue_views(cluster, exporter, serving),
        unconsumed=_unconsumed(cluster, exporter, serving),
        requested=cluster.queues.requested,
        queue_names=len(cluster.queues),
        queue_table_full=cluster.queues.is_full,
        events=dict(cluster.events),
        fallbacks=dict(cluster.fallbacks),
        limit_rejections=dict(cluster.limit_rejections),
        reconciled={reason: cluster.reconciled[reason] for reason in REASONS},
        repeated=dict(cluster.repeated),
        tasks_tracked=len(cluster.tasks),
        tasks_evicted=cluster.tasks.evicted,
        negative_waits=aggregates.negative_waits,
        series=len(cluster.label_sets),
        series_overflowed=cluster.label_sets.overflowed + aggregates.overflowed,
    )


def _shown(aggregates: dict[LabelSet, Aggregate]) -> dict[LabelSet, Aggregate]:
    aggregates.pop(EXCLUDED, None)
    return aggregates


def _serving(cluster: Cluster, exporter: ExporterState) -> dict[str, list[Worker]] | None:
    """Return the workers of each queue; None while one did not say yet which queues it consumes."""
    up = [worker for worker in cluster.workers.values() if worker.up]
    if not exporter.workers_known or any(worker.info.queues is None for worker in up):
        return None
    serving: dict[str, list[Worker]] = {}
    for worker in up:
        for name in worker.info.queues or ():
            serving.setdefault(name, []).append(worker)
    return serving


def _unconsumed(
    cluster: Cluster, exporter: ExporterState, serving: Mapping[str, Sequence[Worker]] | None
) -> dict[str, int | None]:
    """Return the length of each queue that needs a consumer and has none, by its real name."""
    found: dict[str, int | None] = {}
    for name in _shown_names(cluster, exporter):
        depth = exporter.queue_stats.get(name)
        length = depth.length if depth else None
        if _consumers(name, cluster, exporter, serving) == 0:
            found[name] = length
    return found


def _shown_names(cluster: Cluster, exporter: ExporterState) -> list[str]:
    """Return the names of the queues that are shown, and are there as far as is known."""
    names = {*cluster.queues.names(), *exporter.queue_stats}
    there = (name for name in names if name in exporter.queue_stats or name not in exporter.missing)
    return sorted(filter(cluster.label_sets.show_queue, there))


def _queue_views(
    cluster: Cluster, exporter: ExporterState, serving: Mapping[str, Sequence[Worker]] | None
) -> list[QueueView]:
    labels: dict[str, list[str]] = {}  # the names of the queues that are shown as one
    for name in _shown_names(cluster, exporter):
        labels.setdefault(cluster.label_sets.show_queue(name) or "", []).append(name)
    return [_queue_view(label, names, cluster, exporter, serving) for label, names in sorted(labels.items())]


def _queue_view(
    label: str,
    names: list[str],
    cluster: Cluster,
    exporter: ExporterState,
    serving: Mapping[str, Sequence[Worker]] | None,
) -> QueueView:
    queue_stats = [exporter.queue_stats[name] for name in names if name in exporter.queue_stats]
    heads = (cluster.tasks.get(uuid) for depth in queue_stats for uuid in depth.oldest_ids)
    sent = (task.waiting_since for task in heads if task)
    consumers = [_consumers(name, cluster, exporter, serving) for name in names]
    waiting = [name in exporter.queue_stats and exporter.queue_stats[name].length > 0 for name in names]
    if any(there and each == 0 for there, each in zip(waiting, consumers, strict=True)):
        consumers = [0]
    workers = None
    if serving is not None:  # a worker that consumes several of these queues is one worker
        workers = {worker.name: worker for name in names for worker in serving.get(name, ())}
    return QueueView(
        label,
        _sum_of_known(depth.length for depth in queue_stats),
        _sum_of_known(consumers),
        _processes(workers.values()) if workers is not None else None,
        min((at for at in sent if at is not None), default=None),
        None if workers is None else len(workers),
    )


def _consumers(
    name: str, cluster: Cluster, exporter: ExporterState, serving: Mapping[str, Sequence[Worker]] | None
) -> int | None:
    """Return how many consumers a queue has, by the broker or else by the workers."""
    depth = exporter.queue_stats.get(name)
    consumers = depth.consumers if depth else None
    if consumers is None and serving is not None:
        consumers = len(serving.get(name, ()))
    if not consumers and not cluster.queues.needs_consumer(name):
        return None
    return consumers


def _processes(workers: Iterable[Worker]) -> int | None:
    sizes = [worker.info.pool_size for worker in workers]
    return None if None in sizes else sum(size for size in sizes if size)


def _sum_of_known(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _worker_view(worker: Worker, listening: float) -> WorkerView:
    info = worker.info
    return WorkerView(
        name=worker.name,
        up=worker.up,
        active=worker.active if worker.up else None,
        processed_total=worker.processed_total,
        restarts=worker.restarts,
        missed=worker.missed,
        loadavg=worker.loadavg if worker.up else None,
        heartbeat=worker.heartbeat,
        clock_skew=worker.clock_skew,
        events=worker.events,
        software=worker.software,
        version=worker.version,
        system=worker.system,
        pool=info.pool,
        pool_size=info.pool_size if worker.up else None,
        pool_max=info.pool_max if worker.up else None,
        prefetch_count=info.prefetch_count if worker.up else None,
        max_resident_bytes=info.max_resident_bytes,
        shared=worker.is_shared,
        left=worker.left,
        down_for=None if worker.down_since is None else listening - worker.down_since,
    )
