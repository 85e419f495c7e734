"""The types of a metrics profile: a table with one row, a `MetricFamily`, for each metric.

A row reads its samples from a snapshot. It has no state and does no I/O.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, Literal

from msgspec import Struct

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import UNKNOWN

#: One sample: its label values, in the order of the row's labels, and its value. The value is a number, a
#: `Histogram` if the row has bounds, or a `Summary` if it is a summary.
Sample = tuple[tuple[str, ...], Any]
#: Combines the values of two samples into one.
Merge = Callable[[Any, Any], Any]


#: The prefix that --metric-prefix replaces.
PREFIX = "celery_"
#: The names of the labels of a `LabelSet`, in its order.
LABEL_SET_NAMES = ("task_name", "queue_name", "worker")
#: The names that profiles give to the label with the task name.
TASK_NAME_LABELS = frozenset({"task_name", "name", "task", "task_type"})
#: The optional labels of task metrics. Aggregates are kept by those in use.
TASK_LABELS = ("queue_name", "worker")

#: Upper bucket bounds in seconds: the default of prometheus_client, and so of most exporters.
COMMON_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class MetricFamily(Struct, frozen=True):
    """One metric family: its name, type, help and labels, and how to read its samples from a snapshot.

    - `name` may begin with `celery_`, which `--metric-prefix` replaces. A counter's name ends in `_total`.
    - `merge` combines the values of samples with equal labels. It is needed where the aggregates have more
      labels than the row.
    - `bounds` returns the upper bucket bounds that a histogram was counted with, without +Inf. `buckets` are
      the bounds that are exposed, None for all of them.
    - `decimal` bounds are written as in Python, le="1.0"; others as in Go, le="1".
    - `has_external_baseline` is true for a counter that a worker started before this exporter did. A 0 before
      its first value would turn all earlier counts into an increase.
    - `remark` says where the value differs on purpose from that of the exporter which the name comes from.
    - `query` is PromQL that computes the metric from native metrics. For a histogram it computes the buckets;
      sum and count are computed likewise.
    - `absent` says when there is no sample; empty if there always is one.
    - `example` is a PromQL query that uses the metric.
    """

    name: str
    type: Literal["counter", "gauge", "histogram", "summary"]
    help: str
    labels: tuple[str, ...]
    samples: Callable[[Snapshot], Iterable[Sample]]
    merge: Merge | None = None
    bounds: Callable[[Snapshot], Iterable[float]] | None = None
    buckets: tuple[float, ...] | None = None
    decimal: bool = False
    has_external_baseline: bool = False
    remark: str = ""
    query: str = ""
    absent: str = ""
    example: str = ""

    def full_name(self, prefix: str) -> str:
        """Return the name with `prefix` instead of `PREFIX`; a name without `PREFIX` stays as it is."""
        return prefix + self.name.removeprefix(PREFIX) if self.name.startswith(PREFIX) else self.name


class MetricOptions(Struct, frozen=True, kw_only=True):
    """User options that change rows. Upper bucket bounds are in seconds; None for those of the profile."""

    task_labels: tuple[str, ...] = ("queue_name",)
    needs_merge: bool = False  # another profile needs more labels, so several aggregates may be one sample
    buckets: tuple[float, ...] | None = None
    queue_wait_buckets: tuple[float, ...] | None = None
    default_queue_name: str = UNKNOWN
    namespace: str = "celery"
    generic_hostname_task_sent_metric: bool = False
    generic_hostname_worker_task_metric: bool = False


class Profile(Struct, frozen=True, kw_only=True):
    """A set of metric names, a description of its origin, and the data that it needs."""

    name: str
    about: str
    rows: Callable[[MetricOptions], list[MetricFamily]]
    labels: Callable[[MetricOptions], tuple[str, ...]]  # of `TASK_LABELS`
    buckets: tuple[float, ...] = COMMON_BUCKETS
    queue_wait_buckets: tuple[float, ...] = COMMON_BUCKETS
    clients: Callable[[MetricOptions], bool] = lambda _: False  # counts of sent tasks by the client's host
    hosts: bool = False  # sums over the workers of a host
    prefetched: bool = False  # how many tasks each worker has received and not started
    latency: bool = False  # the time from sent to started; from received if no task-sent is published


#: Adds up the samples of a row, also histograms.
add: Merge = operator.add


def of_each(path: str, field: Callable[[Any], float | None]) -> Callable[[Snapshot], Iterable[Sample]]:
    """Return a function that reads a row's samples: one for each item at `path` of a snapshot.

    The label value is the item's name, the value is `field` of it. An item whose field is None has no sample.
    """
    items = operator.attrgetter(path)
    return lambda snapshot: (
        ((item.name,), value) for item in items(snapshot) if (value := field(item)) is not None
    )


def means(samples: Iterable[Sample]) -> Iterable[Sample]:
    """Return the mean of the values that histograms observed, by label values."""
    sums: dict[tuple[str, ...], tuple[float, int]] = {}
    for labels, histogram in samples:
        total, count = sums.get(labels, (0.0, 0))
        sums[labels] = total + histogram.total, count + sum(histogram.counts)
    return ((labels, total / count) for labels, (total, count) in sums.items() if count)


def summed(vector: str, *without: str, how: str = "sum", **names: str) -> str:
    """Return PromQL that renames labels (new=old) and aggregates over the labels `without`.

    All other labels stay: those that Prometheus adds to distinguish exporters, and `le`.
    """
    for new, old in names.items():
        pattern = "(?:[^@]*@)?(.+)" if new == "hostname" else "(.*)"  # as core.workers.host
        vector = f'label_replace({vector}, "{new}", "$1", "{old}", "{pattern}")'
    return f"{how} without ({', '.join([*without, *names.values()])}) ({vector})"
