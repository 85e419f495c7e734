"""The names of mher/flower's Prometheus integration (flower/events.py; docs/prometheus-integration.rst)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter

from celery_exporter.core.facts import State
from celery_exporter.core.snapshot import Snapshot, WorkerView
from celery_exporter.profiles import COMMON_BUCKETS, Profile, Row, Sample, Shape, add, means, summed

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
    return [
        Row(
            "flower_events_total",
            "counter",
            "Task events by worker, of task-sent by the client's host.",
            ("worker", "type", "task"),
            _events,
            merge=add,
            remark="the original shows task-sent by the client's process, such as gen123@host",
            query=_counted(),
        ),
        Row(
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
            query=summed(
                'celery_task_runtime_seconds_bucket{state="SUCCESS",worker!=""}',
                "state",
                "queue_name",
                task="task_name",
            ),
        ),
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
        _of_worker(
            "online",
            "1 while the worker is heard.",
            attrgetter("up"),
            'max without (hostname) (celery_worker_up{worker!=""})',
        ),
        _of_worker(
            "number_of_currently_executing_tasks",
            "Tasks the worker runs.",
            attrgetter("active"),
            "celery_worker_active_tasks",
        ),
    ]


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


def _of_worker(name: str, help_: str, field: Callable[[WorkerView], float | None], query: str) -> Row:
    return Row(
        f"flower_worker_{name}",
        "gauge",
        help_,
        ("worker",),
        lambda snapshot: (
            ((worker.name,), value) for worker in snapshot.workers if (value := field(worker)) is not None
        ),
        query=query,
    )


PROFILE = Profile(
    name="flower",
    about="mher/flower's Prometheus integration",
    rows=rows,
    labels=lambda _: ("worker",),
    clients=lambda _: True,
    prefetched=True,
)
