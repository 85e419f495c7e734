"""What was counted in the last minutes: a snapshot, compared with some that were taken before.

The windows are those of the shipped alerts. Pure: time comes in, in seconds of a clock that does not jump.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from operator import sub
from typing import Generic, TypeVar

from msgspec import Struct

from celery_exporter.core.aggregates import Aggregate
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import OTHER, LabelSet, State
from celery_exporter.status.thresholds import LONG_WINDOW, WINDOW

#: Seconds between two moments of which sums are remembered (of a busy cluster these are megabytes), and
#: between two of which a number is.
STEP, SHORT_STEP = 60.0, 15.0
#: Seconds over which a mean has to be taken until it says something.
ENOUGH = 300.0

_ENDED = (State.SUCCESS, State.FAILURE)
_SHARES = (0.5, 0.95)

T = TypeVar("T")


class TaskGrowth(Struct, frozen=True):
    """What tasks of one name did in the window; `cells` and `since` are what it was made of."""

    aggregates: Sequence[Aggregate]
    since: _Sums | None
    transitions: Sequence[int]  # by State
    failure_share: float | None  # of those that ended in SUCCESS or FAILURE
    runtimes: Sequence[float | None]  # p50 and p95
    waits: Sequence[float | None]
    mean_runtime: float | None
    redeliveries: int
    lost: _Sums | None  # what is added up under another name now


class WorkerGrowth(Struct, frozen=True):
    """What one worker did in the long window."""

    processed: int  # tasks that its pool accepted, by its own count
    missed: int  # those of them whose `task-started` did not come


class Growth(Struct, frozen=True):
    """All that was counted in the last minutes. Seconds of a window are fewer after a start."""

    seconds: float
    events: int
    tasks: Mapping[str, TaskGrowth]
    waits: Mapping[str, float]  # p95 of the waits in a queue, of tasks that were started
    long_seconds: float
    workers: Mapping[str, WorkerGrowth]
    folded: int  # times that something was counted as other, for want of room
    orphans: float | None  # tasks that were started and that no worker has, on average
    lengths: Sequence[
        tuple[float, Mapping[str, int | None]]
    ]  # of queues, at epoch seconds of the long window


class _Sums(Struct, frozen=True):
    """What a task name counted: states, and run times and waits by bucket (not cumulative)."""

    transitions: tuple[int, ...]
    runtime_counts: tuple[int, ...]
    queue_wait_counts: tuple[int, ...]
    runtime_seconds: float = 0.0  # seconds in all
    redeliveries: int = 0


class _Point(Struct, frozen=True):
    """One remembered moment of what tasks count."""

    events: int
    tasks: Mapping[str, _Sums]
    waits: Mapping[str, tuple[int, ...]]  # by queue and bucket


class _LongPoint(Struct, frozen=True):
    """One of what is counted of workers, and of this exporter's room."""

    workers: Mapping[str, tuple[int, int]]  # processed, and missed
    folded: int


class _Window(Generic[T]):
    """Remembers a value of some moments. For several threads: it is replaced, never changed."""

    def __init__(self, seconds: float, step: float) -> None:
        self._seconds, self._step = seconds, step
        self.moments: tuple[tuple[float, T], ...] = ()  # the oldest first

    def look(self, value: Callable[[], T], now: float) -> None:
        """Remember this moment, unless the last one is hardly over."""
        moments = self.moments
        if not moments or now - moments[-1][0] >= self._step:
            moments = (*moments, (now, value()))
        while len(moments) > 1 and now - moments[0][0] > self._seconds:
            moments = moments[1:]
        self.moments = moments


class Recent:
    """Remembers some moments, and tells what was counted since the oldest of them."""

    def __init__(self) -> None:
        self._points: _Window[_Point] = _Window(WINDOW, STEP)
        self._long_points: _Window[_LongPoint] = _Window(LONG_WINDOW, STEP)
        self._orphans: _Window[int | None] = _Window(LONG_WINDOW, SHORT_STEP)
        self._lengths: _Window[tuple[float, Mapping[str, int | None]]] = _Window(LONG_WINDOW, SHORT_STEP)
        self._known: Mapping[str, TaskGrowth] = {}

    def look(self, snapshot: Snapshot, now: float) -> None:
        """Remember this moment."""
        self._points.look(lambda: _point(snapshot), now)
        self._long_points.look(lambda: _long_point(snapshot), now)
        self._orphans.look(lambda: _orphans(snapshot), now)
        lengths = {queue.name: queue.length for queue in snapshot.queues}
        self._lengths.look(lambda: (snapshot.exporter.at, lengths), now)

    def growth(self, snapshot: Snapshot, now: float) -> Growth:
        """Return what was counted up to a snapshot that was taken now; nothing if none was remembered."""
        since, first = (self._points.moments or ((now, _point(snapshot)),))[0]
        long_since, long_first = (self._long_points.moments or ((now, _long_point(snapshot)),))[0]
        tasks = self._known = _tasks(snapshot, first, self._known)
        return Growth(
            seconds=now - since,
            events=max(0, sum(snapshot.events.values()) - first.events),
            tasks=tasks,
            waits=dict(_waits(snapshot, first)),
            long_seconds=now - long_since,
            workers=_workers(snapshot, [point for _, point in self._long_points.moments]),
            folded=max(0, snapshot.series_overflowed - long_first.folded),
            orphans=_mean(self._orphans.moments, now),
            lengths=[lengths for at, lengths in self._lengths.moments if now - at < LONG_WINDOW],
        )


def quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return the value below which a share of the observations is; None if there are none, or no bounds.

    As PromQL's histogram_quantile: within a bucket in proportion, and what is in the last, which has no
    upper bound, is at the highest bound.
    """
    upto = list(accumulate(counts))
    if not bounds or not upto or not upto[-1]:
        return None
    rank = share * upto[-1]
    bucket = bisect_left(upto, rank)
    if bucket == len(bounds):
        return bounds[-1]
    lower, below = (bounds[bucket - 1], upto[bucket - 1]) if bucket else (0.0, 0)
    # The share first: multiplied first, 3 of 3 observations up to 0.1 would be above 0.1.
    within = lower + (bounds[bucket] - lower) * ((rank - below) / counts[bucket])
    return min(within, bounds[bucket])


# -- moments -------------------------------------------------------------------------------------------


def _point(snapshot: Snapshot) -> _Point:
    tasks = {
        name: _added(aggregates) for name, aggregates in _by(snapshot, lambda key: key.task_name).items()
    }
    return _Point(sum(snapshot.events.values()), tasks, _waits_by_queue(snapshot))


def _long_point(snapshot: Snapshot) -> _LongPoint:
    workers = {each.name: (each.processed_total, each.missed) for each in snapshot.workers}
    return _LongPoint(workers, snapshot.series_overflowed)


def _orphans(snapshot: Snapshot) -> int | None:
    """Return how many tasks were started, have not ended, and are with no worker, as workers say.

    Workers that are down have none. Of one that is up and does not say how many it has, nobody can tell.
    """
    active = [worker.active for worker in snapshot.workers if worker.up]
    if None in active:
        return None
    running = sum(group.count for group in snapshot.tasks if group.state is State.STARTED)
    return running - sum(each for each in active if each is not None)


# -- what was counted between them -----------------------------------------------------------------------


def _mean(moments: Sequence[tuple[float, int | None]], now: float) -> float | None:
    known = [value for _, value in moments if value is not None]
    return sum(known) / len(known) if known and now - moments[0][0] >= ENOUGH else None


def _workers(snapshot: Snapshot, points: Sequence[_LongPoint]) -> dict[str, WorkerGrowth]:
    """Return it by worker, from when it was seen first: what it had processed before is of no window.

    One that was forgotten meanwhile, and came back, counts from 0 again.
    """
    found = {}
    for each in snapshot.workers:
        now = each.processed_total, each.missed
        processed, missed = next((it.workers[each.name] for it in points if each.name in it.workers), now)
        if each.processed_total < processed or each.missed < missed:
            processed = missed = 0
        found[each.name] = WorkerGrowth(each.processed_total - processed, each.missed - missed)
    return found


def _waits(snapshot: Snapshot, first: _Point) -> Iterable[tuple[str, float]]:
    now, before = _waits_by_queue(snapshot), dict(first.waits)
    lost = [_minus(counts, now.get(queue, ())) for queue, counts in before.items() if counts]
    before[OTHER] = _columns(counts for counts in (before.get(OTHER, ()), *lost) if any(counts))
    for queue, counts in now.items():
        p95 = quantile(_SHARES[1], snapshot.wait_bounds, _minus(counts, before.get(queue, ())))
        if p95 is not None:
            yield queue, p95


def _waits_by_queue(snapshot: Snapshot) -> dict[str, tuple[int, ...]]:
    return {
        name: _added(aggregates).queue_wait_counts
        for name, aggregates in _by(snapshot, lambda key: key.queue_name).items()
    }


def _tasks(snapshot: Snapshot, first: _Point, known: Mapping[str, TaskGrowth]) -> dict[str, TaskGrowth]:
    """Return it by name; `known` is what was returned the last time, for most names do not move."""
    aggregates, before = _by(snapshot, lambda key: key.task_name), dict(first.tasks)
    found: dict[str, TaskGrowth] = {}
    # What was counted under labels that were given up is under `other` now, and is no news there.
    lost = [before.pop(name) for name in before.keys() - aggregates.keys()]
    for name in sorted(aggregates, key=OTHER.__eq__):  # that one last
        if name == OTHER:
            before[OTHER] = _plus(before.get(OTHER, _NOTHING), *lost)
        old, since = known.get(name), before.get(name)
        is_same = old is not None and old.since == since and old.aggregates == aggregates[name]
        task = old if old is not None and is_same else _task(aggregates[name], since, snapshot)
        found[name] = task
        if task.lost is not None:
            lost.append(task.lost)
    return found


def _task(aggregates: Sequence[Aggregate], since: _Sums | None, snapshot: Snapshot) -> TaskGrowth:
    added = _added(aggregates)
    grown, lost = _grown(added, since), _grown(since or _NOTHING, added)
    ended, ran = sum(grown.transitions[state] for state in _ENDED), sum(grown.runtime_counts)
    return TaskGrowth(
        aggregates,
        since,
        grown.transitions,
        failure_share=grown.transitions[State.FAILURE] / ended if ended else None,
        runtimes=[quantile(share, snapshot.runtime_bounds, grown.runtime_counts) for share in _SHARES],
        waits=[quantile(share, snapshot.wait_bounds, grown.queue_wait_counts) for share in _SHARES],
        mean_runtime=grown.runtime_seconds / ran if ran else None,
        redeliveries=grown.redeliveries,
        lost=lost if any(lost.transitions) else None,
    )


def _by(snapshot: Snapshot, label: Callable[[LabelSet], str]) -> dict[str, list[Aggregate]]:
    aggregates: dict[str, list[Aggregate]] = {}
    for key, aggregate in snapshot.aggregates.items():
        aggregates.setdefault(label(key), []).append(aggregate)
    return aggregates


def _added(aggregates: Sequence[Aggregate]) -> _Sums:
    return _Sums(
        _columns(aggregate.transitions for aggregate in aggregates),
        _columns(histogram.counts for aggregate in aggregates for histogram in aggregate.runtime.values()),
        _columns(aggregate.queue_wait.counts for aggregate in aggregates if aggregate.queue_wait is not None),
        sum(histogram.total for aggregate in aggregates for histogram in aggregate.runtime.values()),
        sum(aggregate.redeliveries for aggregate in aggregates),
    )


def _columns(rows: Iterable[Sequence[int]]) -> tuple[int, ...]:
    first, *more = rows if (rows := list(rows)) else ((),)
    return tuple(map(sum, zip(first, *more, strict=True))) if more else tuple(first)


def _grown(now: _Sums, first: _Sums | None) -> _Sums:
    """Return what was counted between two moments. After folding that may be less than nothing: nothing."""
    first = first or _NOTHING
    return _Sums(
        _minus(now.transitions, first.transitions),
        _minus(now.runtime_counts, first.runtime_counts),
        _minus(now.queue_wait_counts, first.queue_wait_counts),
        max(0.0, now.runtime_seconds - first.runtime_seconds),
        max(0, now.redeliveries - first.redeliveries),
    )


def _plus(*all_: _Sums) -> _Sums:
    return _Sums(
        _columns(each.transitions for each in all_),
        _columns(each.runtime_counts for each in all_ if each.runtime_counts),
        _columns(each.queue_wait_counts for each in all_ if each.queue_wait_counts),
        sum(each.runtime_seconds for each in all_),
        sum(each.redeliveries for each in all_),
    )


def _minus(now: Sequence[int], first: Sequence[int]) -> tuple[int, ...]:
    grown = tuple(map(sub, now, first)) if first else tuple(now)
    return tuple(max(0, each) for each in grown) if min(grown, default=0) < 0 else grown


_NOTHING = _Sums((0,) * len(State), (), ())
