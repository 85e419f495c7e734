"""Which counting series are at 0 on a page before they are as they are: `increase()` needs that 0.

`increase()` knows a series' first count only if there was a 0 before it. A task's states can start at 0, for
they are known beforehand; a new exception, or a histogram, cannot. So each new series is at 0 on the page of
every Prometheus server until all of them have read that, and from then on it is as it is, for all of them.

Invariant: what one page shows is never less than what an earlier page showed, whoever reads them. So a server
whose address changes, or that is not known, may miss the 0; it never sees a count fall.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterable

from msgspec import Struct

#: Prometheus servers that are waited for at a time, told apart by their address; two are usual.
MAX_SCRAPERS = 100
#: Seconds for which a series waits at 0, at most, and for which a server is waited for: two intervals of a
#: minute.
PATIENCE = 120.0
#: Times after which a server has come so often that others would have come as well.
OFTEN = 3
#: Seconds after our start within which the first server comes. If it comes later, what there is is no news.
FIRST_CONTACT = 300.0


def series_id(name: str, values: Iterable[str]) -> int:
    """Return a number for a series, the same in each process; it takes a tenth of the memory of the texts."""
    text = "\0".join((name, *values)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class SeriesTrackerChanges(Struct):
    """What a state file has to know: series that are shown as they are from now on, and those that are gone.

    `scrapers` has the servers, and how often they came (`OFTEN` at most). `contacted` tells whether any has
    ever come, `began` (epoch seconds) when that could have been first.
    """

    opened: list[int]
    gone: list[int]
    scrapers: dict[str, int]
    contacted: bool
    began: float


class SeriesTrackerMemory(Struct):
    """What an earlier process has shown."""

    opened: set[int] = set()
    scrapers: dict[str, int] = {}
    contacted: bool = False
    began: float = math.inf

    def take(self, changes: SeriesTrackerChanges) -> None:
        """Go on with what was saved next."""
        self.opened.difference_update(changes.gone)
        self.opened.update(changes.opened)
        self.scrapers, self.contacted, self.began = changes.scrapers, changes.contacted, changes.began


class Scraper(Struct):
    """A Prometheus server."""

    seen: float  # when the newest page that it has read was begun, in monotonic seconds
    until: float  # how long it is waited for
    visits: int  # how often it came, OFTEN at most


class ScrapeSession:
    """One page for a Prometheus server, begun at a monotonic time, before what it shows was looked at."""

    def __init__(self, at: float, opened: dict[int, float], created: float | None, *, all_old: bool) -> None:
        self.at = at
        self.created = created  # epoch seconds when all counting series were at 0; None: not known
        self.shown: list[int] = []  # the counting series that are on it, …
        self.at_zero: set[int] = set()  # … those of them that it shows at 0, …
        self.opens: set[int] = set()  # … and those that it shows as they are though no page before did
        self._opened = opened
        self._all_old = all_old

    def shows(self, series: int) -> bool:
        """Tell whether a counting series is shown as it is."""
        self.shown.append(series)
        if series in self._opened:
            return True
        (self.opens if self._all_old else self.at_zero).add(series)
        return self._all_old

    def show(self, series: int) -> None:
        """Show it as it is though it is new: it inherited what was counted under another one.

        At 0 first, that would count again.
        """
        self.at_zero.discard(series)
        self.opens.add(series)


class SeriesTracker:
    """Remembers what was shown. Pages may be made side by side; times are monotonic seconds.

    With `is_saved`, a series is shown as it is only when a state file says so: `changes` is what to write
    there, `confirm` tells that it was written.
    """

    def __init__(self, now: float, wall: float, *, is_saved: bool = False) -> None:
        self._is_saved = is_saved
        self._started, self._began = now, wall
        self._contacted = False
        self._scrapers: dict[str, Scraper] = {}  # the one that came longest ago first
        self._opened: dict[int, float] = {}  # series → since when
        self._waiting: dict[int, float] = {}  # series → when the first page was begun on which it was at 0
        self._ready: dict[int, float] = {}  # read at 0 by all, and to be shown as they are
        self._written: list[int] = []  # those of them that are being written
        self._unwritten: set[int] = set()  # shown as they are, which the file does not say yet
        self._gone: list[int] = []
        self._lock = threading.Lock()

    def restore(self, memory: SeriesTrackerMemory, now: float, wall: float, *, renamed: bool) -> None:
        """Go on where an earlier process ended: what was shown then is no news now, whatever it is called."""
        with self._lock:
            self._began = min(memory.began, wall)
            self._started = now - max(0.0, wall - self._began)
            self._contacted = memory.contacted
            if renamed:
                self._began, self._started, self._contacted = 0.0, -math.inf, False
            self._opened = {} if renamed else dict.fromkeys(memory.opened, now)
            self._scrapers = {
                name: Scraper(-math.inf, now + PATIENCE, visits) for name, visits in memory.scrapers.items()
            }

    def begin(self, scraper: str, now: float) -> ScrapeSession:
        """Begin a page for a Prometheus server, told by its address."""
        with self._lock:
            self._scrapers.setdefault(scraper, Scraper(-math.inf, now + PATIENCE, 0))
            if len(self._scrapers) > MAX_SCRAPERS:
                del self._scrapers[next(iter(self._scrapers))]
            all_old = not self._contacted and now - self._started > FIRST_CONTACT
            # Under other names than before, nothing was ever at 0.
            return ScrapeSession(now, self._opened, self._began or None, all_old=all_old)

    def end(self, scraper: str, session: ScrapeSession, now: float) -> None:
        """Note that a server has read its page."""
        with self._lock:
            self._contacted = True
            self._note_scraper(scraper, session.at)
            for series in session.opens.difference(self._opened):
                self._open(series, session.at)
            for series in session.at_zero.difference(self._opened, self._ready):
                self._waiting.setdefault(series, session.at)
            self._forget_gone(session)
            if not self._is_saved:
                self._settle(now)
                self._confirm([*self._ready])

    def changes(self, now: float, *, everything: bool) -> SeriesTrackerChanges:
        """Return what is to be written; `everything` if nothing was written yet."""
        with self._lock:
            self._settle(now)
            self._written = [*self._ready]
            opened = self._opened if everything else self._unwritten
            scrapers = {name: one.visits for name, one in self._scrapers.items() if one.until > now}
            changes = SeriesTrackerChanges(
                [*opened, *self._ready], self._gone, scrapers, self._contacted, self._began
            )
            self._unwritten, self._gone = set(), []
            return changes

    def confirm(self) -> None:
        """Show from now on what `changes` returned last."""
        with self._lock:
            self._confirm(self._written)

    def _note_scraper(self, scraper: str, at: float) -> None:
        before = self._scrapers.pop(scraper, None)
        seen = max(at, before.seen) if before else at
        visits = min(before.visits + 1, OFTEN) if before else 1
        self._scrapers[scraper] = Scraper(seen, seen + PATIENCE, visits)

    def _settle(self, now: float) -> None:
        """Find the series that every server has read at 0 that is still waited for.

        While none has come often, another one may have the same interval and come only now.
        """
        awaited = [one for one in self._scrapers.values() if one.until > now]
        is_early = bool(awaited) and all(one.visits < OFTEN for one in awaited)
        read_by_all = -math.inf if is_early else min((one.seen for one in awaited), default=math.inf)
        for series, since in list(self._waiting.items()):
            if since <= read_by_all or now - since > PATIENCE:
                self._ready[series] = self._waiting.pop(series)

    def _confirm(self, written: list[int]) -> None:
        for series in written:
            if series in self._ready:
                self._opened[series] = self._ready.pop(series)

    def _open(self, series: int, at: float) -> None:
        """Note that a series was shown as it is before anybody had to read it at 0."""
        self._waiting.pop(series, None)
        self._ready.pop(series, None)
        self._opened[series] = at
        if self._is_saved:
            self._unwritten.add(series)

    def _forget_gone(self, session: ScrapeSession) -> None:
        """Forget series that are not on a page, unless they are younger than it."""
        if len(session.shown) == len(self._opened) + len(self._ready) + len(self._waiting):
            return  # none is gone; to look for each would cost as much as to write it
        shown = set(session.shown)
        for known in (self._opened, self._ready, self._waiting):
            if known.keys() <= shown:
                continue
            gone = [series for series, at in known.items() if at < session.at and series not in shown]
            for series in gone:
                del known[series]
            self._unwritten.difference_update(gone)
            self._gone += gone if self._is_saved else []
