"""The snapshot: an immutable copy of everything that metrics and pages show.

None means unknown: the value is not shown.

Profiles, pages and sinks read a snapshot only. Times are epoch seconds of this machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from celery_exporter.core.aggregates import Aggregate, Failure
from celery_exporter.core.cluster import Cluster
from celery_exporter.core.expected import ExpectedView
from celery_exporter.core.histogram import Histogram
from celery_exporter.core.measurements import Pair, Summary
from celery_exporter.core.reconcile import REASONS
from celery_exporter.core.task_counts import TaskCounts
from celery_exporter.core.task_names import ShownAs
from celery_exporter.core.tasks import TasksInState
from celery_exporter.core.types import EXCLUDED, LabelSet
from celery_exporter.core.workers import Worker

_WorkersByQueue = Mapping[str, Sequence[Worker]]


class WorkerView(Struct, frozen=True):
    """One worker, as celery_worker_* metrics show it. The activity of a worker that is down is None."""

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
    left: bool = False  # it sent worker-offline
    down_for: float | None = None  # listening seconds
    online: float | None = None  # timestamp, by its clock, of its newest worker-online
    queues: Sequence[str] | None = None  # that it consumes, by their shown names
    started_at: float | None = None
    task_counts: TaskCounts | None = None  # by its replies to inspection


class BeatView(Struct, frozen=True):
    """One celery beat, as celery_beat_* metrics show it."""

    name: str
    up: bool
    last_reply: float


class QueueView(Struct, frozen=True):
    """One queue, or several queues that have one name by --queue-name-rule.

    `consumers` is None for a queue that has none and needs none (`QueueTable.needs_consumer`). For several
    queues it is 0 if messages wait in one of them that has no consumer.
    """

    name: str
    length: int | None
    consumers: int | None
    worker_processes: int | None
    oldest: float | None
    workers: int | None
    by_priority: Mapping[int, int] = {}  # length of each step; empty if no other step than 0 was ever in use
    unacked: int | None = None  # messages that workers hold; None unless all queues are known


class JobView(Struct, frozen=True):
    """The last run of one periodic job; `success` is None before its first run."""

    name: str
    success: bool | None
    seconds: float | None
    last_success: float | None
    error: str = ""  # of the last run; empty if it succeeded


#: Upper bounds in seconds of the buckets of `SinkView.durations`.
SINK_DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class SinkView(Struct, frozen=True):
    """The accounts of one sink, in records: all that it got = the sum of `outcomes` + `buffered`."""

    name: str
    address: str  # without secrets
    outcomes: Mapping[str, int]  # by `sinks.base.OUTCOMES`
    lost: int  # of these outcomes: records that could not be delivered
    buffered: int
    limit: int  # of `buffered`
    last_success: float | None
    durations: Histogram  # of requests and writes, in seconds
    error: str = ""  # of the last attempt; empty if it succeeded
    failing_since: float | None = None  # None: the last attempt succeeded


class HistoryView(Struct, frozen=True):
    """The accounts of the history file, in tasks; a task that changes is written again."""

    path: str
    written: int
    dropped: Mapping[str, int]  # by reason: `history.writer.DROPPED`
    errors: int
    last_success: float | None
    tasks: int | None  # in the file; None while it is not open
    size_bytes: int | None
    error: str = ""  # of the last attempt; empty if it succeeded
    failing_since: float | None = None  # None: the last attempt succeeded


class QueueStats(Struct, frozen=True):
    """What a broker reports of a queue. None: this kind of broker does not report it."""

    length: int
    consumers: int | None = None
    oldest_ids: tuple[str, ...] = ()  # uuids of the tasks at the head, one for each priority
    by_priority: Mapping[int, int] = {}  # length of each step
    unacked: int | None = None  # messages that workers hold

    @property
    def has_priorities(self) -> bool:
        """Return whether messages wait in another step than 0, that of messages without a priority."""
        return any(length and step for step, length in self.by_priority.items())


class OutageView(Struct, frozen=True):
    """Since when no event can be received, and why. `error` is that of the broker, empty before any."""

    since: float  # of the last sign of life, or when the exporter was started
    error: str  # without secrets


class ConfigFileView(Struct, frozen=True):
    """Whether --config.file was valid when it was read last, and when it was (epoch seconds)."""

    is_valid: bool
    loaded: float


class ExporterState(Struct, frozen=True):
    """The state of this exporter and of its connection to the broker."""

    at: float
    started: float  # when this exporter was started
    version: str
    broker_up: bool
    queue_stats: Mapping[str, QueueStats]
    unacked: int | None
    workers_known: bool  # workers were inspected, and have replied
    jobs: Sequence[JobView]
    malformed: Mapping[str, int]
    event_lag: float | None
    last_event: float | None
    reconnects: int
    state_errors: Mapping[str, int]  # by operation; empty without a state file
    web_config_up_to_date: bool | None = None  # None without a file
    listening: float = 0.0  # seconds for which the event subscription was open
    last_refused: float | None = None  # time of the newest event in a serializer that is not accepted
    unmeasured: Collection[str] = ()  # queues that workers consume and that the broker reported no value for
    missing: Collection[str] = ()  # queues that do not exist on the broker
    blocked: str | None = None  # why the broker blocks publishers; empty: it does not; None: unknown
    no_events: str = ""  # why events cannot arrive on this transport; empty: they can
    sinks: Sequence[SinkView] = ()
    refused_replies: Collection[str] = ()  # serializers of inspection replies that are not accepted
    history: HistoryView | None = None  # None without a history file
    outage: OutageView | None = None  # None: the event subscription is open, or there can be none
    config_file: ConfigFileView | None = None  # None without one
    subscribed: float | None = None  # when it was opened last; None: never, or events do not get lost between
    active: bool | None = None  # whether the broker sends events to this replica; None: there is no other one
    event_queue: str = ""  # the durable queue, of which one replica is active; empty without one
    task_counts: Mapping[str, TaskCounts] = {}  # by worker
    duplicates: int = 0  # messages of a durable queue that were dropped, since they had been received before
    shards: int = 1  # exporters that each keep a part of the tasks
    shard: str = ""  # this one of them, as --shard has it; empty without


class Snapshot(Struct, frozen=True):
    """The cluster and this exporter at one time."""

    exporter: ExporterState
    runtime_bounds: Sequence[float]
    wait_bounds: Sequence[float]
    aggregates: Mapping[LabelSet, Aggregate]
    measurements: Mapping[Pair, Summary]  # of tasks themselves, by task name and field
    tasks: Sequence[TasksInState]
    #: Tasks that were received and not started, by label set and worker; None: not counted.
    prefetched: Mapping[tuple[LabelSet, str], int] | None
    failures: Sequence[Failure]  # newest first
    workers: Sequence[WorkerView]
    beats: Sequence[BeatView]
    expected: Sequence[ExpectedView]  # as of the last time that events were received
    queues: Sequence[QueueView]
    unconsumed: Mapping[str, int | None]  # length of each queue that needs a consumer and has none
    requested: Collection[str]  # names of queues that the configuration requests
    queue_names: int  # number of queues before --queue-name-rule
    queue_table_full: bool
    events: Mapping[str, int]
    fallbacks: Mapping[str, int]
    limit_rejections: Mapping[str, int]
    reconciled: Mapping[str, int]  # tasks that were ended or requeued without an event, by reason
    repeated: Mapping[str, int]  # events that reported an end that is counted already, by type
    tasks_tracked: int
    tasks_evicted: int
    negative_waits: int
    series: int
    series_overflowed: int


def take_snapshot(cluster: Cluster, exporter: ExporterState, *, prefetched: bool = False) -> Snapshot:
    """Return a copy of everything that is shown; it can be read without the lock.

    `prefetched` says whether to count the tasks that workers have prefetched, which scans them.
    """
    aggregates = cluster.aggregates
    workers_by_queue = _workers_by_queue(cluster, exporter)
    return Snapshot(
        exporter=exporter,
        runtime_bounds=aggregates.runtime_bounds,
        wait_bounds=aggregates.wait_bounds,
        aggregates=_shown(aggregates.snapshot()),
        measurements=cluster.measurements.snapshot(),
        tasks=[group for group in cluster.tasks.in_states() if group.label_set != EXCLUDED],
        prefetched=cluster.prefetched() if prefetched else None,
        failures=list(reversed(aggregates.failures)),
        workers=[
            worker_view(
                worker,
                exporter.listening,
                cluster.label_sets.show_queue,
                exporter.task_counts.get(worker.name),
            )
            for worker in cluster.workers.values()
        ],
        beats=[BeatView(beat.name, beat.up, beat.last_reply) for beat in cluster.beats.by_name.values()],
        expected=cluster.expected.views,
        queues=_queue_views(cluster, exporter, workers_by_queue),
        unconsumed=_unconsumed(cluster, exporter, workers_by_queue),
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
        series_overflowed=cluster.label_sets.overflowed
        + aggregates.overflowed
        + cluster.measurements.overflowed,
    )


def _shown(aggregates: dict[LabelSet, Aggregate]) -> dict[LabelSet, Aggregate]:
    aggregates.pop(EXCLUDED, None)
    return aggregates


def _workers_by_queue(cluster: Cluster, exporter: ExporterState) -> dict[str, list[Worker]] | None:
    """Return the workers of each queue; None while the queues of any worker that is up are unknown."""
    up = [worker for worker in cluster.workers.values() if worker.up]
    if not exporter.workers_known or any(worker.info.queues is None for worker in up):
        return None
    workers_by_queue: dict[str, list[Worker]] = {}
    for worker in up:
        for name in worker.info.queues or ():
            workers_by_queue.setdefault(name, []).append(worker)
    return workers_by_queue


def _unconsumed(
    cluster: Cluster, exporter: ExporterState, workers_by_queue: _WorkersByQueue | None
) -> dict[str, int | None]:
    """Return the length of each queue that needs a consumer and has none, by its own name."""
    return {
        name: stats.length if (stats := exporter.queue_stats.get(name)) else None
        for name in _shown_names(cluster, exporter)
        if _consumers(name, cluster, exporter, workers_by_queue) == 0
    }


def _shown_names(cluster: Cluster, exporter: ExporterState) -> list[str]:
    """Return the names of the queues that are shown: those that exist, as far as is known."""
    names = {*cluster.queues.names(), *exporter.queue_stats}
    existing = (name for name in names if name in exporter.queue_stats or name not in exporter.missing)
    return sorted(filter(cluster.label_sets.show_queue, existing))


def _queue_views(
    cluster: Cluster, exporter: ExporterState, workers_by_queue: _WorkersByQueue | None
) -> list[QueueView]:
    names_by_label: dict[str, list[str]] = {}
    for name in _shown_names(cluster, exporter):
        names_by_label.setdefault(cluster.label_sets.show_queue(name) or "", []).append(name)
    return [
        _queue_view(label, names, cluster, exporter, workers_by_queue)
        for label, names in sorted(names_by_label.items())
    ]


def _queue_view(
    label: str,
    names: list[str],
    cluster: Cluster,
    exporter: ExporterState,
    workers_by_queue: _WorkersByQueue | None,
) -> QueueView:
    queue_stats = [exporter.queue_stats[name] for name in names if name in exporter.queue_stats]
    oldest_tasks = (cluster.tasks.get(uuid) for stats in queue_stats for uuid in stats.oldest_ids)
    waiting_since = (task.waiting_since for task in oldest_tasks if task)
    consumers = [_consumers(name, cluster, exporter, workers_by_queue) for name in names]
    has_messages = [name in exporter.queue_stats and exporter.queue_stats[name].length > 0 for name in names]
    if any(waits and count == 0 for waits, count in zip(has_messages, consumers, strict=True)):
        consumers = [0]
    workers = None
    if workers_by_queue is not None:  # a worker that consumes several of these queues is one worker
        workers = {worker.name: worker for name in names for worker in workers_by_queue.get(name, ())}
    return QueueView(
        label,
        _sum_of_known(stats.length for stats in queue_stats),
        _sum_of_known(consumers),
        _processes(workers.values()) if workers is not None else None,
        min((at for at in waiting_since if at is not None), default=None),
        None if workers is None else len(workers),
        _by_priority(names, queue_stats, cluster),
        _unacked(names, exporter),
    )


def _by_priority(
    names: Iterable[str], queue_stats: Iterable[QueueStats], cluster: Cluster
) -> Mapping[int, int]:
    """Return the length of each step, so that these add up to the length; empty if only step 0 was used."""
    lengths: dict[int, int] = {}
    if any(map(cluster.queues.is_prioritized, names)):
        for stats in queue_stats:
            for step, length in stats.by_priority.items():
                lengths[step] = lengths.get(step, 0) + length
    return lengths


def _unacked(names: Iterable[str], exporter: ExporterState) -> int | None:
    """Return how many messages of these queues workers hold, None unless it is known of all of them."""
    total = 0
    for name in names:
        stats = exporter.queue_stats.get(name)
        if stats is None or stats.unacked is None:
            return None
        total += stats.unacked
    return total


def _consumers(
    name: str, cluster: Cluster, exporter: ExporterState, workers_by_queue: _WorkersByQueue | None
) -> int | None:
    """Return the number of consumers of a queue, by the broker or else by the workers."""
    stats = exporter.queue_stats.get(name)
    consumers = stats.consumers if stats else None
    if consumers is None and workers_by_queue is not None:
        consumers = len(workers_by_queue.get(name, ()))
    if not consumers and not cluster.queues.needs_consumer(name):
        return None
    return consumers


def _processes(workers: Iterable[Worker]) -> int | None:
    sizes = [worker.info.pool_size for worker in workers]
    return None if None in sizes else sum(size for size in sizes if size)


def _sum_of_known(values: Iterable[int | None]) -> int | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) if numbers else None


def worker_view(
    worker: Worker, listening: float, show_queue: ShownAs = str, task_counts: TaskCounts | None = None
) -> WorkerView:
    """Return a worker as it is shown; `listening` is the current listening time."""
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
        online=worker.online or None,
        queues=None if info.queues is None else sorted({*filter(None, map(show_queue, info.queues))}),
        started_at=info.started_at if worker.up and not worker.is_shared else None,
        task_counts=task_counts if worker.up else None,
    )
