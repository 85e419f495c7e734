"""Facts are added up here, at the finest grain in use. Sums only grow; folding moves them, losing none."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from msgspec import Struct

from celery_exporter.core.facts import (
    OTHER,
    UNKNOWN,
    Fact,
    Folded,
    Key,
    Known,
    Moved,
    Prefetched,
    Queued,
    Raised,
    Ran,
    Redelivered,
    SentBy,
    State,
)
from celery_exporter.core.histograms import Histogram

# An enum's members are looked up each time they are named.
PENDING = State.PENDING

#: Distinct exception classes kept per task and queue; code that makes classes at run time has no end of
#: them. The rest is added up as "other".
MAX_EXCEPTIONS = 50
#: Distinct hosts of clients kept per task and queue.
MAX_CLIENTS = 100


class Cell(Struct, gc=False):
    """Everything added up under one key."""

    moved: list[int]  # by State
    last: dict[State, float]  # state → newest epoch second a task entered it
    raised: dict[str, int]
    redelivered: int
    ran: dict[State, Histogram]
    queued: Histogram | None
    prefetched: Histogram | None
    clients: dict[str, int] = {}  # host → tasks that it sent, where somebody wants to know
    inherited: bool = False  # some of it was counted under another key before

    @classmethod
    def empty(cls) -> Cell:
        """Return a cell in which nothing happened yet."""
        return cls([0] * len(State), {}, {}, 0, {}, None, None)

    def absorb(self, other: Cell) -> None:
        """Add another cell's sums to these, but for its failures."""
        self.moved = [mine + theirs for mine, theirs in zip(self.moved, other.moved, strict=True)]
        for state, at in other.last.items():
            self.last[state] = max(at, self.last.get(state, at))
        self.redelivered += other.redelivered
        for client, count in other.clients.items():
            self.sent_by(client, count)
        self.inherited = self.inherited or other.inherited
        for state, histogram in other.ran.items():
            self.ran[state] = _merged(self.ran.get(state), histogram)
        self.queued = _merged(self.queued, other.queued) if other.queued else self.queued
        self.prefetched = _merged(self.prefetched, other.prefetched) if other.prefetched else self.prefetched

    def sent_by(self, client: str, count: int = 1) -> None:
        """Count tasks that a host sent; one that there is no room for is `other`."""
        if client not in self.clients and len(self.clients) >= MAX_CLIENTS:
            client = OTHER
        self.clients[client] = self.clients.get(client, 0) + count

    def copy(self) -> Cell:
        """Return a copy that later facts do not change."""
        return Cell(
            self.moved.copy(),
            self.last.copy(),
            self.raised.copy(),
            self.redelivered,
            {state: histogram.copy() for state, histogram in self.ran.items()},
            self.queued and self.queued.copy(),
            self.prefetched and self.prefetched.copy(),
            self.clients.copy(),
            self.inherited,
        )


def _merged(mine: Histogram | None, theirs: Histogram) -> Histogram:
    if mine is None:
        return theirs.copy()
    mine.absorb(theirs)
    return mine


class Ledger:
    """Sums of facts by key.

    `runtime_bounds` and `wait_bounds` are upper bucket bounds in seconds, rising, without +Inf. Exceptions
    are the one label whose values are not in the key; there are `max_failures` series of them at most.
    `native` and `exemplars` say whether histograms have those; `share` is that of the tasks, chosen by uuid,
    that histograms observe, None for all.
    """

    def __init__(  # noqa: PLR0913  what is measured, and how
        self,
        runtime_bounds: Sequence[float],
        wait_bounds: Sequence[float],
        max_failures: int = 20_000,
        *,
        native: bool = False,
        exemplars: bool = False,
        share: float | None = None,
    ) -> None:
        self.runtime_bounds = tuple(runtime_bounds)
        self.wait_bounds = tuple(wait_bounds)
        self.native = native
        self.exemplars = exemplars
        self._share = share
        self.negative_waits = 0  # that were counted as 0 s
        self.folded = 0  # failures whose exception was counted as other
        self._failures = 0  # series of them
        self._max_failures = max_failures
        self._cells: dict[Key, Cell] = {}
        self._own: dict[Key, Cell] = {}  # those of them that are in no snapshot

    def add(self, facts: Iterable[Fact]) -> None:
        """Book each fact under its key."""
        book = self._BOOK
        for fact in facts:
            book[type(fact)](self, fact)

    def snapshot(self) -> dict[Key, Cell]:
        """Return all sums as they are now. They stay so: what is booked next is booked in copies.

        So it takes as long as a dict of them does, and each scrape costs one copy of what changed since.
        """
        self._own.clear()
        return self._cells.copy()

    def restore(self, key: Key, cell: Cell) -> None:
        """Add the sums of an earlier process under a key."""
        self._absorb(key, cell)

    def _cell(self, key: Key) -> Cell:
        """Return the sums of a key, to be changed."""
        cell = self._own.get(key)
        if cell is None:
            shared = self._cells.get(key)
            cell = self._own[key] = self._cells[key] = Cell.empty() if shared is None else shared.copy()
        return cell

    def _known(self, fact: Known) -> None:
        self._cell(fact.key)

    def _moved(self, fact: Moved) -> None:
        cell = self._cell(fact.key)
        cell.moved[fact.state] += 1
        if fact.at > cell.last.get(fact.state, 0.0):
            cell.last[fact.state] = fact.at

    def _sent_by(self, fact: SentBy) -> None:
        cell, client = self._cell(fact.key), fact.client
        cell.moved[PENDING] += 1
        if client in cell.clients:
            cell.clients[client] += 1
        else:
            cell.sent_by(client)
        if fact.at > cell.last.get(PENDING, 0.0):
            cell.last[PENDING] = fact.at

    def _raised(self, fact: Raised) -> None:
        self._count(self._cell(fact.key), fact.exception, 1)

    def _count(self, cell: Cell, exception: str, times: int) -> None:
        """Count failures with an exception; one that there is no room for is `other`."""
        raised = cell.raised
        if exception not in raised:
            full = len(raised) >= MAX_EXCEPTIONS or self._failures >= self._max_failures
            if full and exception not in (UNKNOWN, OTHER):
                self.folded += times
                exception = OTHER
            self._failures += exception not in raised
        raised[exception] = raised.get(exception, 0) + times

    def _ran(self, fact: Ran) -> None:
        ran = self._cell(fact.key).ran
        if fact.state not in ran:
            ran[fact.state] = self._histogram(self.runtime_bounds)
        self._observe(ran[fact.state], self.runtime_bounds, fact)

    def _queued(self, fact: Queued) -> None:
        cell = self._cell(fact.key)
        if cell.queued is None:
            cell.queued = self._histogram(self.wait_bounds)
        self._observe(cell.queued, self.wait_bounds, fact)

    def _prefetched(self, fact: Prefetched) -> None:
        cell = self._cell(fact.key)
        if cell.prefetched is None:
            cell.prefetched = self._histogram(self.wait_bounds)
        self._observe(cell.prefetched, self.wait_bounds, fact)

    def _observe(
        self, histogram: Histogram, bounds: Sequence[float], fact: Ran | Queued | Prefetched
    ) -> None:
        seconds = self._clamped(fact.seconds)
        if self._share is None or is_chosen(fact.uuid or "", self._share):
            histogram.observe(bounds, seconds, fact.uuid)

    def _redelivered(self, fact: Redelivered) -> None:
        self._cell(fact.key).redelivered += 1

    def _folded(self, fact: Folded) -> None:
        if fact.key in self._cells:
            cell = self._cell(fact.key)
            del self._cells[fact.key]
            del self._own[fact.key]
            self._failures -= len(cell.raised)
            cell.inherited = True
            self._absorb(fact.into, cell)

    def _absorb(self, key: Key, other: Cell) -> None:
        cell = self._cell(key)
        cell.absorb(other)
        for exception, times in other.raised.items():
            self._count(cell, exception, times)

    def _clamped(self, seconds: float) -> float:
        """Return a time between two clocks: one below 0 is their skew, and counted as such."""
        if seconds < 0:
            self.negative_waits += 1
            return 0.0
        return seconds

    def _histogram(self, bounds: Sequence[float]) -> Histogram:
        counts, native, exemplars = [0] * (len(bounds) + 1), self.native, self.exemplars
        return Histogram(counts, 0.0, {} if native else None, {} if exemplars else None)

    _BOOK: ClassVar[dict[type, Callable[[Ledger, Any], None]]] = {
        Known: _known,
        Moved: _moved,
        SentBy: _sent_by,
        Raised: _raised,
        Ran: _ran,
        Queued: _queued,
        Prefetched: _prefetched,
        Redelivered: _redelivered,
        Folded: _folded,
    }


def is_chosen(uuid: str, share: float) -> bool:
    """Tell whether a task is of the share that histograms observe: all of its observations, or none."""
    return zlib.crc32(uuid.encode()) < share * 2**32
