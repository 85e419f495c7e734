"""The names of zerok/celery-prometheus-exporter 1.7 (its README), which is not kept up any more."""

from __future__ import annotations

from operator import attrgetter

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.tasks import OPEN_STATES
from celery_exporter.core.types import State
from celery_exporter.metrics.model import (
    COMMON_BUCKETS,
    MetricFamily,
    MetricOptions,
    Profile,
    Sample,
    add,
    summed,
)
from celery_exporter.metrics.profiles import native, triton

_TOTALS = tuple(state for state in State if state not in OPEN_STATES)
#: PromQL for what `by_name` returns; what a rule has recorded as celery_tasks has no task_name.
COUNTED = (
    'celery_tasks_in_flight{task_name!=""} or '
    f'celery_tasks_total{{task_name!="",state=~"{"|".join(state.name for state in _TOTALS)}"}}'
)
#: A remark; who forgets, the original or another, fills it in.
FORGETS = "the original counts what {} has in memory, 10,000 tasks at most, so its numbers fall"


def rows(shape: MetricOptions) -> list[MetricFamily]:
    """Return the table."""
    return [*_COUNTS, _runtime(shape), _latency(shape), triton.WORKERS, native.QUEUE_LENGTH]


def by_name(snapshot: Snapshot) -> list[Sample]:
    """Return how many tasks are in each open state, and how many came into each of the others."""
    now: list[Sample] = [
        ((group.state.name, group.label_set.task_name), group.count) for group in snapshot.tasks
    ]
    over: list[Sample] = [
        ((state.name, key.task_name), aggregate.transitions[state])
        for key, aggregate in snapshot.aggregates.items()
        for state in _TOTALS
    ]
    return now + over


_COUNTS = [
    MetricFamily(
        "celery_tasks",
        "gauge",
        "Tasks in a state: now, of those that are not over; since the start, of the others.",
        ("state",),
        lambda snapshot: (((state,), count) for (state, _), count in by_name(snapshot)),
        merge=add,
        remark=FORGETS.format("it"),
        query=summed(COUNTED, "task_name", "queue_name", "worker"),
    ),
    MetricFamily(
        "celery_tasks_by_name",
        "gauge",
        "The same by task.",
        ("state", "name"),
        by_name,
        merge=add,
        remark=FORGETS.format("it"),
        query=summed(COUNTED, "queue_name", "worker", name="task_name"),
    ),
]


def _runtime(shape: MetricOptions) -> MetricFamily:
    succeeded = 'celery_task_runtime_seconds_bucket{state="SUCCESS"}'
    return MetricFamily(
        "celery_tasks_runtime_seconds",
        "histogram",
        "Run time of tasks that succeeded.",
        ("name",),
        lambda snapshot: (
            ((key.task_name,), aggregate.runtime[State.SUCCESS])
            for key, aggregate in snapshot.aggregates.items()
            if State.SUCCESS in aggregate.runtime
        ),
        merge=add,
        bounds=attrgetter("runtime_bounds"),
        buckets=shape.buckets or COMMON_BUCKETS,
        decimal=True,
        query=summed(succeeded, "state", "queue_name", "worker", name="task_name"),
    )


def _latency(shape: MetricOptions) -> MetricFamily:
    return MetricFamily(
        "celery_task_latency",
        "histogram",
        "From received by a worker (or eta) to started by it, in seconds.",
        (),
        lambda snapshot: (
            ((), aggregate.prefetch_wait)
            for aggregate in snapshot.aggregates.values()
            if aggregate.prefetch_wait is not None
        ),
        merge=add,
        bounds=attrgetter("wait_bounds"),
        buckets=shape.queue_wait_buckets or COMMON_BUCKETS,
        decimal=True,
        query=summed("celery_task_prefetch_wait_seconds_bucket", "task_name", "queue_name", "worker"),
    )


PROFILE = Profile(
    name="zerok",
    about="zerok/celery-prometheus-exporter 1.7",
    rows=rows,
    labels=lambda _: (),
)
