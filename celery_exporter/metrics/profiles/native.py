"""The native profile: names that follow Prometheus' conventions and Celery's words.

States are those of celery.states. A metric name is API: whoever changes one writes into CHANGELOG.md what
users have to edit.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from celery_exporter.core.aggregates import Aggregate
from celery_exporter.core.snapshot import JobView, QueueView, Snapshot, WorkerView
from celery_exporter.core.types import LabelSet, State
from celery_exporter.metrics.model import TASK_LABELS, MetricFamily, MetricOptions, Profile, add, of_each

#: By State: what an enum's member is called takes long to ask for each sample.
STATES = tuple(state.name for state in State)
_LASTING = (State.SUCCESS, State.FAILURE)


#: prometheus_client's bounds thinned out, and minutes added, for tasks.
RUNTIME_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Waits go on for longer: a backlog of an hour is still told from one of ten minutes.
WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)


def rows(shape: MetricOptions) -> list[MetricFamily]:
    """Return the table, without what the exporter tells of itself."""
    return [*_task_rows(shape), *_WORKER_ROWS, *_QUEUE_ROWS]


def _task_rows(shape: MetricOptions) -> list[MetricFamily]:
    return [
        _transitions(shape),
        _failures(shape),
        runtime(shape),
        _wait(
            shape,
            "queue",
            "From sent (or eta) to started; absent for tasks whose task-sent nobody published.",
            attrgetter("queue_wait"),
            absent="No such task was started yet, or nobody publishes task-sent "
            "(task_send_sent_event is off in the clients).",
            example="histogram_quantile(0.95, sum by (queue_name, le) "
            "(rate(celery_task_queue_wait_seconds_bucket[5m])))",
        ),
        _wait(
            shape,
            "prefetch",
            "From received by a worker (or eta) to started by it.",
            attrgetter("prefetch_wait"),
            absent="No such task was started yet.",
            example="sum by (task_name) (rate(celery_task_prefetch_wait_seconds_sum[5m])) / "
            "sum by (task_name) (rate(celery_task_prefetch_wait_seconds_count[5m]))",
        ),
        _now(shape),
        _OLDEST,
        _LAST,
        _redeliveries(shape),
    ]


def task_labels(shape: MetricOptions) -> tuple[str, ...]:
    """Return the labels of rows about tasks, of which task_name is the first."""
    return "task_name", *(label for label in TASK_LABELS if label in shape.task_labels)


def values_of(labels: tuple[str, ...]) -> Callable[[LabelSet], tuple[str, ...]]:
    """Return what gives the values of these labels, of which task_name is the first."""
    if len(labels) == 1:  # attrgetter of one name gives no tuple
        return lambda key: (key.task_name,)
    return attrgetter(*labels)


def _transitions(shape: MetricOptions) -> MetricFamily:
    task = task_labels(shape)
    values = values_of(task)
    return MetricFamily(
        "celery_tasks_total",
        "counter",
        "Transitions of tasks into a state; PENDING is sent.",
        ("state", *task),
        lambda snapshot: (
            ((state, *of_key), count)
            for key, aggregate in snapshot.aggregates.items()
            for of_key in [values(key)]
            for state, count in zip(STATES, aggregate.transitions, strict=True)
        ),
        merge=add if shape.needs_merge else None,
        absent="No event has named the task and no worker that answers has registered "
        "it; from then on each state is there, at 0 to begin with.",
        example="sum by (task_name, state) (rate(celery_tasks_total[5m]))",
    )


def _failures(shape: MetricOptions) -> MetricFamily:
    task = task_labels(shape)
    values = values_of(task)
    return MetricFamily(
        "celery_task_failures_total",
        "counter",
        "Failed tasks by class of the exception.",
        (*task, "exception"),
        lambda snapshot: (
            ((*values(key), exception), count)
            for key, aggregate in snapshot.aggregates.items()
            for exception, count in aggregate.exceptions.items()
        ),
        merge=add if shape.needs_merge else None,
        absent="The task has not failed with that exception yet.",
        example="topk(10, sum by (task_name, exception) (increase(celery_task_failures_total[1h])))",
    )


def runtime(shape: MetricOptions) -> MetricFamily:
    """Return the histogram of run times."""
    task = task_labels(shape)
    values = values_of(task)
    return MetricFamily(
        "celery_task_runtime_seconds",
        "histogram",
        "Run time of an execution that ended in SUCCESS, FAILURE or RETRY.",
        (*task, "state"),
        lambda snapshot: (
            ((*values(key), STATES[state]), histogram)
            for key, aggregate in snapshot.aggregates.items()
            for state, histogram in aggregate.runtime.items()
        ),
        merge=add if shape.needs_merge else None,
        bounds=attrgetter("runtime_bounds"),
        buckets=shape.buckets or RUNTIME_BUCKETS,
        absent="No execution of the task has ended in that state yet.",
        example="histogram_quantile(0.95, sum by (task_name, le) "
        "(rate(celery_task_runtime_seconds_bucket[5m])))",
    )


def _wait(  # noqa: PLR0913  a row has so many cells
    shape: MetricOptions,
    name: str,
    help_: str,
    which: Callable[[Aggregate], object],
    *,
    absent: str = "",
    example: str = "",
) -> MetricFamily:
    task = task_labels(shape)
    values = values_of(task)
    return MetricFamily(
        f"celery_task_{name}_wait_seconds",
        "histogram",
        help_,
        task,
        lambda snapshot: (
            (values(key), histogram)
            for key, aggregate in snapshot.aggregates.items()
            if (histogram := which(aggregate)) is not None
        ),
        merge=add if shape.needs_merge else None,
        bounds=attrgetter("wait_bounds"),
        buckets=shape.queue_wait_buckets or WAIT_BUCKETS,
        absent=absent,
        example=example,
    )


def _now(shape: MetricOptions) -> MetricFamily:
    labels = tuple(label for label in task_labels(shape) if label != "worker")  # which a gauge does not know
    values = values_of(labels)
    return MetricFamily(
        "celery_tasks_in_flight",
        "gauge",
        "Tasks that are in a state now.",
        ("state", *labels),
        lambda snapshot: (
            ((STATES[group.state], *values(group.label_set)), group.count) for group in snapshot.tasks
        ),
        merge=add if shape.needs_merge else None,
        absent="The task is not known yet.",
        example='sum by (task_name) (celery_tasks_in_flight{state="STARTED"})',
    )


_OLDEST = MetricFamily(
    "celery_task_oldest_timestamp_seconds",
    "gauge",
    "Since when the oldest task in a state is in it; absent while there is none.",
    ("state", "task_name"),
    lambda snapshot: (
        ((STATES[group.state], group.label_set.task_name), group.since)
        for group in snapshot.tasks
        if group.since is not None
    ),
    merge=min,
    absent="No task of that name is in that state.",
    example='time() - celery_task_oldest_timestamp_seconds{state="STARTED"} > 3600',
)
_LAST = MetricFamily(
    "celery_task_last_timestamp_seconds",
    "gauge",
    "When a task last entered SUCCESS or FAILURE; absent until one does.",
    ("state", "task_name"),
    lambda snapshot: (
        ((STATES[state], key.task_name), aggregate.last[state])
        for key, aggregate in snapshot.aggregates.items()
        for state in _LASTING
        if state in aggregate.last
    ),
    merge=max,
    absent="The task has not entered that state since the exporter began, or since its state file did.",
    example='time() - max by (task_name) (celery_task_last_timestamp_seconds{state="SUCCESS"}) > 86400',
)


def _redeliveries(shape: MetricOptions) -> MetricFamily:
    task = task_labels(shape)
    values = values_of(task)
    return MetricFamily(
        "celery_task_redeliveries_total",
        "counter",
        "Tasks received again in the same attempt (worker lost, requeued, visibility timeout).",
        task,
        lambda snapshot: (
            (values(key), aggregate.redeliveries) for key, aggregate in snapshot.aggregates.items()
        ),
        merge=add if shape.needs_merge else None,
        absent="The task is not known yet.",
        example="sum by (task_name) (increase(celery_task_redeliveries_total[1h])) > 0",
    )


def _worker(  # noqa: PLR0913  a row has so many cells
    name: str,
    type_: str,
    help_: str,
    field: Callable[[WorkerView], float | None],
    *,
    has_external_baseline: bool = False,
    absent: str = "",
    example: str = "",
) -> MetricFamily:
    """Return a row with one sample a worker, where the field is known."""
    return MetricFamily(
        f"celery_worker_{name}",
        type_,  # type: ignore[arg-type]
        help_,
        ("worker",),
        of_each("workers", field),
        has_external_baseline=has_external_baseline,
        absent=absent,
        example=example,
    )


WORKER_UP = MetricFamily(
    "celery_worker_up",
    "gauge",
    "1 while the worker is heard, 0 from its goodbye or --worker-timeout on until it is purged.",
    ("worker", "hostname"),
    lambda snapshot: (
        ((worker.name, worker.name.partition("@")[2]), worker.up) for worker in snapshot.workers
    ),
    absent="The worker was never heard, or was down for longer than --purge-offline-worker-metrics.",
    example="celery_worker_up == 0",
)


def _workers_online(snapshot: Snapshot) -> list[tuple[tuple[str, ...], float]]:
    """Return how many workers are up: nothing where they cannot be heard, and none was heard before."""
    exporter = snapshot.exporter
    is_deaf = exporter.blocked or not exporter.listening
    if exporter.no_events or (is_deaf and not snapshot.workers):
        return []
    return [((), sum(worker.up for worker in snapshot.workers))]


_WORKER_ROWS = [
    MetricFamily(
        "celery_workers_online",
        "gauge",
        "Workers that are up.",
        (),
        _workers_online,
        absent="No event can arrive on this transport; or none could since the exporter started: the broker "
        "was not reached, or blocked all publishers.",
        example="celery_workers_online == 0",
    ),
    WORKER_UP,
    _worker(
        "active_tasks",
        "gauge",
        "Tasks the worker executes now, as it says; absent when it is down.",
        attrgetter("active"),
        absent="The worker is down, or its heartbeats do not tell.",
        example="sum(celery_worker_active_tasks) / sum(celery_worker_pool_max or celery_worker_pool_size)",
    ),
    _worker(
        "pool_size",
        "gauge",
        "Tasks the worker can execute at once, as its pool is now; absent when it is down.",
        attrgetter("pool_size"),
        absent="The worker is down, or has not answered when asked (a busy solo worker does not).",
        example="sum(celery_worker_pool_size)",
    ),
    _worker(
        "pool_max",
        "gauge",
        "Tasks the worker can execute at once when its autoscaler has grown the pool to the limit.",
        attrgetter("pool_max"),
        absent="The worker has no --autoscale (its limit is celery_worker_pool_size), is down, or has not "
        "answered when asked.",
        example="celery_worker_pool_max or celery_worker_pool_size",
    ),
    _worker(
        "prefetch_limit",
        "gauge",
        "Messages the worker takes ahead; absent when it has no limit.",
        attrgetter("prefetch_count"),
        absent="The worker is down, has not answered when asked, or has no limit.",
        example="celery_worker_prefetch_limit > 100",
    ),
    _worker(
        "processed_tasks_total",
        "counter",
        "Tasks accepted by the worker's pool, as it counts them, over restarts that were seen.",
        attrgetter("processed_total"),
        has_external_baseline=True,
        absent="The worker was never heard, or is forgotten.",
        example="sum by (worker) (rate(celery_worker_processed_tasks_total[5m]))",
    ),
    _worker(
        "restarts_total",
        "counter",
        "Restarts of the worker (its pid changed).",
        attrgetter("restarts"),
        absent="The worker was never heard, or is forgotten.",
        example="increase(celery_worker_restarts_total[1h]) > 3",
    ),
    MetricFamily(
        "celery_worker_load_average",
        "gauge",
        "Load average of the worker's host.",
        ("worker", "window"),
        lambda snapshot: (
            ((worker.name, window), load)
            for worker in snapshot.workers
            for window, load in zip(("1m", "5m", "15m"), worker.loadavg or (), strict=False)
        ),
        absent="The worker is down, or its heartbeats do not tell.",
        example='celery_worker_load_average{window="5m"}',
    ),
    _worker(
        "last_heartbeat_timestamp_seconds",
        "gauge",
        "When the worker's newest heartbeat was heard, by this exporter's clock.",
        attrgetter("heartbeat"),
        absent="No heartbeat of the worker has come (--without-heartbeat).",
        example="time() - celery_worker_last_heartbeat_timestamp_seconds",
    ),
    _worker(
        "clock_skew_seconds",
        "gauge",
        "The worker's clock minus this exporter's, by its least delayed heartbeat.",
        attrgetter("clock_skew"),
        absent="No heartbeat of the worker has come.",
        example="abs(celery_worker_clock_skew_seconds) > 5",
    ),
    _worker(
        "max_resident_memory_bytes",
        "gauge",
        "Largest resident set the worker's main process has had.",
        attrgetter("max_resident_bytes"),
        absent="The worker has not answered when asked, or its platform does not tell.",
        example="topk(5, celery_worker_max_resident_memory_bytes)",
    ),
    MetricFamily(
        "celery_worker_info",
        "gauge",
        "1, with what the worker says of itself.",
        ("worker", "software", "version", "system", "pool"),
        lambda snapshot: (
            ((worker.name, worker.software, worker.version, worker.system, worker.pool or ""), 1)
            for worker in snapshot.workers
        ),
        absent="The worker was never heard, or is forgotten.",
        example="count by (software, version) (celery_worker_info)",
    ),
    _worker(
        "task_events_enabled",
        "gauge",
        "1 when the worker sends task events, 0 when it runs tasks without; absent until one is proved.",
        attrgetter("events"),
        absent="Nothing proves it yet: no task event, and no task that ran without one.",
        example="celery_worker_task_events_enabled == 0",
    ),
]


def _queue(
    name: str, help_: str, field: Callable[[QueueView], float | None], *, absent: str = "", example: str = ""
) -> MetricFamily:
    """Return a row with one sample a queue, where the field is known."""
    return MetricFamily(
        f"celery_queue_{name}",
        "gauge",
        help_,
        ("queue_name",),
        of_each("queues", field),
        absent=absent,
        example=example,
    )


QUEUE_LENGTH = _queue(
    "length",
    "Messages waiting in the queue, all priorities; absent when it could not be read.",
    attrgetter("length"),
    absent="The queue does not exist (one of --queues is 0 then), is exclusive, or could not be read; the "
    "log says which.",
    example="celery_queue_length > 1000",
)
_QUEUE_ROWS = [
    QUEUE_LENGTH,
    _queue(
        "consumers",
        "Consumers of the queue.",
        attrgetter("consumers"),
        absent="Where the broker does not count them (Redis), not all workers have said what they consume; "
        "or the queue has none and needs none (auto-delete, broadcast, reply, delayed delivery).",
        example="celery_queue_length > 0 and celery_queue_consumers == 0",
    ),
    _queue(
        "worker_processes",
        "Tasks that the queue's consuming workers can execute at once, as their pools are now.",
        attrgetter("worker_processes"),
        absent="Not all workers have said what they consume and how large their pools are.",
        example="celery_queue_length / (celery_queue_worker_processes > 0)",
    ),
    _queue(
        "oldest_timestamp_seconds",
        "When the message at the head of the queue was sent; absent where this is not known.",
        attrgetter("oldest"),
        absent="The queue is empty, the broker is not Redis, or nobody published "
        "task-sent for the message at its head.",
        example="time() - celery_queue_oldest_timestamp_seconds > 900",
    ),
    MetricFamily(
        "celery_broker_up",
        "gauge",
        "1 while the event subscription is open and answers.",
        (),
        lambda snapshot: [] if snapshot.exporter.no_events else [((), snapshot.exporter.broker_up)],
        absent="No event can arrive on this transport.",
        example="celery_broker_up == 0",
    ),
    MetricFamily(
        "celery_broker_blocked",
        "gauge",
        "1 while the broker blocks publishers (RabbitMQ: memory or disk alarm): no event can be sent.",
        (),
        lambda snapshot: [] if snapshot.exporter.blocked is None else [((), bool(snapshot.exporter.blocked))],
        absent="The broker is not RabbitMQ, or does not answer.",
        example="celery_broker_blocked == 1",
    ),
    MetricFamily(
        "celery_broker_unacked_messages",
        "gauge",
        "Messages that workers hold and have not acknowledged, of all queues (Redis only).",
        (),
        lambda snapshot: [] if snapshot.exporter.unacked is None else [((), snapshot.exporter.unacked)],
        absent="The broker is not Redis, or the hash may not be read.",
        example="celery_broker_unacked_messages",
    ),
]


def _counts(  # noqa: PLR0913  a row has so many cells
    name: str,
    help_: str,
    label: str,
    field: Callable[[Snapshot], dict[str, int]],
    *,
    absent: str = "",
    example: str = "",
) -> MetricFamily:
    """Return a counter row from a mapping of label value → count."""
    return MetricFamily(
        f"celery_exporter_{name}_total",
        "counter",
        help_,
        (label,),
        lambda snapshot: (((value,), count) for value, count in field(snapshot).items()),
        absent=absent,
        example=example,
    )


def _self(  # noqa: PLR0913  a row has so many cells
    name: str,
    type_: str,
    help_: str,
    field: Callable[[Snapshot], float | None],
    *,
    absent: str = "",
    example: str = "",
) -> MetricFamily:
    """Return a row with one sample, without labels, where the field is known."""
    return MetricFamily(
        f"celery_exporter_{name}",
        type_,  # type: ignore[arg-type]
        help_,
        (),
        lambda snapshot: [] if (value := field(snapshot)) is None else [((), value)],
        absent=absent,
        example=example,
    )


def _collector(
    name: str,
    help_: str,
    field: Callable[[JobView], float | None],
    *,
    absent: str = "",
    example: str = "",
) -> MetricFamily:
    """Return a row with one sample a collector, where the field is known."""
    return MetricFamily(
        f"celery_exporter_collector_{name}",
        "gauge",
        help_,
        ("collector",),
        of_each("exporter.jobs", field),
        absent=absent,
        example=example,
    )


#: What the exporter tells of itself, whichever profiles are on.
EXPORTER_ROWS = [
    MetricFamily(
        "celery_exporter_build_info",
        "gauge",
        "1, with the exporter's version.",
        ("version",),
        lambda snapshot: [((snapshot.exporter.version,), 1)],
        example="count by (version) (celery_exporter_build_info)",
    ),
    _counts(
        "events",
        "Events applied, by type; an application's own are other.",
        "kind",
        attrgetter("events"),
        example="sum by (kind) (rate(celery_exporter_events_total[5m]))",
    ),
    _counts(
        "events_malformed",
        "Events that could not be used, by reason.",
        "reason",
        attrgetter("exporter.malformed"),
        example="sum by (reason) (increase(celery_exporter_events_malformed_total[1h])) > 0",
    ),
    _counts(
        "events_repeated",
        "Events by which a worker reported the end of one execution again; they are counted once.",
        "kind",
        attrgetter("repeated"),
        example="sum by (kind) (increase(celery_exporter_events_repeated_total[1h])) > 0",
    ),
    MetricFamily(
        "celery_exporter_events_missed_total",
        "counter",
        "Started events that a worker must have sent, by its processed count, and that never came. "
        "Stands still for workers that have tasks with send_events off.",
        ("worker",),
        lambda snapshot: (((worker.name,), worker.missed) for worker in snapshot.workers),
        absent="The worker was never heard, or is forgotten.",
        example="sum by (worker) (increase(celery_exporter_events_missed_total[1h])) > 0",
    ),
    _self(
        "event_lag_seconds",
        "gauge",
        "Age of the newest event when it was read, by its sender's clock (so its skew is in it).",
        attrgetter("exporter.event_lag"),
        absent="No event has come yet.",
        example="celery_exporter_event_lag_seconds > 10",
    ),
    _self(
        "last_event_timestamp_seconds",
        "gauge",
        "When an event was last read.",
        attrgetter("exporter.last_event"),
        absent="No event has come yet.",
        example="time() - celery_exporter_last_event_timestamp_seconds > 60",
    ),
    _self(
        "reconnects_total",
        "counter",
        "Times the event subscription was opened again.",
        attrgetter("exporter.reconnects"),
        example="increase(celery_exporter_reconnects_total[1h]) > 3",
    ),
    _self(
        "tasks_tracked",
        "gauge",
        "Unfinished tasks in memory.",
        attrgetter("tasks_tracked"),
        example="celery_exporter_tasks_tracked",
    ),
    _self(
        "tasks_evicted_total",
        "counter",
        "Unfinished tasks forgotten for --max-tasks or --task-ttl.",
        attrgetter("tasks_evicted"),
        example="increase(celery_exporter_tasks_evicted_total[1h]) > 0",
    ),
    _counts(
        "tasks_reconciled",
        "Tasks whose state was corrected without an event, by reason. Taken out: message_gone (purged, or "
        "run without events), expired, not_running (its worker does not have it). Waiting again: returned "
        "(its worker said goodbye before it started it).",
        "reason",
        attrgetter("reconciled"),
        example='increase(celery_exporter_tasks_reconciled_total{reason!="returned"}[1h]) > 0',
    ),
    _counts(
        "label_fallbacks",
        "Tasks booked under a stand-in, since the true value of the label was not known in time.",
        "label",
        attrgetter("fallbacks"),
        example="sum by (label) (rate(celery_exporter_label_fallbacks_total[5m]))",
    ),
    _counts(
        "limit_rejections",
        "Times a worker was not taken in, or a queue at the cost of another one, since there are too many.",
        "kind",
        attrgetter("limit_rejections"),
        example="increase(celery_exporter_limit_rejections_total[1h]) > 0",
    ),
    _counts(
        "state_file_errors",
        "Times --state-file could not be read or written.",
        "operation",
        attrgetter("exporter.state_errors"),
        absent="There is no --state-file.",
        example="increase(celery_exporter_state_file_errors_total[1h]) > 0",
    ),
    _self(
        "web_config_up_to_date",
        "gauge",
        "1 while what --web.config.file says is in force, 0 while it cannot be used and an older one is.",
        attrgetter("exporter.web_config_up_to_date"),
        absent="There is no --web.config.file.",
        example="celery_exporter_web_config_up_to_date == 0",
    ),
    _self(
        "negative_waits_total",
        "counter",
        "Waits below 0, counted as 0 s: two clocks differ, or task-sent was written after the start.",
        attrgetter("negative_waits"),
        example="rate(celery_exporter_negative_waits_total[5m]) > 0",
    ),
    _self(
        "series",
        "gauge",
        "Label sets of task metrics in memory, each of which makes several series.",
        attrgetter("series"),
        example="celery_exporter_series",
    ),
    _self(
        "series_overflow_total",
        "counter",
        "Times a task name, or an exception, was counted as other, since --max-series were taken.",
        attrgetter("series_overflowed"),
        example="increase(celery_exporter_series_overflow_total[1h]) > 0",
    ),
    _collector(
        "success",
        "1 when the collector's last run succeeded.",
        attrgetter("success"),
        absent="The collector has not run yet.",
        example="celery_exporter_collector_success == 0",
    ),
    _collector(
        "duration_seconds",
        "Duration of the collector's last run.",
        attrgetter("seconds"),
        absent="The collector has not run yet.",
        example="celery_exporter_collector_duration_seconds > 5",
    ),
    _collector(
        "last_success_timestamp_seconds",
        "When the collector last succeeded.",
        attrgetter("last_success"),
        absent="The collector has not succeeded yet.",
        example="time() - celery_exporter_collector_last_success_timestamp_seconds > 120",
    ),
]


PROFILE = Profile(
    name="native",
    about="Prometheus' conventions and Celery's words; what dashboards and alerts here are made for",
    rows=rows,
    labels=attrgetter("task_labels"),
    buckets=RUNTIME_BUCKETS,
    queue_wait_buckets=WAIT_BUCKETS,
)
