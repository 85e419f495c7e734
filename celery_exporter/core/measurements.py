"""What tasks measure themselves: `task-measured` events (celery_exporter.instrumentation).

Invariant: sums only grow, and moving those of one pair of task name and field to `REST` changes no total.
So a value below 0 is in records alone: a sum that falls looks like a restart to Prometheus.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice, takewhile
from typing import TypeVar

from msgspec import Struct

from celery_exporter.core.events import MAX_FIELDS, MAX_TAGS
from celery_exporter.core.label_sets import MEAN_BYTES
from celery_exporter.core.task_names import clipped
from celery_exporter.core.types import OTHER

#: The label values of a sum: task name and field.
Pair = tuple[str, str]
#: What one field was measured as: number, truth value or text.
Value = float | bool | str
V = TypeVar("V")

#: What does not fit is added up here.
REST: Pair = (OTHER, OTHER)
#: Bytes of measurements of unfinished tasks, for their last records: 25,000 tasks with 5 fields each.
MAX_PENDING_BYTES = 32 * 2**20
#: Bytes of memory for each of these tasks, and for each name and value besides their characters.
TASK_BYTES, ENTRY_BYTES = 600, 150


class Summary(Struct, frozen=True, gc=False):
    """How many numbers were measured, and their sum."""

    count: int = 0
    total: float = 0.0

    def __add__(self, other: Summary) -> Summary:
        """Return the summary of the numbers of both."""
        return Summary(self.count + other.count, self.total + other.total)


NOTHING = Summary()


class MeasurementSums:
    """Summaries by task name and field, `limit` pairs at most. Not thread-safe."""

    def __init__(self, limit: int) -> None:
        self.overflowed = 0  # numbers beyond the limit that were added to `REST`
        self._limit = limit
        self._bytes, self._max_bytes = 0, limit * MEAN_BYTES  # of the label values of all
        self._summaries: dict[Pair, Summary] = {}
        self._last_seen: dict[Pair, float] = {}  # listening time

    def snapshot(self) -> dict[Pair, Summary]:
        """Return all summaries as they are now."""
        return self._summaries.copy()

    def observe(self, name: str, fields: Mapping[str, Value], listening: float) -> None:
        """Add the numbers that a task with this label value measured."""
        for field, value in fields.items():
            if type(value) is float and value >= 0:
                self._add((name, clipped(field)), Summary(1, value), listening)

    def restore(self, pair: Pair, summary: Summary, listening: float) -> None:
        """Add the summary that an earlier process had; the time until it is idle starts now."""
        self._add(pair, summary, listening)

    def expire(self, before: float) -> None:
        """Move the summaries to `REST` that have had no number since a listening time."""
        idle = [pair for pair, seen in self._last_seen.items() if seen < before and pair != REST]
        for pair in idle:
            summary = self._summaries.pop(pair)
            del self._last_seen[pair]
            self._bytes -= _size(pair)
            self._summaries[REST] = self._summaries.get(REST, NOTHING) + summary

    def _add(self, pair: Pair, summary: Summary, listening: float) -> None:
        if pair not in self._summaries and pair != REST:
            size = _size(pair)
            if len(self._summaries) < self._limit and self._bytes + size <= self._max_bytes:
                self._bytes += size
            else:
                self.overflowed += summary.count
                pair = REST
        self._summaries[pair] = self._summaries.get(pair, NOTHING) + summary
        self._last_seen[pair] = listening


def _size(pair: Pair) -> int:
    """Return the bytes of the label values."""
    return sum(len(value.encode("utf-8", "replace")) for value in pair)


class _Pending(Struct, gc=False):
    tags: dict[str, str]
    fields: dict[str, Value]
    size: int  # bytes
    added: float  # listening time


class PendingMeasurements:
    """What unfinished tasks measured so far, by uuid: `limit` bytes, of which the oldest are dropped.

    A task need not be known yet: its worker buffers its own events for up to a second.
    """

    def __init__(self, limit: int = MAX_PENDING_BYTES) -> None:
        self._limit = limit
        self._size = 0
        self._pending: dict[str, _Pending] = {}  # the oldest comes first

    def __contains__(self, uuid: str) -> bool:
        """Return whether a task has measured anything."""
        return uuid in self._pending

    def add(self, uuid: str, tags: dict[str, str], fields: dict[str, Value], listening: float) -> None:
        """Add what a task measured; newer values replace those of the same name."""
        earlier_tags, earlier_fields = self.take(uuid)
        tags = _merged(earlier_tags, tags, MAX_TAGS)
        fields = _merged(earlier_fields, fields, MAX_FIELDS)
        size = TASK_BYTES + memory_of(tags) + memory_of(fields)
        self._pending[uuid] = _Pending(tags, fields, size, listening)
        self._size += size
        if self._size > self._limit:
            # A hundredth at once: each pass over the dict skips its deleted entries.
            for oldest in [*islice(self._pending, 1 + len(self._pending) // 100)]:
                self.take(oldest)

    def take(self, uuid: str) -> tuple[dict[str, str], dict[str, Value]]:
        """Remove and return the tags and fields of a task."""
        pending = self._pending.pop(uuid, None)
        if pending is None:
            return {}, {}
        self._size -= pending.size
        return pending.tags, pending.fields

    def expire(self, before: float) -> None:
        """Remove what was added before a listening time: those tasks are gone, too."""
        for uuid in [*takewhile(lambda uuid: self._pending[uuid].added < before, self._pending)]:
            self.take(uuid)


def memory_of(values: Mapping[str, Value | None]) -> int:
    """Return the bytes of memory that names and values take at most."""
    texts = (text for pair in values.items() for text in pair if isinstance(text, str))
    characters = sum(len(text) if text.isascii() else 4 * len(text) for text in texts)
    return ENTRY_BYTES * len(values) + characters


def _merged(before: dict[str, V], after: dict[str, V], limit: int) -> dict[str, V]:
    """Return the values of both, up to a number of names; it is a new dict if both have any."""
    return dict(islice({**before, **after}.items(), limit)) if before and after else before or after
