"""The names of OvalMoney/celery-exporter 1.5 (its README, celery_exporter/monitor.py and src/lib.rs)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from operator import attrgetter

from celery_exporter.core.aggregates import Aggregate
from celery_exporter.core.types import UNKNOWN, LabelSet, State
from celery_exporter.metrics.model import COMMON_BUCKETS, MetricFamily, MetricOptions, Profile, add, summed

_TASK = ("name", "queue", "namespace")
_LATENCY = "the original counts an eta as waiting, and takes the times at which the events reach it"
_WAITS = "celery_task_queue_wait_seconds_bucket or celery_task_prefetch_wait_seconds_bucket"
#: The label value of a queue whose name is not known (CELERY_MISSING_DATA).
UNDEFINED = "undefined"


def rows(shape: MetricOptions) -> list[MetricFamily]:
    """Return the table."""
    merge = add if shape.needs_merge else None
    namespace = shape.namespace
    return [
        MetricFamily(
            "celery_tasks_total",
            "counter",
            "Transitions of tasks into a state.",
            ("state", *_TASK),
            lambda snapshot: (
                ((state.name, *_values(namespace, key)), aggregate.transitions[state])
                for key, aggregate in snapshot.aggregates.items()
                for state in State
            ),
            merge=merge,
            query=_query(shape, 'celery_tasks_total{task_name!=""}'),
        ),
        _histogram(
            shape,
            "runtime",
            "Run time of tasks that succeeded.",
            lambda aggregate: aggregate.runtime.get(State.SUCCESS),
            _query(shape, 'celery_task_runtime_seconds_bucket{state="SUCCESS"}', "state"),
        ),
        _histogram(
            shape,
            "latency",
            "From sent (or eta) to started; from received by a worker where no sending is known.",
            attrgetter("latency"),
            _query(shape, _WAITS),
            waits=True,
            remark=_LATENCY,
        ),
        MetricFamily(
            "celery_workers",
            "gauge",
            "Workers that are up.",
            ("namespace",),
            lambda snapshot: [((namespace,), sum(worker.up for worker in snapshot.workers))],
            query=_spaced(shape, "celery_workers_online"),
        ),
    ]


def _query(shape: MetricOptions, counted: str, *without: str) -> str:
    vector = summed(counted, *without, "worker", name="task_name", queue="queue_name")
    return _spaced(shape, f'label_replace({vector}, "queue", "{UNDEFINED}", "queue", "{UNKNOWN}")')


def _spaced(shape: MetricOptions, query: str) -> str:
    namespace = json.dumps(shape.namespace.replace("$", "$$"), ensure_ascii=False)
    return f'label_replace({query}, "namespace", {namespace}, "", "")'


def _histogram(  # noqa: PLR0913  what differs between the two
    shape: MetricOptions,
    name: str,
    help_: str,
    which: Callable[[Aggregate], object],
    query: str,
    *,
    waits: bool = False,
    remark: str = "",
) -> MetricFamily:
    values = partial(_values, shape.namespace)
    return MetricFamily(
        f"celery_tasks_{name}_seconds",
        "histogram",
        help_,
        _TASK,
        lambda snapshot: (
            (values(key), histogram)
            for key, aggregate in snapshot.aggregates.items()
            if (histogram := which(aggregate)) is not None
        ),
        merge=add if shape.needs_merge else None,
        bounds=attrgetter("wait_bounds" if waits else "runtime_bounds"),
        buckets=(shape.queue_wait_buckets if waits else shape.buckets) or COMMON_BUCKETS,
        decimal=True,
        remark=remark,
        query=query,
    )


def _values(namespace: str, key: LabelSet) -> tuple[str, ...]:
    return key.task_name, UNDEFINED if key.queue_name == UNKNOWN else key.queue_name, namespace


PROFILE = Profile(
    name="ovalmoney",
    about="OvalMoney/celery-exporter 1.5",
    rows=rows,
    labels=lambda _: ("queue_name",),
    latency=True,
)
