"""What workers had processed some minutes ago, and what of that was missed: so a share of late is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol

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


class MissedWindow:
    """Remembers counts of workers. `before` has what was counted when the window began, None at first."""

    def __init__(self) -> None:
        self._moments: deque[tuple[float, Mapping[str, tuple[int, int]]]] = deque()

    @property
    def before(self) -> Mapping[str, tuple[int, int]] | None:
        """Return processed and missed by worker, when the window began."""
        return self._moments[0][1] if self._moments else None

    def look(self, workers: Iterable[Counting], now: float) -> None:
        """Remember this moment, in seconds of a clock that does not jump, unless the last is hardly over."""
        moments = self._moments
        if not moments or now - moments[-1][0] >= STEP:
            moments.append((now, {each.name: (each.processed_total, each.missed) for each in workers}))
        while len(moments) > 1 and now - moments[1][0] >= WINDOW:
            moments.popleft()


def grown(workers: Iterable[Counting], before: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Return what each worker has processed, and what was missed of it, since then."""
    found = {}
    for each in workers:
        processed, missed = before.get(each.name, (0, 0))
        found[each.name] = max(0, each.processed_total - processed), max(0, each.missed - missed)
    return found
