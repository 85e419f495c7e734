"""The triss profile: the names of an exporter that polls Flower's API.

Its gauges show the tasks in Flower's memory.
"""

from __future__ import annotations

from celery_exporter.metrics.model import MetricFamily, MetricOptions, Profile, add, means, summed
from celery_exporter.metrics.profiles import triton, zerok

_RUNTIME = summed("celery_task_runtime_seconds_{}", "queue_name", "worker", task_type="task_name")


def rows(_: MetricOptions) -> list[MetricFamily]:
    """Return the rows of this profile."""
    return [
        triton.WORKERS,
        MetricFamily(
            "celery_task_types_by_state",
            "gauge",
            "Unfinished tasks now by state, and finished tasks since the start by final state.",
            ("task_type", "state"),
            lambda snapshot: (((name, state), count) for (state, name), count in zerok.by_name(snapshot)),
            merge=add,
            remark=zerok.LIMITED_MEMORY.format("Flower"),
            query=summed(zerok.COUNTED, "queue_name", "worker", task_type="task_name"),
        ),
        MetricFamily(
            "celery_task_duration_seconds_by_state",
            "gauge",
            "Mean run time since the start of executions that ended in a state.",
            ("task_type", "state"),
            lambda snapshot: means(
                ((label_set.task_name, state.name), histogram)
                for label_set, aggregate in snapshot.aggregates.items()
                for state, histogram in aggregate.runtime.items()
            ),
            remark="the original shows the run time of one task in Flower's memory; this is the mean",
            query=f"{_RUNTIME.format('sum')} / {_RUNTIME.format('count')}",
        ),
    ]


PROFILE = Profile(
    name="triss",
    about="an exporter that polls Flower's API",
    rows=rows,
    labels=lambda _: (),
)
