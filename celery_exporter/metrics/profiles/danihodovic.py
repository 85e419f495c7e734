"""The names of danihodovic/celery-exporter 0.12.2 (its README, section Metrics), the most used one.

It names a worker by its host. What happened at a worker goes when it is purged, there and here.
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
#: What hosts are called of which nobody wants to know.
GENERIC = "generic"
#: What exceptions are called of which nobody knows the class.
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
    "where nobody told the queue the original says celery, as --default-queue-name celery does here; where "
    "events of a task overtake each other it takes host or queue from another one than the one it counts"
)
_EXCEPTIONS = (
    f"{_QUEUES}; a class that is written with its module, Reject, and one in a traceback alone are "
    "UnknownException or ExceptionWithTraceback to it, and here what they are"
)
_HOSTS = "of several workers on a host the original shows the one that was heard last; this is "
_SENT = summed('celery_tasks_total{state="PENDING"}', "state", "worker", name="task_name")
_FAILED = 'celery_task_failures_total{worker!=""}'
_ACTIVE = 'celery_worker_active_tasks or ignoring (hostname) 0 * celery_worker_up{worker!=""}'


def rows(shape: MetricOptions) -> list[MetricFamily]:
    """Return the table."""
    return [*_counters(shape), *_histograms(shape), *_HOST_ROWS, native.QUEUE_LENGTH, *_QUEUE_ROWS]


def _counters(shape: MetricOptions) -> list[MetricFamily]:
    return [
        _counter(
            "sent",
            "Sent when a task message is published.",
            _TASK,
            partial(_sent, shape),
            f'label_replace({_SENT}, "hostname", "{GENERIC}", "", "")',
        ),
        *(
            _counter(
                name,
                help_,
                _TASK,
                partial(_moved, shape, state),
                _at_hosts(f'celery_tasks_total{{state="{state.name}",worker!=""}}', "state"),
            )
            for state, (name, help_) in _COUNTERS.items()
        ),
        _counter(
            "failed",
            "Sent if the execution of the task failed.",
            ("name", "hostname", "exception", "queue_name"),
            partial(_failed, shape),
            _at_hosts(_FAILED, "state"),
            remark=_EXCEPTIONS,
        ),
    ]


def _histograms(shape: MetricOptions) -> list[MetricFamily]:
    return [
        _histogram(
            "runtime",
            "Run time of tasks that succeeded.",
            shape,
            _runtime,
            shape.buckets or COMMON_BUCKETS,
            query=_at_hosts('celery_task_runtime_seconds_bucket{state="SUCCESS",worker!=""}', "state"),
        ),
        _histogram(
            "queue_wait_time",
            "From sent (or eta) to started.",
            shape,
            attrgetter("queue_wait"),
            shape.queue_wait_buckets or WAIT_BUCKETS,
            waits=True,
            query=_at_hosts('celery_task_queue_wait_seconds_bucket{worker!=""}'),
        ),
    ]


def _counter(  # noqa: PLR0913  what differs between them
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


def _at_hosts(counted: str, *without: str) -> str:
    return summed(counted, *without, name="task_name", hostname="worker")


def _labels(shape: MetricOptions, key: LabelSet) -> tuple[str, str, str]:
    hostname = GENERIC if shape.generic_hostname_worker_task_metric else host(key.worker)
    return key.task_name, hostname, _queue(shape, key)


def _queue(shape: MetricOptions, key: LabelSet) -> str:
    return shape.default_queue_name if key.queue_name == UNKNOWN else key.queue_name


def _moved(shape: MetricOptions, state: State, snapshot: Snapshot) -> Iterable[Sample]:
    return (
        (_labels(shape, key), aggregate.transitions[state]) for key, aggregate in _at_workers(shape, snapshot)
    )


def _sent(shape: MetricOptions, snapshot: Snapshot) -> Iterable[Sample]:
    for key, aggregate in snapshot.aggregates.items():
        if key.worker:
            continue
        clients = (
            {GENERIC: aggregate.transitions[State.PENDING]}
            if shape.generic_hostname_task_sent_metric
            else aggregate.clients
        )
        for client, count in clients.items():
            yield (key.task_name, client, _queue(shape, key)), count


def _failed(shape: MetricOptions, snapshot: Snapshot) -> Iterable[Sample]:
    for key, aggregate in _at_workers(shape, snapshot):
        name, hostname, queue = _labels(shape, key)
        if (
            sum(aggregate.transitions) > aggregate.transitions[State.FAILURE]
        ):  # as the original, whose other events show it
            yield (name, hostname, "", queue), 0
        for exception, count in aggregate.exceptions.items():
            yield (name, hostname, UNKNOWN_EXCEPTION if exception == UNKNOWN else exception, queue), count


def _at_workers(shape: MetricOptions, snapshot: Snapshot) -> Iterable[tuple[LabelSet, Aggregate]]:
    """Return what workers did; where all have one name, that of workers that are gone is there, too."""
    return (
        (key, aggregate)
        for key, aggregate in snapshot.aggregates.items()
        if key.worker or shape.generic_hostname_worker_task_metric
    )


def _runtime(aggregate: Aggregate) -> object:
    return aggregate.runtime.get(State.SUCCESS)


def _histogram(  # noqa: PLR0913  what differs between the two
    name: str,
    help_: str,
    shape: MetricOptions,
    which: Callable[[Aggregate], object],
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
            (_labels(shape, key), histogram)
            for key, aggregate in _at_workers(shape, snapshot)
            if (histogram := which(aggregate)) is not None
        ),
        merge=add,
        bounds=attrgetter("wait_bounds" if waits else "runtime_bounds"),
        buckets=bounds,
        decimal=True,
        remark=_QUEUES,
        query=query,
    )


def _of_host(  # noqa: PLR0913  what differs between the two
    name: str, help_: str, field: Callable[[WorkerView], float], merge: Merge, *, how: str, query: str
) -> MetricFamily:
    return MetricFamily(
        f"celery_worker_{name}",
        "gauge",
        help_,
        ("hostname",),
        lambda snapshot: (((host(worker.name),), field(worker)) for worker in snapshot.workers),
        merge=merge,
        remark=_HOSTS + how,
        query=query,
    )


def _active(worker: WorkerView) -> int:
    return worker.active or 0


_HOST_ROWS = [
    _of_host(
        "up",
        "Whether a worker is heard.",
        attrgetter("up"),
        max,
        how="1 if any of them is up",
        query=summed('celery_worker_up{worker!=""}', how="max", hostname="worker"),
    ),
    _of_host(
        "tasks_active",
        "Tasks the workers execute now.",
        _active,
        add,
        how="their sum",
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
        "Processes of the workers that consume the queue, as their pools are now.",
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
    clients=lambda shape: not shape.generic_hostname_task_sent_metric,
    hosts=True,
)
