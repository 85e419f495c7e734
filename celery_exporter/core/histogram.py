"""Observations by size: in the buckets that somebody chose, and, if asked for, in those of native histograms.

The bounds of a native histogram's buckets are powers of 2^(1/8), schema 3 of Prometheus
(prometheus.io/docs/specs/native_histograms): each is 9 % wider than the one below.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from msgspec import Struct

SCHEMA = 3
_A_DOUBLING = 1 << SCHEMA
#: Buckets from a microsecond to half a year; what is below or above is counted in the first or the last. So
#: there are 352 of them at most, and the first is the one around zero.
ZERO, LAST = -20 * _A_DOUBLING, 24 * _A_DOUBLING
ZERO_THRESHOLD = 2.0**-20
#: The label of exemplars. With its value it has 128 characters at most (OpenMetrics 1.0).
EXEMPLAR_LABEL = "task_id"
LONGEST = 128 - len(EXEMPLAR_LABEL)


class Exemplar(Struct, frozen=True, gc=False):
    """One task, by its uuid, of those in a bucket."""

    uuid: str
    seconds: float


class Histogram(Struct, gc=False):
    """Counts per bucket (not cumulative; the last one is +Inf) and the sum of what was observed.

    `native` counts by index, from `ZERO` on; `exemplars` has the newest of each bucket. None: not wanted.
    """

    counts: list[int]
    total: float = 0.0
    native: dict[int, int] | None = None
    exemplars: dict[int, Exemplar] | None = None

    def observe(self, bounds: Sequence[float], value: float, uuid: str | None = None) -> None:
        """Count `value` in the first bucket whose upper bound is not below it."""
        bucket = bisect_left(bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if self.native is not None:
            index = native_index(value)
            self.native[index] = self.native.get(index, 0) + 1
        # Prometheus refuses a page with a NUL in an exemplar; and no other control is of use to anybody.
        if self.exemplars is not None and uuid and len(uuid) <= LONGEST and uuid.isprintable():
            self.exemplars[bucket] = Exemplar(uuid, value)

    def merge(self, other: Histogram) -> None:
        """Add another histogram's observations to these; both count natively, or neither does."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total
        if self.native is not None and other.native is not None:
            for index, count in other.native.items():
                self.native[index] = self.native.get(index, 0) + count
        if self.exemplars is not None and other.exemplars is not None:
            self.exemplars |= other.exemplars

    def copy(self) -> Histogram:
        """Return a copy that later observations do not change."""
        return Histogram(
            self.counts.copy(),
            self.total,
            None if self.native is None else self.native.copy(),
            None if self.exemplars is None else self.exemplars.copy(),
        )

    def thinned(self, places: Sequence[int]) -> Histogram:
        """Return one with fewer buckets: `places` says for each of these which one it goes to."""
        counts = [0] * (places[-1] + 1)
        for place, count in zip(places, self.counts, strict=True):
            counts[place] += count
        exemplars = self.exemplars and {places[at]: one for at, one in self.exemplars.items()}
        return Histogram(counts, self.total, self.native, exemplars)

    def empty(self) -> Histogram:
        """Return one with the same buckets in which nothing was observed."""
        return Histogram([0] * len(self.counts), 0.0, None if self.native is None else {})


def places(before: Sequence[float], now: Sequence[float]) -> list[int]:
    """Return to which of today's buckets each of those before goes; all of today's bounds are among these."""
    return [bisect_left(now, bound) for bound in (*before, math.inf)]


def native_index(value: float) -> int:
    """Return the index of the native bucket for a value: the lowest whose upper bound is not below it."""
    if value <= ZERO_THRESHOLD:
        return ZERO
    return min(math.ceil(math.log2(value) * _A_DOUBLING), LAST)
