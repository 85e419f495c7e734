"""Stores series of numbers over 24 hours, at decreasing resolution and in bounded memory.

Pure: callers pass the time, in seconds of a monotonic clock. An unknown value is NaN here and None for
readers: a gap in a chart, never 0.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping

#: Points of each range. A chart on a page is some 400 pixels wide.
POINTS = 180
#: Name of a range → its seconds. Its points are 5 s, 20 s, 2 min and 8 min apart.
RANGES = {"15m": 900, "1h": 3_600, "6h": 21_600, "24h": 86_400}
#: Seconds between two samples: the step of the shortest range.
SAMPLE_SECONDS = RANGES["15m"] / POINTS

#: What a series is of (such as "queue"), and the name of that.
Key = tuple[str, str]

UNKNOWN = math.nan


class Ring:
    """The points of one range for all series. A new step overwrites the oldest one."""

    def __init__(self, seconds: float) -> None:
        self.step = seconds / POINTS
        self.slot: int | None = None  # number of the newest step
        self._written: tuple[int, ...] = (0,)  # steps that the newest values are of
        self._series: dict[Key, array[float]] = {}

    def advance(self, now: float) -> bool:
        """Begin the step of a time, and return whether it is a new one.

        Skipped steps are unknown. A single one gets the values of the new step: samples may be a step and a
        bit apart.
        """
        slot = math.floor(now / self.step)
        if self.slot is not None and slot <= self.slot:
            return False
        first = slot if self.slot is None else max(self.slot + 1, slot - POINTS + 1)
        for values in self._series.values():
            for skipped in range(first, slot + 1):
                values[skipped % POINTS] = UNKNOWN
        self._written = (slot - 1, slot) if self.slot == slot - 2 else (slot,)
        self.slot = slot
        return True

    def set(self, key: Key, value: float | None) -> None:
        """Set the value of the newest step."""
        values = self._series.get(key)
        if values is None:
            values = self._series[key] = array("d", [UNKNOWN]) * POINTS
        for slot in self._written:
            values[slot % POINTS] = UNKNOWN if value is None else value

    def set_peak(self, key: Key, value: float | None) -> None:
        """Set the value of the newest step if it is the highest one of that step: no peak gets lost."""
        values = self._series.get(key)
        newest = UNKNOWN if values is None else values[self._written[-1] % POINTS]
        if math.isnan(newest) or (value is not None and value > newest):
            self.set(key, value)

    def values(self, key: Key, now: float) -> list[float | None]:
        """Return the values up to the step of a time, the oldest first."""
        values, newest = self._series.get(key), self.slot
        last = math.floor(now / self.step)
        if values is None or newest is None:
            return [None] * POINTS
        return [
            None if not newest - POINTS < slot <= newest else _known(values[slot % POINTS])
            for slot in range(last - POINTS + 1, last + 1)
        ]

    def known_keys(self) -> frozenset[Key]:
        """Return the keys of all series."""
        return frozenset(self._series)

    def peaks(self) -> Mapping[Key, float]:
        """Return the highest value of each series; a series without values is missing."""
        known = {
            key: [value for value in values if not math.isnan(value)] for key, values in self._series.items()
        }
        return {key: max(values) for key, values in known.items() if values}

    def remove(self, key: Key) -> None:
        """Remove a series, if it is there."""
        self._series.pop(key, None)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
