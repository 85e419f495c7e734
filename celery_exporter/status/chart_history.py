"""Samples what the charts of the pages show: the cluster, its queues and its workers.

Pure: callers pass snapshots and the time, in seconds of a monotonic clock. Rates are per second of listening
to the broker: without events they are unknown, and not 0.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from operator import add, sub

from msgspec import Struct

from celery_exporter.core.aggregates import Aggregate
from celery_exporter.core.snapshot import Snapshot, WorkerView
from celery_exporter.core.types import LabelSet, State
from celery_exporter.status.facts import can_receive_events, has_discovered, workers_up
from celery_exporter.status.recent import quantile
from celery_exporter.status.rings import RANGES, Key, Ring

#: Seconds that quantiles and shares cover at least: those of fewer tasks would be noise.
QUANTILE_SECONDS = 60
#: The part of a step for which events have to be received, so that its rates are known.
MIN_LISTENING = 0.5
#: Names with series of their own: some 2 MB, with two series for each worker.
MAX_NAMES = 100
#: Names that may take the place of others at one sample.
MAX_REPLACED = 5
#: Restarts and changes of versions that are kept.
MAX_MARKS = 200

_QUANTILES = {"p50": 0.5, "p95": 0.95}
#: The states in which an attempt of a task ends.
OUTCOMES = (State.SUCCESS, State.FAILURE, State.RETRY, State.REVOKED, State.REJECTED)


class Mark(Struct, frozen=True):
    """A restart of a worker, or a change of its version, at monotonic seconds."""

    now: float
    kind: str  # restart, or version
    worker: str
    change: str = ""


class _Boundary(Struct, frozen=True):
    """What was counted up to the end of a step, in monotonic seconds."""

    now: float
    listening: float  # seconds
    sums: Sequence[int]  # of `_Totals`
    processed: Mapping[str, int]  # by worker


class ChartHistory:
    """The series of all charts: totals, the queues and the workers."""

    def __init__(self) -> None:
        self._rings = {name: Ring(seconds) for name, seconds in RANGES.items()}
        # By range: the ends of steps, the newest last. Quantiles in short steps cover several of them.
        self._boundaries: dict[str, deque[_Boundary]] = {
            name: deque(maxlen=max(1, math.ceil(QUANTILE_SECONDS / ring.step)))
            for name, ring in self._rings.items()
        }
        self._totals = _Totals()
        self._newest: _Boundary | None = None
        self._workers: Mapping[str, tuple[int, str]] = {}  # restarts and version
        self._marks: deque[Mark] = deque(maxlen=MAX_MARKS)

    def add(self, snapshot: Snapshot, now: float) -> None:
        """Store a snapshot that was taken now."""
        self._mark(snapshot.workers, now)
        lengths = self._choose("queue", {queue.name: queue.length for queue in snapshot.queues})
        active = self._choose("worker", _active(snapshot))
        gauges = {**_gauges(snapshot), **lengths, **active}
        self._totals.update(snapshot)
        processed = {
            worker.name: worker.processed_total
            for worker in snapshot.workers
            if ("worker", worker.name) in active
        }
        boundary = _Boundary(now, snapshot.exporter.listening, self._totals.sums, processed)
        for range_name, ring in self._rings.items():
            if ring.advance(now) and self._newest is not None:
                self._boundaries[range_name].append(self._newest)
            for key, value in gauges.items():
                ring.set_peak(key, value)
            for key, value in _growth(self._boundaries[range_name], boundary, snapshot):
                ring.set(key, value)
        self._newest = boundary

    def values(self, range_name: str, key: Key, now: float) -> list[float | None]:
        """Return the values of a series up to now, the oldest first."""
        return self._rings[range_name].values(key, now)

    def names(self, kind: str, range_name: str = "24h") -> list[str]:
        """Return the queues or workers that have series, those with the highest values first."""
        ring = self._rings[range_name]
        peaks = ring.peaks()
        keys = sorted(ring.known_keys(), key=lambda key: (-peaks.get(key, -1.0), key))
        return [name for key_kind, name in keys if key_kind == kind]

    def marks(self, range_name: str, now: float) -> list[Mark]:
        """Return what happened to workers in a range up to now, the oldest first."""
        return [mark for mark in self._marks if now - mark.now < RANGES[range_name]]

    # -- internals -------------------------------------------------------------------------------------

    def _mark(self, workers: Iterable[WorkerView], now: float) -> None:
        seen: dict[str, tuple[int, str]] = {}
        for worker in workers:
            restarts, version = self._workers.get(worker.name, (worker.restarts, ""))
            if worker.restarts > restarts:
                self._marks.append(Mark(now, "restart", worker.name))
            if worker.version and version not in {"", worker.version}:
                self._marks.append(Mark(now, "version", worker.name, f"{version} → {worker.version}"))
            seen[worker.name] = (worker.restarts, worker.version or version)
        self._workers = seen

    def _choose(self, kind: str, values: Mapping[str, int | None]) -> dict[Key, int | None]:
        """Return the values of the names that have series, by key.

        If there are too many names, those with the lowest values of the last minutes lose their series.
        """
        tracked = {name for key_kind, name in self._rings["24h"].known_keys() if key_kind == kind}
        new = sorted(values.keys() - tracked, key=lambda name: (-(values[name] or 0), name))
        free = MAX_NAMES - len(tracked)
        added, waiting = new[:free], [name for name in new[free:] if values[name]][:MAX_REPLACED]
        if waiting:
            peaks = self._rings["15m"].peaks()
            lowest = sorted(tracked, key=lambda name: (peaks.get((kind, name), -1.0), name))
            for name, replaced in zip(waiting, lowest, strict=False):
                if (values[name] or 0) > peaks.get((kind, replaced), -1.0):
                    self._remove((kind, replaced), (f"{kind} rate", replaced))
                    tracked.remove(replaced)
                    added.append(name)
        return {(kind, name): values[name] for name in (*tracked, *added) if name in values}

    def _remove(self, *keys: Key) -> None:
        for ring in self._rings.values():
            for key in keys:
                ring.remove(key)


# -- samples -------------------------------------------------------------------------------------------


class _Totals:
    """The sums of all aggregates, as one list: transitions by state, run times and waits by bucket.

    Only aggregates that changed are added up. Those in snapshots never change.
    """

    def __init__(self) -> None:
        self.sums: Sequence[int] = ()
        self._aggregates: Mapping[LabelSet, Aggregate] = {}

    def update(self, snapshot: Snapshot) -> None:
        """Set the sums to those of a snapshot."""
        before, after = self._aggregates, snapshot.aggregates
        changed = [key for key, aggregate in after.items() if before.get(key) is not aggregate]
        outdated = [key for key in changed if key in before] + list(before.keys() - after.keys())
        layout = len(snapshot.runtime_bounds) + 1, len(snapshot.wait_bounds) + 1
        sums = self.sums or [0] * (len(State) + sum(layout))
        for key in changed:
            sums = list(map(add, sums, _sums(after[key], *layout)))
        for key in outdated:
            sums = list(map(sub, sums, _sums(before[key], *layout)))
        self.sums, self._aggregates = sums, after


def _sums(aggregate: Aggregate, runtimes: int, waits: int) -> Iterable[int]:
    histograms = [histogram.counts for histogram in aggregate.runtime.values()]
    queue_wait = aggregate.queue_wait
    return (
        *aggregate.transitions,
        *(map(sum, zip(*histograms, strict=True)) if histograms else (0,) * runtimes),
        *(queue_wait.counts if queue_wait else (0,) * waits),
    )


def _active(snapshot: Snapshot) -> dict[str, int | None]:
    """Return how many tasks each worker executes; None if it is down, or nothing can be received."""
    receives = can_receive_events(snapshot)
    return {worker.name: worker.active if receives else None for worker in snapshot.workers}


def _gauges(snapshot: Snapshot) -> dict[Key, float | None]:
    workers, is_known = workers_up(snapshot), can_receive_events(snapshot) and has_discovered(snapshot)
    return {
        ("total", "length"): _sum(queue.length for queue in snapshot.queues),
        ("total", "active"): _sum(worker.active for worker in workers) if is_known else None,
        ("total", "processes"): _sum(worker.pool_size for worker in workers) if is_known else None,
        ("total", "workers"): len(workers) if is_known else None,
    }


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


# -- growth since the last steps -----------------------------------------------------------------------


def _growth(
    boundaries: Sequence[_Boundary], newest: _Boundary, snapshot: Snapshot
) -> Iterable[tuple[Key, float | None]]:
    """Yield rates since the newest boundary, and a share and quantiles since the oldest one."""
    if not boundaries:
        return
    last = boundaries[-1]
    seconds = _listened(last, newest)
    for state in OUTCOMES:
        yield ("rate", state.name), _rate(newest.sums[state] - last.sums[state], seconds)
    for name, processed in newest.processed.items():
        before = last.processed.get(name)
        yield ("worker rate", name), None if before is None else _rate(processed - before, seconds)
    sums = [max(0, count) for count in map(sub, newest.sums, boundaries[0].sums)]
    ended = sums[State.SUCCESS] + sums[State.FAILURE]
    is_known = _listened(boundaries[0], newest) is not None
    yield ("total", "failure share"), sums[State.FAILURE] / ended if ended and is_known else None
    middle = len(State) + len(snapshot.runtime_bounds) + 1
    runtimes, waits = sums[len(State) : middle], sums[middle:]
    for kind, bounds, counts in (
        ("runtime", snapshot.runtime_bounds, runtimes),
        ("wait", snapshot.wait_bounds, waits),
    ):
        for name, share in _QUANTILES.items():
            yield (kind, name), quantile(share, bounds, counts) if is_known else None


def _listened(since: _Boundary, newest: _Boundary) -> float | None:
    """Return the seconds of listening between two boundaries; None if they are too few."""
    seconds = newest.listening - since.listening
    return seconds if seconds > 0 and seconds >= MIN_LISTENING * (newest.now - since.now) else None


def _rate(growth: int, seconds: float | None) -> float | None:
    return None if seconds is None or growth < 0 else growth / seconds
