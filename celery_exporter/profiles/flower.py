"""The names of mher/flower's Prometheus integration (flower/events.py; docs/prometheus-integration.rst)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter

from celery_exporter.core.facts import State
from celery_exporter.core.snapshot import Snapshot, WorkerView
from celery_exporter.profiles import COMMON_BUCKETS, Profile, Row, Sample, Shape, add, means

_TYPES = {
    State.RECEIVED: "task-received",
    State.STARTED: "task-started",
    State.SUCCESS: "task-succeeded",
    State.FAILURE: "task-failed",
    State.RETRY: "task-retried",
    State.REVOKED: "task-revoked",
    State.REJECTED: "task-rejected",
}


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
            remark="the original counts workers' events, too, and task-sent by the client's process",
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
            remark="the original's drifts with each event that it misses",
        ),
        _of_worker("online", "1 while the worker is heard.", attrgetter("up")),
        _of_worker("number_of_currently_executing_tasks", "Tasks the worker runs.", attrgetter("active")),
    ]


def _events(snapshot: Snapshot) -> Iterable[Sample]:
    for key, cell in snapshot.cells.items():
        for client, count in cell.clients.items():
            yield (client, "task-sent", key.task_name), count
        if key.worker:
            for state, type_ in _TYPES.items():
                yield (key.worker, type_, key.task_name), cell.moved[state]


def _of_worker(name: str, help_: str, field: Callable[[WorkerView], float | None]) -> Row:
    return Row(
        f"flower_worker_{name}",
        "gauge",
        help_,
        ("worker",),
        lambda snapshot: (
            ((worker.name,), value) for worker in snapshot.workers if (value := field(worker)) is not None
        ),
    )


PROFILE = Profile(
    name="flower",
    about="mher/flower's Prometheus integration",
    rows=rows,
    labels=lambda _: ("worker",),
    clients=True,
    prefetched=True,
)
