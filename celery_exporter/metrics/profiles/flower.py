"""The flower profile: the names of the Prometheus integration of mher/flower 2.2.

Sources: flower/events.py and docs/prometheus-integration.rst. The series of a worker are dropped when the
worker is removed, as in Flower with --purge_offline_workers.
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
_TRANSITIONS = (
    'celery_tasks_total{state!="PENDING",worker!=""} or celery_tasks_total{state="PENDING",worker=""}'
)


def rows(options: MetricOptions) -> list[MetricFamily]:
    """Return the rows of this profile."""
    return [_EVENTS, _runtime(options), *_PREFETCH_ROWS, *_WORKER_ROWS]


def _events_query() -> str:
    types = {State.PENDING: "task-sent", **_TYPES}
    query = _TRANSITIONS
    for state, type_ in types.items():
        query = f'label_replace({query}, "type", "{type_}", "state", "{state.name}")'
    return summed(query, "state", "queue_name", task="task_name")


def _events(snapshot: Snapshot) -> Iterable[Sample]:
    for label_set, aggregate in snapshot.aggregates.items():
        for client, count in aggregate.clients.items():
            yield (client, "task-sent", label_set.task_name), count
    for label_set, aggregate in _at_workers(snapshot):
        for state, type_ in _TYPES.items():
            yield (label_set.worker, type_, label_set.task_name), aggregate.transitions[state]


def _at_workers(snapshot: Snapshot) -> Iterable[tuple[LabelSet, Aggregate]]:
    """Return the aggregates of present workers; those of removed ones are merged by host ("@host")."""
    return (
        (label_set, aggregate)
        for label_set, aggregate in snapshot.aggregates.items()
        if label_set.worker and label_set.worker[0] != "@"
    )


_EVENTS = MetricFamily(
    "flower_events_total",
    "counter",
    "Task events by worker; those of type task-sent by the client's host.",
    ("worker", "type", "task"),
    _events,
    merge=add,
    remark="the original shows task-sent by the client's process, such as gen123@host",
    query=_events_query(),
)


def _runtime(options: MetricOptions) -> MetricFamily:
    succeeded = 'celery_task_runtime_seconds_bucket{state="SUCCESS",worker!=""}'
    return MetricFamily(
        "flower_task_runtime_seconds",
        "histogram",
        "Run time of tasks that succeeded.",
        ("worker", "task"),
        lambda snapshot: (
            ((label_set.worker, label_set.task_name), aggregate.runtime[State.SUCCESS])
            for label_set, aggregate in _at_workers(snapshot)
            if State.SUCCESS in aggregate.runtime
        ),
        merge=add,
        bounds=attrgetter("runtime_bounds"),
        buckets=options.buckets or COMMON_BUCKETS,
        decimal=True,
        query=summed(succeeded, "state", "queue_name", task="task_name"),
    )


#: The states that end an execution. REVOKED is none of them: a task may also be revoked while it waits.
_END_STATES = (State.SUCCESS, State.FAILURE, State.RETRY, State.REJECTED)


def _prefetch_time(snapshot: Snapshot) -> Iterable[Sample]:
    """Return the prefetch wait of the task that started last; 0 if a task has ended since."""
    newest: dict[tuple[str, str], tuple[float, float]] = {}  # (worker, task name) → since when, and the value
    for label_set, aggregate in _at_workers(snapshot):
        if aggregate.newest_prefetch_wait_seconds is not None:
            started = aggregate.last.get(State.STARTED, 0.0)
            ended = max(aggregate.last.get(state, 0.0) for state in _END_STATES)
            wait = (
                (ended, 0.0)
                if ended >= started
                else (started, max(0.0, aggregate.newest_prefetch_wait_seconds))
            )
            labels = (label_set.worker, label_set.task_name)
            newest[labels] = max(wait, newest.get(labels, wait))
    return ((labels, value) for labels, (_, value) in newest.items())


def _prefetched(snapshot: Snapshot) -> Iterable[Sample]:
    """Return how many tasks each worker has received and not started; 0 if it has started all of them."""
    if snapshot.prefetched is not None:
        for label_set, aggregate in _at_workers(snapshot):
            if aggregate.transitions[State.RECEIVED]:
                yield (label_set.worker, label_set.task_name), 0
        for (label_set, worker), count in snapshot.prefetched.items():
            yield (worker, label_set.task_name), count


_PREFETCH_ROWS = [
    MetricFamily(
        "flower_task_prefetch_time_seconds",
        "gauge",
        "Time from received (or eta) to started, of the task that a worker started last; 0 after one ends.",
        ("worker", "task"),
        _prefetch_time,
        remark="the original omits tasks with an eta, and keeps the time of a task that was retried or "
        "rejected",
    ),
    MetricFamily(
        "flower_worker_prefetched_tasks",
        "gauge",
        "Tasks that a worker has received and not started.",
        ("worker", "task"),
        _prefetched,
        merge=add,
        remark="the original omits tasks with an eta, and becomes wrong with each event that it misses; "
        "this metric is absent above 50,000 tasks",
    ),
]
_WORKER_ROWS = [
    MetricFamily(
        "flower_worker_online",
        "gauge",
        "1 while the worker sends events.",
        ("worker",),
        of_each("workers", attrgetter("up")),
        remark="the series of a worker are dropped after --purge-offline-worker-metrics without events, as "
        "with purge_offline_workers in the original; here a later worker-offline event does not restore them",
        query='max without (hostname) (celery_worker_up{worker!=""})',
    ),
    MetricFamily(
        "flower_worker_number_of_currently_executing_tasks",
        "gauge",
        "Tasks that the worker executes now.",
        ("worker",),
        of_each("workers", attrgetter("active")),
        remark="the original keeps the last value of a worker that is down",
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
