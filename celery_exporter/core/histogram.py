"""Histograms: classic buckets with configured bounds and, optionally, native ones.

The bounds of native buckets are powers of 2^(1/8), which is schema 3 of Prometheus
(prometheus.io/docs/specs/native_histograms). Each bucket is 9 % wider than the one below.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from msgspec import Struct

from celery_exporter.core.trace_ids import trace_id

SCHEMA = 3
_BUCKETS_PER_DOUBLING = 1 << SCHEMA
#: Indexes of the first native bucket (the zero bucket) and of the last one: a microsecond to half a year.
#: Smaller and larger values are counted in these two, so a histogram has at most 353 native buckets.
ZERO_INDEX, MAX_INDEX = -20 * _BUCKETS_PER_DOUBLING, 24 * _BUCKETS_PER_DOUBLING
ZERO_THRESHOLD = 2.0**-20
#: The labels of exemplars. Their names and values may have 128 characters altogether (OpenMetrics 1.0).
EXEMPLAR_LABEL, TRACE_LABEL = "task_id", "trace_id"
MAX_EXEMPLAR_LENGTH = 128
MAX_EXEMPLAR_ID_LENGTH = MAX_EXEMPLAR_LENGTH - len(EXEMPLAR_LABEL)


class Exemplar(Struct, frozen=True, gc=False):
    """An observation in a bucket, with the uuid of its task.

    `root` is the id of the task that began the workflow, from which the id of the trace follows. None: no
    spans are sent.
    """

    uuid: str
    seconds: float
    root: str | None = None

    def labels(self) -> dict[str, str]:
        """Return the labels: that of the trace is among them if it fits."""
        labels = {EXEMPLAR_LABEL: self.uuid}
        if self.root is None:
            return labels
        traced = {**labels, TRACE_LABEL: trace_id(self.root).hex()}
        return traced if sum(map(len, (*traced, *traced.values()))) <= MAX_EXEMPLAR_LENGTH else labels


class Histogram(Struct, gc=False):
    """Counts by bucket (not cumulative; the last bucket is +Inf) and the sum of all observations.

    `native` has counts by index, from `ZERO_INDEX` on. `exemplars` has the newest one of each bucket, by its
    index in `counts`. Both are None if they are off.
    """

    counts: list[int]
    total: float = 0.0
    native: dict[int, int] | None = None
    exemplars: dict[int, Exemplar] | None = None

    def observe(
        self, bounds: Sequence[float], value: float, uuid: str | None = None, root: str | None = None
    ) -> None:
        """Count a value in the first bucket whose upper bound is equal or greater.

        `uuid` and `root` are those of an exemplar.
        """
        bucket = bisect_left(bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if self.native is not None:
            index = native_index(value)
            self.native[index] = self.native.get(index, 0) + 1
        # Prometheus rejects a whole page for a NUL in an exemplar; other control characters are useless.
        if self.exemplars is not None and uuid and len(uuid) <= MAX_EXEMPLAR_ID_LENGTH and uuid.isprintable():
            self.exemplars[bucket] = Exemplar(uuid, value, root)

    def merge(self, other: Histogram) -> None:
        """Add the observations of another histogram with the same buckets."""
        self.counts = [sum(pair) for pair in zip(self.counts, other.counts, strict=True)]
        self.total += other.total
        if self.native is not None and other.native is not None:
            for index, count in other.native.items():
                self.native[index] = self.native.get(index, 0) + count
        if self.exemplars is not None and other.exemplars is not None:
            self.exemplars |= other.exemplars

    def copy(self) -> Histogram:
        """Return a copy that shares no mutable value with this histogram."""
        return Histogram(
            self.counts.copy(),
            self.total,
            None if self.native is None else self.native.copy(),
            None if self.exemplars is None else self.exemplars.copy(),
        )

    def rebucketed(self, indexes: Sequence[int]) -> Histogram:
        """Return a histogram with fewer buckets; `indexes` has the new index of each bucket."""
        counts = [0] * (indexes[-1] + 1)
        for index, count in zip(indexes, self.counts, strict=True):
            counts[index] += count
        exemplars = self.exemplars and {
            indexes[bucket]: exemplar for bucket, exemplar in self.exemplars.items()
        }
        return Histogram(counts, self.total, self.native, exemplars)

    def empty(self) -> Histogram:
        """Return a histogram with the same buckets and no observations."""
        return Histogram([0] * len(self.counts), 0.0, None if self.native is None else {})


def bucket_indexes(before: Sequence[float], after: Sequence[float]) -> list[int]:
    """Return the index among the bounds `after` for each bucket of the bounds `before`, +Inf included.

    All of `after` must be in `before`.
    """
    return [bisect_left(after, bound) for bound in (*before, math.inf)]


def native_index(value: float) -> int:
    """Return the index of the first native bucket whose upper bound is equal or greater."""
    if value <= ZERO_THRESHOLD:
        return ZERO_INDEX
    return min(math.ceil(math.log2(value) * _BUCKETS_PER_DOUBLING), MAX_INDEX)
