"""Which counting series each Prometheus server has seen, so that each sees a new one at 0 first.

`increase()` knows a series' first count only if there was a 0 before it. A task's states can start at 0, for
they are known beforehand; a new exception, or a histogram, cannot.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterable

from msgspec import Struct

#: Prometheus servers told apart at a time, by their address; two are usual.
MAX_SCRAPERS = 16
#: Seconds for which a series is news to scrapers that have not seen it: two intervals of a minute. Later an
#: unknown scraper is taken for an old one under a new address, for which a 0 would be a reset.
NEWS = 120.0
#: Seconds after our start within which the first scraper comes. If it comes later, what there is is no news.
FIRST_CONTACT = 300.0


def series_id(name: str, values: Iterable[str]) -> int:
    """Return a number for a series, the same in each process; it takes a tenth of the memory of the texts."""
    text = "\0".join((name, *values)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class FirstsMemory(Struct):
    """What was shown to whom, for the next process."""

    seen: dict[str, set[int]]
    born: dict[int, float]


class Visit:
    """One scrape: the series that it has `shown`, and that its scraper had `seen`, by their `series_id`."""

    def __init__(self, at: float, seen: set[int] | None, born: dict[int, float], *, all_old: bool) -> None:
        self.shown: set[int] = set()
        self._at = at
        self._is_known = seen is not None
        self.seen = seen or set()
        self._born = born
        self._all_old = all_old

    def is_news(self, series: int, *, inherited: bool) -> bool:
        """Tell whether a series that was not shown to this scraper last time has to be shown at 0.

        Not one that inherited what was counted under another one; to an unknown scraper only a young one.
        """
        old = self._all_old or inherited
        born = self._born.setdefault(series, -math.inf if old else self._at)
        return not old if self._is_known else self._at - born < NEWS


class Firsts:
    """Remembers what was shown to whom. Scrapes may run side by side."""

    def __init__(self) -> None:
        self._seen: dict[str, set[int]] = {}  # by scraper, the one that came longest ago first
        self._born: dict[int, float] = {}  # series → when it was first shown to anybody
        self._lock = threading.Lock()
        #: Scrapers to which series were shown under other names, and None: all of them.
        self._renamed: set[str | None] = set()
        self.visits = 0  # of scrapers, that were shown something

    def memory(self) -> FirstsMemory:
        """Return a copy of what was shown to whom."""
        with self._lock:
            return FirstsMemory(dict(self._seen), dict(self._born))

    def restore(self, memory: FirstsMemory, *, renamed: bool) -> None:
        """Go on where an earlier process ended: what was shown then is no news now, whatever it is called."""
        with self._lock:
            self._seen, self._born = memory.seen, memory.born
            self._renamed = {None, *memory.seen} if renamed else set()

    def begin(self, scraper: str, at: float, started: float) -> Visit:
        """Begin a scrape, at an epoch second; `started` is when this exporter was."""
        with self._lock:
            renamed = scraper in self._renamed or None in self._renamed
            all_old = renamed or (not self._seen and at - started > FIRST_CONTACT)
            return Visit(at, self._seen.get(scraper), self._born, all_old=all_old)

    def end(self, scraper: str, visit: Visit) -> None:
        """Remember what the scrape showed, and forget series that are gone and who came longest ago."""
        with self._lock:
            self.visits += 1
            self._renamed -= {None, scraper}
            self._seen.pop(scraper, None)
            self._seen[scraper] = visit.shown
            if len(self._seen) > MAX_SCRAPERS:
                del self._seen[next(iter(self._seen))]
            if len(self._born) > 2 * len(visit.shown) + 1000:
                self._born = {series: at for series, at in self._born.items() if series in visit.shown}
