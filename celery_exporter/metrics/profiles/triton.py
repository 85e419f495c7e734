"""The triton profile: the names of a widely used monitoring guide for Flower and Grafana.

It has a counter for each state. Labels, histograms and queue metrics are those of the native profile.
"""

from __future__ import annotations

from operator import attrgetter

from celery_exporter.core.types import State
from celery_exporter.metrics.model import MetricFamily, MetricOptions, Profile, add
from celery_exporter.metrics.profiles import native

_COUNTERS = {
    State.RECEIVED: ("received", "Tasks that workers received."),
    State.SUCCESS: ("succeeded", "Tasks that succeeded."),
    State.FAILURE: ("failed", "Tasks that failed."),
}


def rows(options: MetricOptions) -> list[MetricFamily]:
    """Return the rows of this profile."""
    return [
        *(_counter(options, state) for state in _COUNTERS),
        _ACTIVE,
        WORKERS,
        native.runtime(options),
        native.WORKER_UP,
        native.QUEUE_LENGTH,
    ]


_ACTIVE = MetricFamily(
    "celery_task_active",
    "gauge",
    "Tasks that workers run now.",
    ("task_name",),
    lambda snapshot: (
        ((group.label_set.task_name,), group.count)
        for group in snapshot.tasks
        if group.state is State.STARTED
    ),
    merge=add,
    query='sum without (state, queue_name) (celery_tasks_in_flight{state="STARTED"})',
)
WORKERS = MetricFamily(
    "celery_workers",
    "gauge",
    "Workers that are up.",
    (),
    lambda snapshot: [((), sum(worker.up for worker in snapshot.workers))],
    query="celery_workers_online",
)


def _counter(options: MetricOptions, state: State) -> MetricFamily:
    task = native.task_labels(options)
    values = native.values_of(task)
    name, help_ = _COUNTERS[state]
    return MetricFamily(
        f"celery_task_{name}_total",
        "counter",
        help_,
        task,
        lambda snapshot: (
            (values(label_set), aggregate.transitions[state])
            for label_set, aggregate in snapshot.aggregates.items()
        ),
        merge=add if options.needs_merge else None,
        query=f'sum without (state) (celery_tasks_total{{state="{state.name}"}})',
    )


PROFILE = Profile(
    name="triton",
    about="a monitoring guide for Flower and Grafana",
    rows=rows,
    labels=attrgetter("task_labels"),
    buckets=native.RUNTIME_BUCKETS,
    queue_wait_buckets=native.WAIT_BUCKETS,
)
