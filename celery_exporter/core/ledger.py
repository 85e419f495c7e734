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
        """Add another cell's sums to these, but for those by exception and client."""
        self.moved = [mine + theirs for mine, theirs in zip(self.moved, other.moved, strict=True)]
        for state, at in other.last.items():
            self.last[state] = max(at, self.last.get(state, at))
        self.redelivered += other.redelivered
        self.inherited = self.inherited or other.inherited
        for state, histogram in other.ran.items():
            self.ran[state] = _merged(self.ran.get(state), histogram)
        self.queued = _merged(self.queued, other.queued) if other.queued else self.queued
        self.prefetched = _merged(self.prefetched, other.prefetched) if other.prefetched else self.prefetched

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


class _Room(Struct, gc=False):
    """How many series there may be of a label whose values are not in the key, and how many there are."""

    of_key: int
    limit: int
    used: int = 0

    def count(self, sums: dict[str, int], value: str, times: int) -> int:
        """Add to a key's sum for a value; return how much of it went to `other`, for want of room."""
        folded = 0
        if value not in sums:
            full = len(sums) >= self.of_key or self.used >= self.limit
            if full and value not in (UNKNOWN, OTHER):
                value, folded = OTHER, times
            self.used += value not in sums
        sums[value] = sums.get(value, 0) + times
        return folded


class Ledger:
    """Sums of facts by key.

    `runtime_bounds` and `wait_bounds` are upper bucket bounds in seconds, rising, without +Inf. Exceptions
    and clients are the labels whose values are not in the key; of each there are `max_more` series at most.
    `native` and `exemplars` say whether histograms have those; `share` is that of the tasks, chosen by uuid,
    that histograms observe, None for all.
    """

    def __init__(  # noqa: PLR0913  what is measured, and how
        self,
        runtime_bounds: Sequence[float],
        wait_bounds: Sequence[float],
        max_more: int = 20_000,
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
        self.folded = 0  # failures and sendings whose exception or client was counted as other
        self._exceptions = _Room(MAX_EXCEPTIONS, max_more)
        self._clients = _Room(MAX_CLIENTS, max_more)
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
            self.folded += self._clients.count(cell.clients, client, 1)
        if fact.at > cell.last.get(PENDING, 0.0):
            cell.last[PENDING] = fact.at

    def _raised(self, fact: Raised) -> None:
        self.folded += self._exceptions.count(self._cell(fact.key).raised, fact.exception, 1)

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
            self._exceptions.used -= len(cell.raised)
            self._clients.used -= len(cell.clients)
            cell.inherited = True
            self._absorb(fact.into, cell)

    def _absorb(self, key: Key, other: Cell) -> None:
        cell = self._cell(key)
        cell.absorb(other)
        for exception, times in other.raised.items():
            self.folded += self._exceptions.count(cell.raised, exception, times)
        for client, times in other.clients.items():
            self.folded += self._clients.count(cell.clients, client, times)

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
