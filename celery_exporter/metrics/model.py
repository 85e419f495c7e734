"""Tables that show a snapshot under one family of metric names. No state, no I/O: a row for each metric."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, Literal

from msgspec import Struct

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import UNKNOWN

#: One sample: its label values, in the order of the row's labels, and its value: a number, or a `Histogram`
#: where the row has bounds.
Sample = tuple[tuple[str, ...], Any]
#: Joins the values of two samples into one.
Merge = Callable[[Any, Any], Any]


#: What --metric-prefix replaces.
PREFIX = "celery_"
#: The labels of rows about tasks, in the order of `LabelSet`.
KEY_LABELS = ("task_name", "queue_name", "worker")
#: What profiles call the first of them.
TASK_NAMES = frozenset({"task_name", "name", "task", "task_type"})
#: Those that are optional, of the sums and so of what is in memory.
TASK_LABELS = ("queue_name", "worker")

#: Upper bucket bounds in seconds: what prometheus_client has by itself, and so most exporters.
COMMON_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class MetricFamily(Struct, frozen=True):
    """One metric family: what it is called and how a snapshot tells its samples.

    `--metric-prefix` replaces the `celery_` that a name begins with. A counter's name ends in `_total`.
    `merge` joins the values of samples with equal labels, where the snapshot is finer than the row.
    `bounds` returns the upper bucket bounds that a histogram was counted with, without +Inf; `buckets` are
    those of them that are shown, None for all; `decimal` ones are written as Python does, le="1.0", where
    ours are short, le="1". A counter `has_external_baseline` if something else counted before this exporter
    started: a 0 before its first value would make all of that an increase. `remark` says where a value
    differs on purpose from that of the exporter which the name is from; `query` makes it out of native
    metrics, in PromQL, of a histogram its buckets (its sum and count are made likewise). `absent` says when
    there is no sample, where that can be, and `example` is a question that it answers, in PromQL.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
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
        """Return the name with another beginning than `PREFIX`; a name that has another one keeps it."""
        return prefix + self.name.removeprefix(PREFIX) if self.name.startswith(PREFIX) else self.name


class MetricOptions(Struct, frozen=True, kw_only=True):
    """What somebody chose of how rows look. Upper bucket bounds in seconds; None for the profile's own."""

    task_labels: tuple[str, ...] = ("queue_name",)
    needs_merge: bool = False  # another profile needs more labels, so several sums may be one sample
    buckets: tuple[float, ...] | None = None
    queue_wait_buckets: tuple[float, ...] | None = None
    default_queue_name: str = UNKNOWN
    namespace: str = "celery"
    generic_hostname_task_sent_metric: bool = False
    generic_hostname_worker_task_metric: bool = False


class Profile(Struct, frozen=True, kw_only=True):
    """A family of metric names, where it is known from, and what it needs to be known."""

    name: str
    about: str
    rows: Callable[[MetricOptions], list[MetricFamily]]
    labels: Callable[[MetricOptions], tuple[str, ...]]  # of `TASK_LABELS`
    buckets: tuple[float, ...] = COMMON_BUCKETS
    queue_wait_buckets: tuple[float, ...] = COMMON_BUCKETS
    clients: Callable[[MetricOptions], bool] = lambda _: False  # which host sent a task
    hosts: bool = False  # sums over the workers of a host
    prefetched: bool = False  # what each worker has received and not started
    latency: bool = False  # the time from sent to started, or from received where no sending is known


#: Samples of a row are added up, histograms too.
add: Merge = operator.add


def of_each(things: str, field: Callable[[Any], float | None]) -> Callable[[Snapshot], Iterable[Sample]]:
    """Return samples for a row: of each of a snapshot's `things`, by its name, a field where it is known."""
    found = operator.attrgetter(things)
    return lambda snapshot: (
        ((each.name,), value) for each in found(snapshot) if (value := field(each)) is not None
    )


def means(samples: Iterable[Sample]) -> Iterable[Sample]:
    """Return the mean of what histograms observed, by labels."""
    sums: dict[tuple[str, ...], tuple[float, int]] = {}
    for labels, histogram in samples:
        total, count = sums.get(labels, (0.0, 0))
        sums[labels] = total + histogram.total, count + sum(histogram.counts)
    return ((labels, total / count) for labels, (total, count) in sums.items() if count)


def summed(vector: str, *without: str, how: str = "sum", **names: str) -> str:
    """Return PromQL that calls labels by new names (new=old), and adds up what differs in others of them.

    Labels that are not named here stay: whatever Prometheus adds to tell exporters apart, and `le`.
    """
    for new, old in names.items():
        pattern = "(?:[^@]*@)?(.+)" if new == "hostname" else "(.*)"  # as core.cluster.host
        vector = f'label_replace({vector}, "{new}", "$1", "{old}", "{pattern}")'
    return f"{how} without ({', '.join([*without, *names.values()])}) ({vector})"
