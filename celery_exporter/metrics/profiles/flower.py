"""The names of mher/flower's Prometheus integration, 2.2 (flower/events.py; docs/prometheus-integration.rst).

What a worker did goes when it is purged, as in Flower with --purge_offline_workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from celery_exporter.core.aggregates import Aggregate
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import LabelSet, State
from celery_exporter.metrics.model import (
    COMMON_BUCKETS,
    MetricFamily,
    MetricOptions,
    Profile,
    Sample,
    add,
    of_each,
    summed,
)

_TYPES = {
    State.RECEIVED: "task-received",
    State.STARTED: "task-started",
    State.SUCCESS: "task-succeeded",
    State.FAILURE: "task-failed",
    State.RETRY: "task-retried",
    State.REVOKED: "task-revoked",
    State.REJECTED: "task-rejected",
}
_MOVED = 'celery_tasks_total{state!="PENDING",worker!=""} or celery_tasks_total{state="PENDING",worker=""}'


def rows(shape: MetricOptions) -> list[MetricFamily]:
    """Return the table."""
    return [_EVENTS, _runtime(shape), *_PREFETCH_ROWS, *_WORKER_ROWS]


def _counted() -> str:
    types = {State.PENDING: "task-sent", **_TYPES}
    query = _MOVED
    for state, type_ in types.items():
        query = f'label_replace({query}, "type", "{type_}", "state", "{state.name}")'
    return summed(query, "state", "queue_name", task="task_name")


def _events(snapshot: Snapshot) -> Iterable[Sample]:
    for key, aggregate in snapshot.aggregates.items():
        for client, count in aggregate.clients.items():
            yield (client, "task-sent", key.task_name), count
    for key, aggregate in _at_workers(snapshot):
        for state, type_ in _TYPES.items():
            yield (key.worker, type_, key.task_name), aggregate.transitions[state]


def _at_workers(snapshot: Snapshot) -> Iterable[tuple[LabelSet, Aggregate]]:
    """Return what workers did that are known; what others did is added up by host ("@host") or without it."""
    return (
        (key, aggregate)
        for key, aggregate in snapshot.aggregates.items()
        if key.worker and key.worker[0] != "@"
    )


_EVENTS = MetricFamily(
    "flower_events_total",
    "counter",
    "Task events by worker, of task-sent by the client's host.",
    ("worker", "type", "task"),
    _events,
    merge=add,
    remark="the original shows task-sent by the client's process, such as gen123@host",
    query=_counted(),
)


def _runtime(shape: MetricOptions) -> MetricFamily:
    succeeded = 'celery_task_runtime_seconds_bucket{state="SUCCESS",worker!=""}'
    return MetricFamily(
        "flower_task_runtime_seconds",
        "histogram",
        "Run time of tasks that succeeded.",
        ("worker", "task"),
        lambda snapshot: (
            ((key.worker, key.task_name), aggregate.runtime[State.SUCCESS])
            for key, aggregate in _at_workers(snapshot)
            if State.SUCCESS in aggregate.runtime
        ),
        merge=add,
        bounds=attrgetter("runtime_bounds"),
        buckets=shape.buckets or COMMON_BUCKETS,
        decimal=True,
        query=summed(succeeded, "state", "queue_name", task="task_name"),
    )


#: Of a task that was started; one is also revoked while it waits.
_ENDS = (State.SUCCESS, State.FAILURE, State.RETRY, State.REJECTED)


def _prefetch_time(snapshot: Snapshot) -> Iterable[Sample]:
    """Return the wait of the task that was started last, 0 if one ended since."""
    newest: dict[tuple[str, str], tuple[float, float]] = {}  # when, and the value since then
    for key, aggregate in _at_workers(snapshot):
        if aggregate.newest_prefetch_wait_seconds is not None:
            started = aggregate.last.get(State.STARTED, 0.0)
            ended = max(aggregate.last.get(state, 0.0) for state in _ENDS)
            told = (
                (ended, 0.0)
                if ended >= started
                else (started, max(0.0, aggregate.newest_prefetch_wait_seconds))
            )
            newest[key.worker, key.task_name] = max(told, newest.get((key.worker, key.task_name), told))
    return ((labels, value) for labels, (_, value) in newest.items())


def _prefetched(snapshot: Snapshot) -> Iterable[Sample]:
    """Return how many tasks each worker has received and not started, 0 where it has started all."""
    if snapshot.prefetched is not None:
        for key, aggregate in _at_workers(snapshot):
            if aggregate.transitions[State.RECEIVED]:
                yield (key.worker, key.task_name), 0
        for (key, worker), count in snapshot.prefetched.items():
            yield (worker, key.task_name), count


_PREFETCH_ROWS = [
    MetricFamily(
        "flower_task_prefetch_time_seconds",
        "gauge",
        "From received by a worker (or eta) to started by it, of the task it started last; 0 once one ended.",
        ("worker", "task"),
        _prefetch_time,
        remark="the original leaves out tasks with an eta, and keeps the time of one that was retried or "
        "rejected",
    ),
    MetricFamily(
        "flower_worker_prefetched_tasks",
        "gauge",
        "Tasks that a worker has received and not started.",
        ("worker", "task"),
        _prefetched,
        merge=add,
        remark="the original's leaves out tasks with an eta, and drifts with each event that it misses; "
        "this is absent above 50,000",
    ),
]
_WORKER_ROWS = [
    MetricFamily(
        "flower_worker_online",
        "gauge",
        "1 while the worker is heard.",
        ("worker",),
        of_each("workers", attrgetter("up")),
        remark="what is shown of a worker goes when it was silent for --purge-offline-worker-metrics, as "
        "with purge_offline_workers there; a goodbye that comes later brings none of it back",
        query='max without (hostname) (celery_worker_up{worker!=""})',
    ),
    MetricFamily(
        "flower_worker_number_of_currently_executing_tasks",
        "gauge",
        "Tasks the worker runs.",
        ("worker",),
        of_each("workers", attrgetter("active")),
        remark="the original keeps the last value of a worker that is gone",
        query="celery_worker_active_tasks",
    ),
]


PROFILE = Profile(
    name="flower",
    about="mher/flower's Prometheus integration",
    rows=rows,
    labels=lambda _: ("worker",),
    clients=lambda _: True,
    prefetched=True,
)
