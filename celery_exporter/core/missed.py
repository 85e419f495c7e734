"""What workers had processed some minutes ago, and what of that was missed: the share missed since then."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol

from msgspec import Struct

#: Seconds that are looked back, as the alert CeleryEventsMissed does, and between two moments remembered.
WINDOW, STEP = 900.0, 60.0


class Counting(Protocol):
    """A worker: what it has processed, and what of that was missed, over all its restarts."""

    @property
    def name(self) -> str:
        """Its node name."""

    @property
    def processed_total(self) -> int:
        """Tasks that its pool accepted, by its own count."""

    @property
    def missed(self) -> int:
        """Those of them whose `task-started` did not come."""


class Counts(Struct, frozen=True):
    """What each worker had processed, and what of that was missed, so many seconds ago."""

    seconds: float
    of_workers: Mapping[str, tuple[int, int]]


class MissedWindow:
    """Remembers what workers had counted. Moments are in seconds of a clock that does not jump."""

    def __init__(self) -> None:
        self._moments: deque[tuple[float, Mapping[str, tuple[int, int]]]] = deque()

    def before(self, now: float) -> Counts | None:
        """Return what was counted when the window began; None if nothing is remembered yet."""
        if not self._moments:
            return None
        at, of_workers = self._moments[0]
        return Counts(now - at, of_workers)

    def look(self, workers: Iterable[Counting], now: float) -> None:
        """Remember this moment, unless the last one is hardly over."""
        moments = self._moments
        if not moments or now - moments[-1][0] >= STEP:
            moments.append((now, {each.name: (each.processed_total, each.missed) for each in workers}))
        while len(moments) > 1 and now - moments[1][0] >= WINDOW:
            moments.popleft()


def grown(workers: Iterable[Counting], before: Counts) -> dict[str, tuple[int, int]]:
    """Return what each worker has processed since then, and what of that was missed.

    One that was forgotten meanwhile, and came back, counts from 0 again.
    """
    found = {}
    for each in workers:
        processed, missed = before.of_workers.get(each.name, (0, 0))
        if each.processed_total < processed or each.missed < missed:
            processed = missed = 0
        found[each.name] = each.processed_total - processed, each.missed - missed
    return found
