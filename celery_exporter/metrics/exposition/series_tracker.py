"""Which counting series are exposed at 0 before their value: `increase()` needs that 0.

`increase()` includes the first count of a series only if Prometheus scraped a 0 before it. The states of a
task can start at 0, because they are known in advance. A new exception or a histogram cannot. So each new
series is first exposed at 0 to every Prometheus server. When all of them have read the 0, the series is
opened: it is exposed with its value, to all of them.

Invariant: no page shows less than an earlier page did, whichever servers read them. So a server whose address
is unknown or changes may miss the 0, but it never sees a count fall.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterable

from msgspec import Struct

#: Prometheus servers that are tracked at a time, by their address. Two are usual.
MAX_SCRAPERS = 100
#: Seconds after which a series is opened even if a server has not read its 0, and after which a server that
#: stopped scraping is ignored: two scrape intervals of a minute.
MAX_WAIT_SECONDS = 120.0
#: Scrapes of one server after which any other server would have scraped, too.
REGULAR_SCRAPES = 3
#: Seconds after the start within which the first scrape is expected. If it comes later, series that exist by
#: then are exposed with their value: their counts are not new.
FIRST_SCRAPE_SECONDS = 300.0


def series_id(name: str, values: Iterable[str]) -> int:
    """Return a number for a series, the same in each process.

    It needs a tenth of the memory of the name and label values.
    """
    text = "\0".join((name, *values)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class SeriesTrackerChanges(Struct):
    """What changed since the last save: the series that were opened, and those that are gone.

    `scrapers` has the servers, and how often each scraped, up to `REGULAR_SCRAPES`. `contacted` is true if
    any server has ever scraped. `began` is when the first exporter with this state started (epoch seconds).
    """

    opened: list[int]
    gone: list[int]
    scrapers: dict[str, int]
    contacted: bool
    began: float


class SeriesTrackerMemory(Struct):
    """What an earlier process exposed, from the state file."""

    opened: set[int] = set()
    scrapers: dict[str, int] = {}
    contacted: bool = False
    began: float = math.inf

    def take(self, changes: SeriesTrackerChanges) -> None:
        """Apply the changes of the next save."""
        self.opened.difference_update(changes.gone)
        self.opened.update(changes.opened)
        self.scrapers, self.contacted, self.began = changes.scrapers, changes.contacted, changes.began


class Scraper(Struct):
    """A Prometheus server. Times are monotonic seconds."""

    seen: float  # when the newest page that it has read was begun
    until: float  # how long series wait for it to read their 0
    scrapes: int  # how often it scraped, up to REGULAR_SCRAPES


class ScrapeSession:
    """One page for a Prometheus server, begun at a monotonic time before the snapshot was taken."""

    def __init__(self, at: float, opened: dict[int, float], created: float | None, *, all_old: bool) -> None:
        self.at = at
        self.created = created  # epoch seconds at which all counting series were at 0; None if unknown
        self.series: list[int] = []  # the counting series on the page
        self.at_zero: set[int] = set()  # of them: those exposed at 0
        self.opens: set[int] = set()  # of them: those that it is the first page to expose with their value
        self._opened = opened
        self._all_old = all_old

    def needs_zero(self, series: int) -> bool:
        """Add a counting series to the page; return whether it must be exposed at 0."""
        self.series.append(series)
        if series in self._opened:
            return False
        (self.opens if self._all_old else self.at_zero).add(series)
        return not self._all_old

    def skip_zero(self, series: int) -> None:
        """Expose a new series with its value, because it inherited the counts of another series.

        With a 0 first, `increase()` would count these again.
        """
        self.at_zero.discard(series)
        self.opens.add(series)


class SeriesTracker:
    """Decides which series are exposed at 0. Thread-safe; times are monotonic seconds.

    With `is_saved`, a series is opened only after the state file says so: `changes` returns what to write
    there, and `confirm` is called when it is written.
    """

    def __init__(self, now: float, wall: float, *, is_saved: bool = False) -> None:
        self._is_saved = is_saved
        self._started, self._began = now, wall
        self._contacted = False
        self._scrapers: dict[str, Scraper] = {}  # the one whose last scrape is oldest comes first
        self._opened: dict[int, float] = {}  # series → when it was opened
        self._waiting: dict[int, float] = {}  # series → when the first page that shows it at 0 was begun
        self._ready: dict[int, float] = {}  # series whose 0 all servers have read, not opened yet
        self._written: list[int] = []  # of them: those that are being written to the state file
        self._unwritten: set[int] = set()  # opened series that are not in the state file yet
        self._gone: list[int] = []
        self._lock = threading.Lock()

    def restore(self, memory: SeriesTrackerMemory, now: float, wall: float, *, names_changed: bool) -> None:
        """Continue where an earlier process ended.

        With `names_changed`, series have other names than in that process. Then all series that exist now
        are exposed with their value: their counts are not new.
        """
        with self._lock:
            self._began = min(memory.began, wall)
            self._started = now - max(0.0, wall - self._began)
            self._contacted = memory.contacted
            if names_changed:
                self._began, self._started, self._contacted = 0.0, -math.inf, False
            self._opened = {} if names_changed else dict.fromkeys(memory.opened, now)
            self._scrapers = {
                name: Scraper(-math.inf, now + MAX_WAIT_SECONDS, scrapes)
                for name, scrapes in memory.scrapers.items()
            }

    def begin(self, scraper: str, now: float) -> ScrapeSession:
        """Begin a page for the Prometheus server with this address."""
        with self._lock:
            self._scrapers.setdefault(scraper, Scraper(-math.inf, now + MAX_WAIT_SECONDS, 0))
            if len(self._scrapers) > MAX_SCRAPERS:
                del self._scrapers[next(iter(self._scrapers))]
            all_old = not self._contacted and now - self._started > FIRST_SCRAPE_SECONDS
            # After a change of names, `_began` is 0: no series was ever at 0 under its current name.
            return ScrapeSession(now, self._opened, self._began or None, all_old=all_old)

    def end(self, scraper: str, session: ScrapeSession, now: float) -> None:
        """Record that a server has read its page."""
        with self._lock:
            self._contacted = True
            self._record_scrape(scraper, session.at)
            for series in session.opens.difference(self._opened):
                self._open(series, session.at)
            for series in session.at_zero.difference(self._opened, self._ready):
                self._waiting.setdefault(series, session.at)
            self._remove_gone(session)
            if not self._is_saved:
                self._end_waits(now)
                self._confirm([*self._ready])

    def changes(self, now: float, *, everything: bool) -> SeriesTrackerChanges:
        """Return what to write to the state file; `everything` if it is a new file."""
        with self._lock:
            self._end_waits(now)
            self._written = [*self._ready]
            opened = self._opened if everything else self._unwritten
            scrapers = {
                name: scraper.scrapes for name, scraper in self._scrapers.items() if scraper.until > now
            }
            changes = SeriesTrackerChanges(
                [*opened, *self._ready], self._gone, scrapers, self._contacted, self._began
            )
            self._unwritten, self._gone = set(), []
            return changes

    def confirm(self) -> None:
        """Open the series of the last `changes`, which are in the state file now."""
        with self._lock:
            self._confirm(self._written)

    def _record_scrape(self, address: str, at: float) -> None:
        scraper = self._scrapers.pop(address, None)
        seen = max(at, scraper.seen) if scraper else at
        scrapes = min(scraper.scrapes + 1, REGULAR_SCRAPES) if scraper else 1
        self._scrapers[address] = Scraper(seen, seen + MAX_WAIT_SECONDS, scrapes)

    def _end_waits(self, now: float) -> None:
        """Make the series ready whose 0 every server has read, and those that waited too long.

        Until one server has scraped regularly, another with the same interval may still follow.
        """
        awaited = [scraper for scraper in self._scrapers.values() if scraper.until > now]
        is_early = bool(awaited) and all(scraper.scrapes < REGULAR_SCRAPES for scraper in awaited)
        read_by_all = -math.inf if is_early else min((scraper.seen for scraper in awaited), default=math.inf)
        for series, since in list(self._waiting.items()):
            if since <= read_by_all or now - since > MAX_WAIT_SECONDS:
                self._ready[series] = self._waiting.pop(series)

    def _confirm(self, written: list[int]) -> None:
        for series in written:
            if series in self._ready:
                self._opened[series] = self._ready.pop(series)

    def _open(self, series: int, at: float) -> None:
        """Open a series that a page exposed with its value, without a 0 before it."""
        self._waiting.pop(series, None)
        self._ready.pop(series, None)
        self._opened[series] = at
        if self._is_saved:
            self._unwritten.add(series)

    def _remove_gone(self, session: ScrapeSession) -> None:
        """Remove series that are not on the page, except those that are newer than the page."""
        if len(session.series) == len(self._opened) + len(self._ready) + len(self._waiting):
            return  # none is gone; comparing each would cost as much as writing the page
        on_page = set(session.series)
        for tracked in (self._opened, self._ready, self._waiting):
            if tracked.keys() <= on_page:
                continue
            gone = [series for series, at in tracked.items() if at < session.at and series not in on_page]
            for series in gone:
                del tracked[series]
            self._unwritten.difference_update(gone)
            self._gone += gone if self._is_saved else []
