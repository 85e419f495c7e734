"""The zerok profile: the names of zerok/celery-prometheus-exporter 1.7.

That exporter is unmaintained (see its README).
"""

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
#: PromQL for what `by_name` returns. Series that a recording rule named celery_tasks have no task_name.
COUNTED = (
    'celery_tasks_in_flight{task_name!=""} or '
    f'celery_tasks_total{{task_name!="",state=~"{"|".join(state.name for state in _TOTALS)}"}}'
)
#: A remark; it is formatted with the name of the program whose memory is counted.
LIMITED_MEMORY = "the original counts the tasks in the memory of {}, at most 10,000, so its values may fall"


def rows(options: MetricOptions) -> list[MetricFamily]:
    """Return the rows of this profile."""
    return [*_COUNTS, _runtime(options), _latency(options), triton.WORKERS, native.QUEUE_LENGTH]


def by_name(snapshot: Snapshot) -> list[Sample]:
    """Return how many tasks are in each open state now, and how many have entered each final state."""
    unfinished: list[Sample] = [
        ((group.state.name, group.label_set.task_name), group.count) for group in snapshot.tasks
    ]
    finished: list[Sample] = [
        ((state.name, label_set.task_name), aggregate.transitions[state])
        for label_set, aggregate in snapshot.aggregates.items()
        for state in _TOTALS
    ]
    return unfinished + finished


_COUNTS = [
    MetricFamily(
        "celery_tasks",
        "gauge",
        "Unfinished tasks now by state, and finished tasks since the start by final state.",
        ("state",),
        lambda snapshot: (((state,), count) for (state, _), count in by_name(snapshot)),
        merge=add,
        remark=LIMITED_MEMORY.format("its process"),
        query=summed(COUNTED, "task_name", "queue_name", "worker"),
    ),
    MetricFamily(
        "celery_tasks_by_name",
        "gauge",
        "Unfinished tasks now by state and name, and finished tasks since the start by final state and name.",
        ("state", "name"),
        by_name,
        merge=add,
        remark=LIMITED_MEMORY.format("its process"),
        query=summed(COUNTED, "queue_name", "worker", name="task_name"),
    ),
]


def _runtime(options: MetricOptions) -> MetricFamily:
    succeeded = 'celery_task_runtime_seconds_bucket{state="SUCCESS"}'
    return MetricFamily(
        "celery_tasks_runtime_seconds",
        "histogram",
        "Run time of tasks that succeeded.",
        ("name",),
        lambda snapshot: (
            ((label_set.task_name,), aggregate.runtime[State.SUCCESS])
            for label_set, aggregate in snapshot.aggregates.items()
            if State.SUCCESS in aggregate.runtime
        ),
        merge=add,
        bounds=attrgetter("runtime_bounds"),
        buckets=options.buckets or COMMON_BUCKETS,
        decimal=True,
        query=summed(succeeded, "state", "queue_name", "worker", name="task_name"),
    )


def _latency(options: MetricOptions) -> MetricFamily:
    return MetricFamily(
        "celery_task_latency",
        "histogram",
        "Time from received by a worker (or eta) to started by it, in seconds.",
        (),
        lambda snapshot: (
            ((), aggregate.prefetch_wait)
            for aggregate in snapshot.aggregates.values()
            if aggregate.prefetch_wait is not None
        ),
        merge=add,
        bounds=attrgetter("wait_bounds"),
        buckets=options.queue_wait_buckets or COMMON_BUCKETS,
        decimal=True,
        query=summed("celery_task_prefetch_wait_seconds_bucket", "task_name", "queue_name", "worker"),
    )


PROFILE = Profile(
    name="zerok",
    about="zerok/celery-prometheus-exporter 1.7",
    rows=rows,
    labels=lambda _: (),
)
