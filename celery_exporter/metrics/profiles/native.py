"""The native profile: names that follow Prometheus' conventions and Celery's terms.

States are those of celery.states. A metric name is API: for each change of one, CHANGELOG.md says what users
have to edit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter

from celery_exporter.core.aggregates import Aggregate
from celery_exporter.core.expected import ExpectedView
from celery_exporter.core.snapshot import (
    SINK_DURATION_BUCKETS,
    ConfigFileView,
    JobView,
    QueueView,
    Snapshot,
    WorkerView,
)
from celery_exporter.core.task_counts import TaskCounts
from celery_exporter.core.types import LabelSet, State
from celery_exporter.metrics.model import TASK_LABELS, MetricFamily, MetricOptions, Profile, add, of_each

#: The names of the states, by State. Reading the name of an enum member for each sample takes too long.
STATES = tuple(state.name for state in State)
_TIMED_STATES = (State.SUCCESS, State.FAILURE)
#: The state whose counts are unknown without task-sent events: then it has no sample.
_SENT = STATES[State.PENDING]


#: When metrics of sinks have no sample.
_NO_SINK = "No sink is on."
_NO_HISTORY_FILE = "--history-file is not set."

#: Seconds: some of prometheus_client's bounds, and minutes, which tasks may take.
RUNTIME_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Seconds, up to an hour: they distinguish a backlog of an hour from one of ten minutes.
WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)


def rows(options: MetricOptions) -> list[MetricFamily]:
    """Return the rows of this profile, without those about the exporter itself."""
    return [*_task_rows(options), *_WORKER_ROWS, *_BEAT_ROWS, *_EXPECTED_ROWS, *_QUEUE_ROWS]


def _task_rows(options: MetricOptions) -> list[MetricFamily]:
    return [
        _transitions(options),
        _failures(options),
        _task_sum(
            options,
            "retries_exceeded",
            "Failed tasks whose retries were exceeded: Task.retry (also of autoretry_for) found max_retries "
            "reached.",
            attrgetter("retries_exceeded"),
            absent="No event has named the task yet.",
            example="sum by (task_name) (increase(celery_task_retries_exceeded_total[1h])) > 0",
        ),
        runtime(options),
        _task_sum(
            options,
            "execution_seconds",
            "Seconds for which executions that ended kept a slot of a worker busy, however they ended.",
            attrgetter("execution_seconds"),
            absent="No event has named the task yet.",
            example="topk(10, sum by (task_name) (rate(celery_task_execution_seconds_total[1h])))",
        ),
        _wait(
            options,
            "queue",
            "Time from sent (or eta) to started. Absent if the client publishes no task-sent events.",
            attrgetter("queue_wait"),
            absent="No such task has started yet, or its clients publish no task-sent events "
            "(task_send_sent_event is off).",
            example="histogram_quantile(0.95, sum by (queue_name, le) "
            "(rate(celery_task_queue_wait_seconds_bucket[5m])))",
        ),
        _wait(
            options,
            "prefetch",
            "Time from received by a worker (or eta) to started by it.",
            attrgetter("prefetch_wait"),
            absent="No such task has started yet.",
            example="sum by (task_name) (rate(celery_task_prefetch_wait_seconds_sum[5m])) / "
            "sum by (task_name) (rate(celery_task_prefetch_wait_seconds_count[5m]))",
        ),
        _in_flight(options),
        _OLDEST,
        _LAST,
        _task_sum(
            options,
            "redeliveries",
            "Tasks received again in the same attempt (worker lost, requeued, visibility timeout passed).",
            attrgetter("redeliveries"),
            absent="No event has named the task yet.",
            example="sum by (task_name) (increase(celery_task_redeliveries_total[1h])) > 0",
        ),
        _MEASUREMENT,
    ]


def task_labels(options: MetricOptions) -> tuple[str, ...]:
    """Return the labels of rows about tasks; task_name is the first."""
    return "task_name", *(label for label in TASK_LABELS if label in options.task_labels)


def values_of(labels: tuple[str, ...]) -> Callable[[LabelSet], tuple[str, ...]]:
    """Return a function that reads the values of these labels; task_name is the first."""
    if len(labels) == 1:  # attrgetter with one name returns no tuple
        return lambda label_set: (label_set.task_name,)
    return attrgetter(*labels)


def _transitions(options: MetricOptions) -> MetricFamily:
    task = task_labels(options)
    values = values_of(task)
    return MetricFamily(
        "celery_tasks_total",
        "counter",
        "Transitions of tasks into a state; PENDING means sent, and is absent without task-sent events.",
        ("state", *task),
        lambda snapshot: (
            ((state, *task_values), count)
            for label_set, aggregate in snapshot.aggregates.items()
            for task_values in [values(label_set)]
            for state, count in zip(STATES, aggregate.transitions, strict=True)
            if count or state != _SENT
        ),
        merge=add if options.needs_merge else None,
        absent="No event has named the task, and no worker that replies to inspection has registered it. "
        "After that every state has a series, starting at 0, but PENDING only from the first task-sent event "
        "of these labels on.",
        example="sum by (task_name, state) (rate(celery_tasks_total[5m]))",
    )


def _failures(options: MetricOptions) -> MetricFamily:
    task = task_labels(options)
    values = values_of(task)
    return MetricFamily(
        "celery_task_failures_total",
        "counter",
        "Failed tasks by exception class.",
        (*task, "exception"),
        lambda snapshot: (
            ((*values(label_set), exception), count)
            for label_set, aggregate in snapshot.aggregates.items()
            for exception, count in aggregate.exceptions.items()
        ),
        merge=add if options.needs_merge else None,
        absent="The task has not failed with that exception yet.",
        example="topk(10, sum by (task_name, exception) (increase(celery_task_failures_total[1h])))",
    )


def runtime(options: MetricOptions) -> MetricFamily:
    """Return the row of the run time histogram."""
    task = task_labels(options)
    values = values_of(task)
    return MetricFamily(
        "celery_task_runtime_seconds",
        "histogram",
        "Run time of executions that ended in SUCCESS, FAILURE or RETRY.",
        (*task, "state"),
        lambda snapshot: (
            ((*values(label_set), STATES[state]), histogram)
            for label_set, aggregate in snapshot.aggregates.items()
            for state, histogram in aggregate.runtime.items()
        ),
        merge=add if options.needs_merge else None,
        bounds=attrgetter("runtime_bounds"),
        buckets=options.buckets or RUNTIME_BUCKETS,
        absent="No execution of the task has ended in that state yet.",
        example="histogram_quantile(0.95, sum by (task_name, le) "
        "(rate(celery_task_runtime_seconds_bucket[5m])))",
    )


def _wait(  # noqa: PLR0913  a row has as many columns
    options: MetricOptions,
    name: str,
    help_: str,
    histogram_of: Callable[[Aggregate], object],
    *,
    absent: str = "",
    example: str = "",
) -> MetricFamily:
    task = task_labels(options)
    values = values_of(task)
    return MetricFamily(
        f"celery_task_{name}_wait_seconds",
        "histogram",
        help_,
        task,
        lambda snapshot: (
            (values(label_set), histogram)
            for label_set, aggregate in snapshot.aggregates.items()
            if (histogram := histogram_of(aggregate)) is not None
        ),
        merge=add if options.needs_merge else None,
        bounds=attrgetter("wait_bounds"),
        buckets=options.queue_wait_buckets or WAIT_BUCKETS,
        absent=absent,
        example=example,
    )


def _in_flight(options: MetricOptions) -> MetricFamily:
    labels = tuple(label for label in task_labels(options) if label != "worker")  # buckets have no worker
    values = values_of(labels)
    return MetricFamily(
        "celery_tasks_in_flight",
        "gauge",
        "Unfinished tasks by current state.",
        ("state", *labels),
        lambda snapshot: (
            ((STATES[group.state], *values(group.label_set)), group.count)
            for group in snapshot.tasks
            if group.count or group.state is not State.PENDING or _is_sent_known(snapshot, group.label_set)
        ),
        merge=add if options.needs_merge else None,
        absent="No event has named the task yet. PENDING also until a task-sent event of these labels was "
        "received, unless a task has returned to its queue.",
        example='sum by (task_name) (celery_tasks_in_flight{state="STARTED"})',
    )


def _is_sent_known(snapshot: Snapshot, label_set: LabelSet) -> bool:
    aggregate = snapshot.aggregates.get(label_set)
    return aggregate is not None and aggregate.sent is not None


_OLDEST = MetricFamily(
    "celery_task_oldest_timestamp_seconds",
    "gauge",
    "Time at which the oldest task in a state entered it. Absent while no task is in the state.",
    ("state", "task_name"),
    lambda snapshot: (
        ((STATES[group.state], group.label_set.task_name), group.since)
        for group in snapshot.tasks
        if group.since is not None
    ),
    merge=min,
    absent="No task of that name is in the state.",
    example='time() - celery_task_oldest_timestamp_seconds{state="STARTED"} > 3600',
)
_LAST = MetricFamily(
    "celery_task_last_timestamp_seconds",
    "gauge",
    "Time at which a task last entered SUCCESS or FAILURE. Absent until one does.",
    ("state", "task_name"),
    lambda snapshot: (
        ((STATES[state], label_set.task_name), aggregate.last[state])
        for label_set, aggregate in snapshot.aggregates.items()
        for state in _TIMED_STATES
        if state in aggregate.last
    ),
    merge=max,
    absent="No task of that name has entered the state since the exporter, or its state file, started.",
    example='time() - max by (task_name) (celery_task_last_timestamp_seconds{state="SUCCESS"}) > 86400',
)


_MEASUREMENT = MetricFamily(
    "celery_task_measurement",
    "summary",
    "Numbers that tasks measured themselves (celery_exporter.instrumentation), except those below 0.",
    ("task_name", "field"),
    lambda snapshot: snapshot.measurements.items(),
    absent="No task of that name has measured the field.",
    example="sum by (task_name, field) (rate(celery_task_measurement_sum[5m])) / "
    "sum by (task_name, field) (rate(celery_task_measurement_count[5m]))",
)


def _task_sum(  # noqa: PLR0913  a row has as many columns
    options: MetricOptions,
    name: str,
    help_: str,
    value: Callable[[Aggregate], float],
    *,
    absent: str = "",
    example: str = "",
) -> MetricFamily:
    """Return a counter row with one sample for each label set."""
    task = task_labels(options)
    values = values_of(task)
    return MetricFamily(
        f"celery_task_{name}_total",
        "counter",
        help_,
        task,
        lambda snapshot: (
            (values(label_set), value(aggregate)) for label_set, aggregate in snapshot.aggregates.items()
        ),
        merge=add if options.needs_merge else None,
        absent=absent,
        example=example,
    )


def _worker(  # noqa: PLR0913  a row has as many columns
    name: str,
    type_: str,
    help_: str,
    field: Callable[[WorkerView], float | None],
    *,
    has_external_baseline: bool = False,
    absent: str = "",
    example: str = "",
) -> MetricFamily:
    """Return a row with one sample for each worker whose field is known."""
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
    "1 while the worker sends events; 0 after worker-offline or --worker-timeout, until it is removed.",
    ("worker", "hostname"),
    lambda snapshot: (
        ((worker.name, worker.name.partition("@")[2]), worker.up) for worker in snapshot.workers
    ),
    absent="The worker has sent no event, or was down for longer than --purge-offline-worker-metrics.",
    example="celery_worker_up == 0",
)


def _workers_online(snapshot: Snapshot) -> list[tuple[tuple[str, ...], float]]:
    """Return how many workers are up; no sample if events cannot arrive and no worker is known."""
    exporter = snapshot.exporter
    cannot_receive = exporter.blocked or not exporter.listening
    if exporter.no_events or (cannot_receive and not snapshot.workers):
        return []
    return [((), sum(worker.up for worker in snapshot.workers))]


_WORKER_ROWS = [
    MetricFamily(
        "celery_workers_online",
        "gauge",
        "Workers that are up.",
        (),
        _workers_online,
        absent="This transport delivers no events; or the exporter has received none since its start because "
        "the broker is unreachable or blocks publishers.",
        example="celery_workers_online == 0",
    ),
    WORKER_UP,
    _worker(
        "active_tasks",
        "gauge",
        "Tasks that the worker reports as executing. Absent while it is down.",
        attrgetter("active"),
        absent="The worker is down, or its heartbeats do not include it.",
        example="sum(celery_worker_active_tasks) / sum(celery_worker_pool_max or celery_worker_pool_size)",
    ),
    MetricFamily(
        "celery_worker_inspected_tasks",
        "gauge",
        "Tasks of the worker by its replies to celery inspect: scheduled (eta not reached), reserved (neither"
        " scheduled nor active) or active.",
        ("worker", "command"),
        lambda snapshot: (
            ((worker.name, command), getattr(worker.task_counts, command))
            for worker in snapshot.workers
            if worker.task_counts is not None
            for command in TaskCounts.__struct_fields__
        ),
        absent="The worker is down, or has not replied in the last three rounds (a busy solo worker cannot). "
        "Or its reply has more than 32 MiB. Tasks that wait because of a rate limit are in no reply.",
        example='sum by (worker) (celery_worker_inspected_tasks{command="scheduled"})',
    ),
    _worker(
        "pool_size",
        "gauge",
        "Tasks that the worker can execute at once with its current pool. Absent while it is down.",
        attrgetter("pool_size"),
        absent="The worker is down, or has not replied to inspection (a busy solo worker cannot).",
        example="sum(celery_worker_pool_size)",
    ),
    _worker(
        "pool_max",
        "gauge",
        "Tasks that the worker can execute at once after its autoscaler has grown the pool to the limit.",
        attrgetter("pool_max"),
        absent="The worker runs without --autoscale (its limit is celery_worker_pool_size), is down, or has "
        "not replied to inspection.",
        example="celery_worker_pool_max or celery_worker_pool_size",
    ),
    _worker(
        "prefetch_limit",
        "gauge",
        "Messages that the worker may prefetch. Absent if it has no limit.",
        attrgetter("prefetch_count"),
        absent="The worker is down, has not replied to inspection, or has no limit.",
        example="celery_worker_prefetch_limit > 100",
    ),
    _worker(
        "processed_tasks_total",
        "counter",
        "Tasks accepted by the worker's pool, by its own count, added up over observed restarts.",
        attrgetter("processed_total"),
        has_external_baseline=True,
        absent="The worker has sent no event, or was removed.",
        example="sum by (worker) (rate(celery_worker_processed_tasks_total[5m]))",
    ),
    _worker(
        "restarts_total",
        "counter",
        "Restarts of the worker (its pid changed).",
        attrgetter("restarts"),
        absent="The worker has sent no event, or was removed.",
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
        absent="The worker is down, or its heartbeats do not include it.",
        example='celery_worker_load_average{window="5m"}',
    ),
    _worker(
        "last_heartbeat_timestamp_seconds",
        "gauge",
        "Time at which the worker's newest heartbeat was received, by the exporter's clock.",
        attrgetter("heartbeat"),
        absent="No heartbeat of the worker was received (--without-heartbeat).",
        example="time() - celery_worker_last_heartbeat_timestamp_seconds",
    ),
    _worker(
        "start_timestamp_seconds",
        "gauge",
        "Time at which the worker was started, by its uptime and the exporter's clock.",
        attrgetter("started_at"),
        absent="The worker is down, has not replied to inspection, or several processes use its name.",
        example="time() - celery_worker_start_timestamp_seconds > 7 * 86400",
    ),
    _worker(
        "clock_skew_seconds",
        "gauge",
        "The worker's clock minus the exporter's clock, by its least delayed heartbeat.",
        attrgetter("clock_skew"),
        absent="No heartbeat of the worker was received.",
        example="abs(celery_worker_clock_skew_seconds) > 5",
    ),
    _worker(
        "max_resident_memory_bytes",
        "gauge",
        "Largest resident set size of the worker's main process so far.",
        attrgetter("max_resident_bytes"),
        absent="The worker has not replied to inspection, or its platform does not report it.",
        example="topk(5, celery_worker_max_resident_memory_bytes)",
    ),
    MetricFamily(
        "celery_worker_info",
        "gauge",
        "Constant 1, with the worker's software, version, system and pool as labels.",
        ("worker", "software", "version", "system", "pool"),
        lambda snapshot: (
            ((worker.name, worker.software, worker.version, worker.system, worker.pool or ""), 1)
            for worker in snapshot.workers
        ),
        absent="The worker has sent no event, or was removed.",
        example="count by (software, version) (celery_worker_info)",
    ),
    _worker(
        "task_events_enabled",
        "gauge",
        "1 if the worker sends task events, 0 if it runs tasks without them. Absent while this is unknown.",
        attrgetter("events"),
        absent="The worker has sent no task event, and has run no task without one.",
        example="celery_worker_task_events_enabled == 0",
    ),
]


#: When metrics of beats have no sample.
_NO_BEAT = "No beat has replied: it is older than Celery 5.7, or beat_enable_remote_control is off."

_BEAT_ROWS = [
    MetricFamily(
        "celery_beat_up",
        "gauge",
        "1 while the beat replies to ping, as it does while its scheduler ticks; 0 after three pings.",
        ("worker",),
        of_each("beats", attrgetter("up")),
        absent=_NO_BEAT,
        example="sum by (job) (celery_beat_up) == 0",
    ),
    MetricFamily(
        "celery_beat_last_reply_timestamp_seconds",
        "gauge",
        "Time at which the beat replied last.",
        ("worker",),
        of_each("beats", attrgetter("last_reply")),
        absent=_NO_BEAT,
        example="time() - celery_beat_last_reply_timestamp_seconds",
    ),
]


def _expected(name: str, help_: str, field: Callable[[ExpectedView], float], example: str) -> MetricFamily:
    """Return a row with a sample for each expected task, for its sendings and for its successes."""
    return MetricFamily(
        f"celery_task_{name}",
        "gauge",
        help_,
        ("task_name", "state"),
        lambda snapshot: (((view.name, STATES[view.state]), field(view)) for view in snapshot.expected),
        absent="`expected` in --config.file does not have the task, or the exporter has not listened yet.",
        example=example,
    )


_EXPECTED_ROWS = [
    _expected(
        "overdue",
        "1 if an expected task was not sent (PENDING), or did not succeed (SUCCESS), within its grace after "
        "the time at which it was due. Does not change while no events can arrive.",
        attrgetter("overdue"),
        example="min by (job, task_name, state) (celery_task_overdue) == 1",
    ),
    _expected(
        "next_expected_timestamp_seconds",
        "First time, by its schedule, at which an expected task is due after it was sent (PENDING) or "
        "succeeded (SUCCESS) last; in the past if that has not happened since. Its grace is not included.",
        attrgetter("due"),
        example="time() - max by (job, task_name, state) (celery_task_next_expected_timestamp_seconds) > 0",
    ),
]


def _queue(
    name: str, help_: str, field: Callable[[QueueView], float | None], *, absent: str = "", example: str = ""
) -> MetricFamily:
    """Return a row with one sample for each queue whose field is known."""
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
    "Messages waiting in the queue, of all priorities. Absent if it could not be read.",
    attrgetter("length"),
    absent="The queue does not exist (0 for one of --queues), is exclusive, or could not be read (see the "
    "log).",
    example="celery_queue_length > 1000",
)
_QUEUE_ROWS = [
    QUEUE_LENGTH,
    MetricFamily(
        "celery_queue_priority_length",
        "gauge",
        "Messages waiting in the queue by priority step of Redis; workers take those of step 0 first.",
        ("queue_name", "priority"),
        lambda snapshot: (
            ((queue.name, str(step)), length)
            for queue in snapshot.queues
            for step, length in queue.by_priority.items()
        ),
        absent="No message with a priority has waited in the queue while it was read; or the broker is not "
        "Redis (RabbitMQ reports one length for all priorities). After that every step of priority_steps has "
        "a series.",
        example='sum by (queue_name) (celery_queue_priority_length{priority!="0"})',
    ),
    _queue(
        "unacked_messages",
        "Messages of the queue that were delivered to workers and not acknowledged (Redis only).",
        attrgetter("unacked"),
        absent="The broker is not Redis; the exporter may not read the hash; the hash has more than 10,000 "
        "messages, or more than 4 MiB that are not read yet; or messages may be of one of several queues.",
        example="celery_queue_unacked_messages > 100",
    ),
    _queue(
        "consumers",
        "Consumers of the queue.",
        attrgetter("consumers"),
        absent="The broker does not count consumers (Redis) and not all workers have replied to inspection; "
        "or the queue has none and needs none (auto-delete, broadcast, reply, delayed delivery).",
        example="celery_queue_length > 0 and celery_queue_consumers == 0",
    ),
    _queue(
        "worker_processes",
        "Tasks that the workers consuming the queue can execute at once with their current pools.",
        attrgetter("worker_processes"),
        absent="Not all workers have replied to inspection with their queues and pool sizes.",
        example="celery_queue_length / (celery_queue_worker_processes > 0)",
    ),
    _queue(
        "oldest_timestamp_seconds",
        "Time at which the message at the head of the queue was sent. Absent if this is unknown.",
        attrgetter("oldest"),
        absent="The queue is empty, the broker is not Redis, or no task-sent event was received for the "
        "message at its head.",
        example="time() - celery_queue_oldest_timestamp_seconds > 900",
    ),
    MetricFamily(
        "celery_broker_up",
        "gauge",
        "1 while the event subscription is open and the broker answers on it.",
        (),
        lambda snapshot: [] if snapshot.exporter.no_events else [((), snapshot.exporter.broker_up)],
        absent="This transport delivers no events.",
        example="celery_broker_up == 0",
    ),
    MetricFamily(
        "celery_broker_blocked",
        "gauge",
        "1 while the broker blocks publishers (RabbitMQ memory or disk alarm), so that no event is sent.",
        (),
        lambda snapshot: [] if snapshot.exporter.blocked is None else [((), bool(snapshot.exporter.blocked))],
        absent="The broker is not RabbitMQ, or does not answer.",
        example="celery_broker_blocked == 1",
    ),
    MetricFamily(
        "celery_broker_unacked_messages",
        "gauge",
        "Messages of all queues that were delivered to workers and not acknowledged (Redis only).",
        (),
        lambda snapshot: [] if snapshot.exporter.unacked is None else [((), snapshot.exporter.unacked)],
        absent="The broker is not Redis, or the exporter may not read the hash.",
        example="celery_broker_unacked_messages",
    ),
]


def _counts(  # noqa: PLR0913  a row has as many columns
    name: str,
    help_: str,
    label: str,
    field: Callable[[Snapshot], Mapping[str, int]],
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


def _self(  # noqa: PLR0913  a row has as many columns
    name: str,
    type_: str,
    help_: str,
    field: Callable[[Snapshot], float | None],
    *,
    absent: str = "",
    example: str = "",
) -> MetricFamily:
    """Return a row without labels, with one sample if the field is known."""
    return MetricFamily(
        f"celery_exporter_{name}",
        type_,  # type: ignore[arg-type]
        help_,
        (),
        lambda snapshot: [] if (value := field(snapshot)) is None else [((), value)],
        absent=absent,
        example=example,
    )


def _active(snapshot: Snapshot) -> list[tuple[tuple[str], float]]:
    exporter = snapshot.exporter
    return [] if exporter.active is None else [((exporter.event_queue,), exporter.active)]


def _of_config_file(field: Callable[[ConfigFileView], float]) -> Callable[[Snapshot], float | None]:
    """Return a function that returns a field of the configuration file; None without a file."""
    return lambda snapshot: None if (view := snapshot.exporter.config_file) is None else field(view)


def _collector(
    name: str,
    help_: str,
    field: Callable[[JobView], float | None],
    *,
    absent: str = "",
    example: str = "",
) -> MetricFamily:
    """Return a row with one sample for each periodic job whose field is known."""
    return MetricFamily(
        f"celery_exporter_collector_{name}",
        "gauge",
        help_,
        ("collector",),
        of_each("exporter.jobs", field),
        absent=absent,
        example=example,
    )


_SINK_ROWS = [
    MetricFamily(
        "celery_exporter_sink_records_total",
        "counter",
        "Records of tasks that a sink got, by outcome: delivered, or why the record was dropped.",
        ("sink", "outcome"),
        lambda snapshot: (
            ((sink.name, outcome), count)
            for sink in snapshot.exporter.sinks
            for outcome, count in sink.outcomes.items()
        ),
        absent=_NO_SINK,
        example="sum by (sink, outcome) "
        '(increase(celery_exporter_sink_records_total{outcome!~"delivered|incomplete"}[1h])) > 0',
    ),
    MetricFamily(
        "celery_exporter_sink_buffered_records",
        "gauge",
        "Records of tasks that wait for their sink.",
        ("sink",),
        of_each("exporter.sinks", attrgetter("buffered")),
        absent=_NO_SINK,
        example="max_over_time(celery_exporter_sink_buffered_records[5m])",
    ),
    MetricFamily(
        "celery_exporter_sink_last_success_timestamp_seconds",
        "gauge",
        "Time at which a sink last took records.",
        ("sink",),
        of_each("exporter.sinks", attrgetter("last_success")),
        absent=f"{_NO_SINK} Or it has taken none yet.",
        example="time() - celery_exporter_sink_last_success_timestamp_seconds",
    ),
    MetricFamily(
        "celery_exporter_sink_request_duration_seconds",
        "histogram",
        "Duration of requests to a sink, or of writes to its file, failed ones included.",
        ("sink",),
        of_each("exporter.sinks", attrgetter("durations")),
        bounds=lambda _: SINK_DURATION_BUCKETS,
        absent=_NO_SINK,
        example="histogram_quantile(0.95, sum by (sink, le) "
        "(rate(celery_exporter_sink_request_duration_seconds_bucket[5m])))",
    ),
]


def _history(field: str) -> Callable[[Snapshot], float | None]:
    """Return a function that returns a field of the accounts of the history file, None without a file."""
    return lambda snapshot: getattr(snapshot.exporter.history, field, None)


_HISTORY_ROWS = [
    _self(
        "history_tasks",
        "gauge",
        "Tasks in --history-file.",
        _history("tasks"),
        absent=f"{_NO_HISTORY_FILE} Or it cannot be used now.",
        example="celery_exporter_history_tasks",
    ),
    _self(
        "history_bytes",
        "gauge",
        "Size of --history-file on disk. Space of removed tasks is used again, so it does not shrink.",
        _history("size_bytes"),
        absent=f"{_NO_HISTORY_FILE} Or it cannot be used now.",
        example="celery_exporter_history_bytes",
    ),
    _self(
        "history_written_total",
        "counter",
        "Tasks written to --history-file; one that changes is written again.",
        _history("written"),
        absent=_NO_HISTORY_FILE,
        example="rate(celery_exporter_history_written_total[5m])",
    ),
    _counts(
        "history_dropped",
        "Tasks whose last change was not written to --history-file, by reason: buffer_full (the file is too "
        "slow, or cannot be used), fault (of the exporter), shutdown.",
        "reason",
        lambda snapshot: history.dropped if (history := snapshot.exporter.history) else {},
        absent=_NO_HISTORY_FILE,
        example="sum by (reason) (increase(celery_exporter_history_dropped_total[1h])) > 0",
    ),
    _self(
        "history_errors_total",
        "counter",
        "Number of times --history-file could not be opened, read or written.",
        _history("errors"),
        absent=_NO_HISTORY_FILE,
        example="increase(celery_exporter_history_errors_total[1h]) > 0",
    ),
    _self(
        "history_last_success_timestamp_seconds",
        "gauge",
        "Time at which --history-file was last written, or there was nothing to write.",
        _history("last_success"),
        absent=f"{_NO_HISTORY_FILE} Or it could not be used yet.",
        example="time() - celery_exporter_history_last_success_timestamp_seconds > 60",
    ),
]

#: Rows about the exporter itself, which every selection of profiles includes.
EXPORTER_ROWS = [
    MetricFamily(
        "celery_exporter_build_info",
        "gauge",
        "Constant 1, with the exporter's version and its shard, such as 0/2, as labels.",
        ("version", "shard"),
        lambda snapshot: [((snapshot.exporter.version, snapshot.exporter.shard), 1)],
        example="count by (version) (celery_exporter_build_info)",
    ),
    _counts(
        "events",
        "Events applied, by type; custom types of an application count as other.",
        "kind",
        attrgetter("events"),
        example="sum by (kind) (rate(celery_exporter_events_total[5m]))",
    ),
    _counts(
        "events_malformed",
        "Events that could not be applied, by reason.",
        "reason",
        attrgetter("exporter.malformed"),
        example="sum by (reason) (increase(celery_exporter_events_malformed_total[1h])) > 0",
    ),
    _counts(
        "events_repeated",
        "Events that reported the end of an execution a second time, by type; the end is counted once.",
        "kind",
        attrgetter("repeated"),
        example="sum by (kind) (increase(celery_exporter_events_repeated_total[1h])) > 0",
    ),
    MetricFamily(
        "celery_exporter_events_missed_total",
        "counter",
        "Started events that a worker's processed count implies and that were not received. Tasks that ran "
        "before the first task event of a process, or with task events off, are not counted. "
        "Does not change for workers that have tasks with send_events off.",
        ("worker",),
        lambda snapshot: (((worker.name,), worker.missed) for worker in snapshot.workers),
        absent="The worker has sent no event, or was removed.",
        example="sum by (worker) (increase(celery_exporter_events_missed_total[1h])) > 0",
    ),
    _self(
        "event_lag_seconds",
        "gauge",
        "Age of the newest event when it was received, by its sender's clock (it includes the clock skew).",
        attrgetter("exporter.event_lag"),
        absent="No event was received yet.",
        example="celery_exporter_event_lag_seconds > 10",
    ),
    _self(
        "last_event_timestamp_seconds",
        "gauge",
        "Time at which the last event was received.",
        attrgetter("exporter.last_event"),
        absent="No event was received yet.",
        example="time() - celery_exporter_last_event_timestamp_seconds > 60",
    ),
    _self(
        "reconnects_total",
        "counter",
        "Number of times the event subscription was opened again.",
        attrgetter("exporter.reconnects"),
        example="increase(celery_exporter_reconnects_total[1h]) > 3",
    ),
    MetricFamily(
        "celery_exporter_active",
        "gauge",
        "1 if the broker sends the events of this durable queue to this exporter, 0 if it is a standby of "
        "another one, or has had no connection for 12 s.",
        ("event_queue",),
        _active,
        absent="There is no durable event queue, so all exporters get all events.",
        example="sum by (job, event_queue) (celery_exporter_active) != 1",
    ),
    _self(
        "messages_duplicate_total",
        "counter",
        "Messages that a durable event queue delivered again, and that were dropped.",
        attrgetter("exporter.duplicates"),
        example="increase(celery_exporter_messages_duplicate_total[1h])",
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
        "Unfinished tasks removed because of --max-tasks or --task-ttl.",
        attrgetter("tasks_evicted"),
        example="increase(celery_exporter_tasks_evicted_total[1h]) > 0",
    ),
    _counts(
        "tasks_reconciled",
        "Tasks whose state was corrected without an event, by reason. Finished: message_gone (purged, or run "
        "without events), expired, not_running (its worker does not report it). Waiting again: returned (its "
        "worker went offline before it started the task).",
        "reason",
        attrgetter("reconciled"),
        example='increase(celery_exporter_tasks_reconciled_total{reason!="returned"}[1h]) > 0',
    ),
    _counts(
        "label_fallbacks",
        "Tasks counted under a fallback value because the true value of the label was not known in time.",
        "label",
        attrgetter("fallbacks"),
        example="sum by (label) (rate(celery_exporter_label_fallbacks_total[5m]))",
    ),
    _counts(
        "limit_rejections",
        "Number of times a worker was ignored, or a queue was dropped for a new one, because of a limit.",
        "kind",
        attrgetter("limit_rejections"),
        example="increase(celery_exporter_limit_rejections_total[1h]) > 0",
    ),
    _counts(
        "state_file_errors",
        "Number of times --state-file could not be read or written.",
        "operation",
        attrgetter("exporter.state_errors"),
        absent="--state-file is not set.",
        example="increase(celery_exporter_state_file_errors_total[1h]) > 0",
    ),
    _self(
        "web_config_up_to_date",
        "gauge",
        "1 while the current --web.config.file is used; 0 while it is invalid and its last version is used.",
        attrgetter("exporter.web_config_up_to_date"),
        absent="--web.config.file is not set.",
        example="celery_exporter_web_config_up_to_date == 0",
    ),
    _self(
        "config_last_reload_successful",
        "gauge",
        "1 if --config.file was valid when it was read last; 0 if not, and nothing was changed.",
        _of_config_file(attrgetter("is_valid")),
        absent="--config.file is not set.",
        example="celery_exporter_config_last_reload_successful == 0",
    ),
    _self(
        "config_last_reload_success_timestamp_seconds",
        "gauge",
        "When --config.file was read last and was valid.",
        _of_config_file(attrgetter("loaded")),
        absent="--config.file is not set.",
        example="time() - celery_exporter_config_last_reload_success_timestamp_seconds",
    ),
    _self(
        "negative_waits_total",
        "counter",
        "Waits below 0 s, counted as 0 s: clocks differ, or task-sent was published after the start.",
        attrgetter("negative_waits"),
        example="rate(celery_exporter_negative_waits_total[5m]) > 0",
    ),
    _self(
        "series",
        "gauge",
        "Label sets of task metrics in memory. Each has several series.",
        attrgetter("series"),
        example="celery_exporter_series",
    ),
    _self(
        "series_overflow_total",
        "counter",
        "Number of times a task name, an exception or a measured field was counted as other because of "
        "--max-series.",
        attrgetter("series_overflowed"),
        example="increase(celery_exporter_series_overflow_total[1h]) > 0",
    ),
    _collector(
        "success",
        "1 if the last run of the periodic job succeeded, 0 if it failed.",
        attrgetter("success"),
        absent="The job has not run yet.",
        example="celery_exporter_collector_success == 0",
    ),
    _collector(
        "duration_seconds",
        "Duration of the last run of the periodic job.",
        attrgetter("seconds"),
        absent="The job has not run yet.",
        example="celery_exporter_collector_duration_seconds > 5",
    ),
    _collector(
        "last_success_timestamp_seconds",
        "Time at which the periodic job last succeeded.",
        attrgetter("last_success"),
        absent="The job has not succeeded yet.",
        example="time() - celery_exporter_collector_last_success_timestamp_seconds > 120",
    ),
    *_SINK_ROWS,
    *_HISTORY_ROWS,
]


PROFILE = Profile(
    name="native",
    about="Prometheus' conventions and Celery's terms; the dashboards and alerts of this project use it",
    rows=rows,
    labels=attrgetter("task_labels"),
    buckets=RUNTIME_BUCKETS,
    queue_wait_buckets=WAIT_BUCKETS,
)
