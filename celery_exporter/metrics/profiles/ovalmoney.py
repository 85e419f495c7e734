"""The ovalmoney profile: the names of OvalMoney/celery-exporter 1.5.

Sources: its README, celery_exporter/monitor.py and src/lib.rs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from operator import attrgetter

from celery_exporter.core.aggregates import Aggregate
from celery_exporter.core.types import UNKNOWN, LabelSet, State
from celery_exporter.metrics.model import COMMON_BUCKETS, MetricFamily, MetricOptions, Profile, add, summed

_TASK = ("name", "queue", "namespace")
_LATENCY = "the original counts the time until an eta as waiting, and uses the times at which events arrive"
_WAITS = "celery_task_queue_wait_seconds_bucket or celery_task_prefetch_wait_seconds_bucket"
#: The label value of a queue whose name is unknown (CELERY_MISSING_DATA).
UNDEFINED = "undefined"


def rows(options: MetricOptions) -> list[MetricFamily]:
    """Return the rows of this profile."""
    merge = add if options.needs_merge else None
    namespace = options.namespace
    return [
        MetricFamily(
            "celery_tasks_total",
            "counter",
            "Transitions of tasks into a state.",
            ("state", *_TASK),
            lambda snapshot: (
                ((state.name, *_values(namespace, label_set)), aggregate.transitions[state])
                for label_set, aggregate in snapshot.aggregates.items()
                for state in State
            ),
            merge=merge,
            query=_query(options, 'celery_tasks_total{task_name!=""}'),
        ),
        _histogram(
            options,
            "runtime",
            "Run time of tasks that succeeded.",
            lambda aggregate: aggregate.runtime.get(State.SUCCESS),
            _query(options, 'celery_task_runtime_seconds_bucket{state="SUCCESS"}', "state"),
        ),
        _histogram(
            options,
            "latency",
            "Time from sent (or eta) to started; from received by a worker if no task-sent was received.",
            attrgetter("latency"),
            _query(options, _WAITS),
            waits=True,
            remark=_LATENCY,
        ),
        MetricFamily(
            "celery_workers",
            "gauge",
            "Workers that are up.",
            ("namespace",),
            lambda snapshot: [((namespace,), sum(worker.up for worker in snapshot.workers))],
            query=_with_namespace(options, "celery_workers_online"),
        ),
    ]


def _query(options: MetricOptions, vector: str, *without: str) -> str:
    vector = summed(vector, *without, "worker", name="task_name", queue="queue_name")
    return _with_namespace(options, f'label_replace({vector}, "queue", "{UNDEFINED}", "queue", "{UNKNOWN}")')


def _with_namespace(options: MetricOptions, query: str) -> str:
    namespace = json.dumps(options.namespace.replace("$", "$$"), ensure_ascii=False)
    return f'label_replace({query}, "namespace", {namespace}, "", "")'


def _histogram(  # noqa: PLR0913  the differences between the two histograms
    options: MetricOptions,
    name: str,
    help_: str,
    histogram_of: Callable[[Aggregate], object],
    query: str,
    *,
    waits: bool = False,
    remark: str = "",
) -> MetricFamily:
    values = partial(_values, options.namespace)
    return MetricFamily(
        f"celery_tasks_{name}_seconds",
        "histogram",
        help_,
        _TASK,
        lambda snapshot: (
            (values(label_set), histogram)
            for label_set, aggregate in snapshot.aggregates.items()
            if (histogram := histogram_of(aggregate)) is not None
        ),
        merge=add if options.needs_merge else None,
        bounds=attrgetter("wait_bounds" if waits else "runtime_bounds"),
        buckets=(options.queue_wait_buckets if waits else options.buckets) or COMMON_BUCKETS,
        decimal=True,
        remark=remark,
        query=query,
    )


def _values(namespace: str, label_set: LabelSet) -> tuple[str, ...]:
    return (
        label_set.task_name,
        UNDEFINED if label_set.queue_name == UNKNOWN else label_set.queue_name,
        namespace,
    )


PROFILE = Profile(
    name="ovalmoney",
    about="OvalMoney/celery-exporter 1.5",
    rows=rows,
    labels=lambda _: ("queue_name",),
    latency=True,
)
