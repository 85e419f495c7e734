"""The danihodovic profile: the names of danihodovic/celery-exporter 0.12.2, the most used exporter.

Source: its README, section Metrics. It names a worker by its host. Like the original, this profile drops the
series of a worker when the worker is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter

from celery_exporter.core.aggregates import Aggregate
from celery_exporter.core.snapshot import QueueView, Snapshot, WorkerView
from celery_exporter.core.types import UNKNOWN, LabelSet, State
from celery_exporter.core.workers import host
from celery_exporter.metrics.model import (
    COMMON_BUCKETS,
    Merge,
    MetricFamily,
    MetricOptions,
    Profile,
    Sample,
    add,
    of_each,
    summed,
)
from celery_exporter.metrics.profiles import native

#: Upper bucket bounds of queue waits, in seconds (DEFAULT_QUEUE_WAIT_BUCKETS there).
WAIT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
#: The label value of all hosts if the user does not distinguish them.
GENERIC = "generic"
#: The label value of exceptions whose class is unknown.
UNKNOWN_EXCEPTION = "UnknownException"

_COUNTERS = {
    State.RECEIVED: ("received", "Sent when the worker receives a task."),
    State.STARTED: ("started", "Sent just before the worker executes the task."),
    State.SUCCESS: ("succeeded", "Sent if the task executed successfully."),
    State.REJECTED: ("rejected", "The task was rejected by the worker."),
    State.REVOKED: ("revoked", "Sent if the task has been revoked."),
    State.RETRY: ("retried", "Sent if the task failed, but will be retried in the future."),
}
_TASK = ("name", "hostname", "queue_name")
_QUEUES = (
    "the original shows an unknown queue as celery, as --default-queue-name celery does here; if events of a "
    "task arrive out of order, the original takes the host or the queue from a different event"
)
_EXCEPTIONS = (
    f"{_QUEUES}; the original shows UnknownException or ExceptionWithTraceback for Reject, for a class with "
    "a module path and for a class that only the traceback names; this shows the class"
)
_HOSTS = "for several workers on one host the original shows the one with the newest event; this shows "
_SENT = summed('celery_tasks_total{state="PENDING"}', "state", "worker", name="task_name")
_FAILED = 'celery_task_failures_total{worker!=""}'
_ACTIVE = 'celery_worker_active_tasks or ignoring (hostname) 0 * celery_worker_up{worker!=""}'


def rows(options: MetricOptions) -> list[MetricFamily]:
    """Return the rows of this profile."""
    return [*_counters(options), *_histograms(options), *_HOST_ROWS, native.QUEUE_LENGTH, *_QUEUE_ROWS]


def _counters(options: MetricOptions) -> list[MetricFamily]:
    return [
        _counter(
            "sent",
            "Sent when a task message is published.",
            _TASK,
            partial(_sent, options),
            f'label_replace({_SENT}, "hostname", "{GENERIC}", "", "")',
        ),
        *(
            _counter(
                name,
                help_,
                _TASK,
                partial(_transitions, options, state),
                _at_hosts(f'celery_tasks_total{{state="{state.name}",worker!=""}}', "state"),
            )
            for state, (name, help_) in _COUNTERS.items()
        ),
        _counter(
            "failed",
            "Sent if the execution of the task failed.",
            ("name", "hostname", "exception", "queue_name"),
            partial(_failed, options),
            _at_hosts(_FAILED, "state"),
            remark=_EXCEPTIONS,
        ),
    ]


def _histograms(options: MetricOptions) -> list[MetricFamily]:
    return [
        _histogram(
            "runtime",
            "Run time of tasks that succeeded.",
            options,
            _runtime,
            options.buckets or COMMON_BUCKETS,
            query=_at_hosts('celery_task_runtime_seconds_bucket{state="SUCCESS",worker!=""}', "state"),
        ),
        _histogram(
            "queue_wait_time",
            "Time from sent (or eta) to started.",
            options,
            attrgetter("queue_wait"),
            options.queue_wait_buckets or WAIT_BUCKETS,
            waits=True,
            query=_at_hosts('celery_task_queue_wait_seconds_bucket{worker!=""}'),
        ),
    ]


def _counter(  # noqa: PLR0913  the differences between the counters
    name: str,
    help_: str,
    labels: tuple[str, ...],
    samples: Callable[[Snapshot], Iterable[Sample]],
    query: str = "",
    *,
    remark: str = _QUEUES,
) -> MetricFamily:
    name = f"celery_task_{name}_total"
    return MetricFamily(name, "counter", help_, labels, samples, merge=add, remark=remark, query=query)


def _at_hosts(vector: str, *without: str) -> str:
    return summed(vector, *without, name="task_name", hostname="worker")


def _labels(options: MetricOptions, label_set: LabelSet) -> tuple[str, str, str]:
    hostname = GENERIC if options.generic_hostname_worker_task_metric else host(label_set.worker)
    return label_set.task_name, hostname, _queue(options, label_set)


def _queue(options: MetricOptions, label_set: LabelSet) -> str:
    return options.default_queue_name if label_set.queue_name == UNKNOWN else label_set.queue_name


def _transitions(options: MetricOptions, state: State, snapshot: Snapshot) -> Iterable[Sample]:
    return (
        (_labels(options, label_set), aggregate.transitions[state])
        for label_set, aggregate in _at_workers(options, snapshot)
    )


def _sent(options: MetricOptions, snapshot: Snapshot) -> Iterable[Sample]:
    for label_set, aggregate in snapshot.aggregates.items():
        if label_set.worker:
            continue
        clients = (
            {GENERIC: aggregate.transitions[State.PENDING]}
            if options.generic_hostname_task_sent_metric
            else aggregate.clients
        )
        for client, count in clients.items():
            yield (label_set.task_name, client, _queue(options, label_set)), count


def _failed(options: MetricOptions, snapshot: Snapshot) -> Iterable[Sample]:
    for label_set, aggregate in _at_workers(options, snapshot):
        name, hostname, queue = _labels(options, label_set)
        if (
            sum(aggregate.transitions) > aggregate.transitions[State.FAILURE]
        ):  # as in the original, where each event of another type creates this series
            yield (name, hostname, "", queue), 0
        for exception, count in aggregate.exceptions.items():
            yield (name, hostname, UNKNOWN_EXCEPTION if exception == UNKNOWN else exception, queue), count


def _at_workers(options: MetricOptions, snapshot: Snapshot) -> Iterable[tuple[LabelSet, Aggregate]]:
    """Return the aggregates of workers; with generic workers also those of removed ones."""
    return (
        (label_set, aggregate)
        for label_set, aggregate in snapshot.aggregates.items()
        if label_set.worker or options.generic_hostname_worker_task_metric
    )


def _runtime(aggregate: Aggregate) -> object:
    return aggregate.runtime.get(State.SUCCESS)


def _histogram(  # noqa: PLR0913  the differences between the two histograms
    name: str,
    help_: str,
    options: MetricOptions,
    histogram_of: Callable[[Aggregate], object],
    bounds: tuple[float, ...],
    *,
    waits: bool = False,
    query: str,
) -> MetricFamily:
    return MetricFamily(
        f"celery_task_{name}",
        "histogram",
        help_,
        _TASK,
        lambda snapshot: (
            (_labels(options, label_set), histogram)
            for label_set, aggregate in _at_workers(options, snapshot)
            if (histogram := histogram_of(aggregate)) is not None
        ),
        merge=add,
        bounds=attrgetter("wait_bounds" if waits else "runtime_bounds"),
        buckets=bounds,
        decimal=True,
        remark=_QUEUES,
        query=query,
    )


def _of_host(  # noqa: PLR0913  the differences between the two gauges
    name: str, help_: str, field: Callable[[WorkerView], float], merge: Merge, *, value: str, query: str
) -> MetricFamily:
    return MetricFamily(
        f"celery_worker_{name}",
        "gauge",
        help_,
        ("hostname",),
        lambda snapshot: (((host(worker.name),), field(worker)) for worker in snapshot.workers),
        merge=merge,
        remark=_HOSTS + value,
        query=query,
    )


def _active(worker: WorkerView) -> int:
    return worker.active or 0


_HOST_ROWS = [
    _of_host(
        "up",
        "1 while a worker on the host sends events.",
        attrgetter("up"),
        max,
        value="1 if any of them is up",
        query=summed('celery_worker_up{worker!=""}', how="max", hostname="worker"),
    ),
    _of_host(
        "tasks_active",
        "Tasks that the workers on the host execute now.",
        _active,
        add,
        value="their sum",
        query=summed(_ACTIVE, hostname="worker"),
    ),
]


def _of_queue(
    name: str, help_: str, field: Callable[[QueueView], float | None], query: str = ""
) -> MetricFamily:
    name = f"celery_active_{name}_count"
    return MetricFamily(name, "gauge", help_, ("queue_name",), of_each("queues", field), query=query)


_QUEUE_ROWS = [
    _of_queue("consumer", "Consumers of the queue.", attrgetter("consumers"), "celery_queue_consumers"),
    _of_queue("worker", "Workers that consume the queue.", attrgetter("workers")),
    _of_queue(
        "process",
        "Processes in the current pools of the workers that consume the queue.",
        attrgetter("worker_processes"),
        "celery_queue_worker_processes",
    ),
]


PROFILE = Profile(
    name="danihodovic",
    about="danihodovic/celery-exporter 0.12",
    rows=rows,
    labels=lambda _: ("queue_name", "worker"),
    queue_wait_buckets=WAIT_BUCKETS,
    clients=lambda options: not options.generic_hostname_task_sent_metric,
    hosts=True,
)
