"""The names of mher/flower's Prometheus integration (flower/events.py; docs/prometheus-integration.rst)."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.words import State
from celery_exporter.profiles import COMMON_BUCKETS, Profile, Row, Sample, Shape, add, means, of_each, summed

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
_WAITS = summed('celery_task_prefetch_wait_seconds_{}{{worker!=""}}', "queue_name", task="task_name")


def rows(shape: Shape) -> list[Row]:
    """Return the table."""
    return [_EVENTS, _runtime(shape), *_PREFETCH_ROWS, *_WORKER_ROWS]


def _counted() -> str:
    types = {State.PENDING: "task-sent", **_TYPES}
    query = _MOVED
    for state, type_ in types.items():
        query = f'label_replace({query}, "type", "{type_}", "state", "{state.name}")'
    return summed(query, "state", "queue_name", task="task_name")


def _events(snapshot: Snapshot) -> Iterable[Sample]:
    for key, cell in snapshot.cells.items():
        for client, count in cell.clients.items():
            yield (client, "task-sent", key.task_name), count
        if key.worker:
            for state, type_ in _TYPES.items():
                yield (key.worker, type_, key.task_name), cell.moved[state]


_EVENTS = Row(
    "flower_events_total",
    "counter",
    "Task events by worker, of task-sent by the client's host.",
    ("worker", "type", "task"),
    _events,
    merge=add,
    remark="the original shows task-sent by the client's process, such as gen123@host",
    query=_counted(),
)


def _runtime(shape: Shape) -> Row:
    succeeded = 'celery_task_runtime_seconds_bucket{state="SUCCESS",worker!=""}'
    return Row(
        "flower_task_runtime_seconds",
        "histogram",
        "Run time of tasks that succeeded.",
        ("worker", "task"),
        lambda snapshot: (
            ((key.worker, key.task_name), cell.ran[State.SUCCESS])
            for key, cell in snapshot.cells.items()
            if key.worker and State.SUCCESS in cell.ran
        ),
        merge=add,
        bounds=attrgetter("runtime_bounds"),
        thin=shape.buckets or COMMON_BUCKETS,
        decimal=True,
        query=summed(succeeded, "state", "queue_name", task="task_name"),
    )


_PREFETCH_ROWS = [
    Row(
        "flower_task_prefetch_time_seconds",
        "gauge",
        "Mean time since the start from received by a worker (or eta) to started by it.",
        ("worker", "task"),
        lambda snapshot: means(
            ((key.worker, key.task_name), cell.prefetched)
            for key, cell in snapshot.cells.items()
            if key.worker and cell.prefetched is not None
        ),
        remark="the original shows that of one task while it runs, and 0 otherwise; this is the mean",
        query=f"{_WAITS.format('sum')} / {_WAITS.format('count')}",
    ),
    Row(
        "flower_worker_prefetched_tasks",
        "gauge",
        "Tasks that a worker has received and not started.",
        ("worker", "task"),
        lambda snapshot: (
            ((worker, key.task_name), count) for (key, worker), count in snapshot.prefetched.items()
        ),
        merge=add,
        remark="the original's drifts with each event that it misses; this is absent above 50,000",
    ),
]
_WORKER_ROWS = [
    Row(
        "flower_worker_online",
        "gauge",
        "1 while the worker is heard.",
        ("worker",),
        of_each("workers", attrgetter("up")),
        query='max without (hostname) (celery_worker_up{worker!=""})',
    ),
    Row(
        "flower_worker_number_of_currently_executing_tasks",
        "gauge",
        "Tasks the worker runs.",
        ("worker",),
        of_each("workers", attrgetter("active")),
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
