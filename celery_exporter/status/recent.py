"""Calculates the growth of counts in the last minutes, from earlier snapshots.

The windows are those of the shipped alerts. Pure: callers pass the time, in seconds of a monotonic clock.
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

#: Seconds between two stored samples of sums (megabytes in a busy cluster), and between two of a number.
STEP_SECONDS, SHORT_STEP_SECONDS = 60.0, 15.0
#: Seconds that a mean has to cover.
MIN_MEAN_SECONDS = 300.0

_ENDED = (State.SUCCESS, State.FAILURE)
_QUANTILES = (0.5, 0.95)

T = TypeVar("T")


class TaskGrowth(Struct, frozen=True):
    """The growth of the tasks of one name in the window, from `aggregates` compared with `since`."""

    aggregates: Sequence[Aggregate]
    since: _Sums | None
    transitions: Sequence[int]  # by State
    failure_share: float | None  # of the tasks that ended in SUCCESS or FAILURE
    runtimes: Sequence[float | None]  # p50 and p95, in seconds
    waits: Sequence[float | None]  # p50 and p95, in seconds
    mean_runtime: float | None  # seconds
    redeliveries: int
    moved: _Sums | None  # sums that are under another name now


class WorkerGrowth(Struct, frozen=True):
    """The growth of the counts of one worker in the long window."""

    processed: int  # tasks that its pool accepted, by its own count
    missed: int  # of these, tasks without a `task-started` event


class Growth(Struct, frozen=True):
    """The growth of all counts in the last minutes. After a start, a window has fewer seconds."""

    seconds: float
    events: int
    tasks: Mapping[str, TaskGrowth]
    waits: Mapping[str, float]  # p95 in seconds by queue, of tasks that were started
    long_seconds: float
    workers: Mapping[str, WorkerGrowth]
    overflowed: int  # counts under the name other because a limit was reached
    lost: Mapping[str, int]  # records by sink that could not be delivered
    history_dropped: int  # tasks whose last change is not in the history file
    orphans: float | None  # started tasks that no worker reports, on average
    lengths: Sequence[
        tuple[float, Mapping[str, int | None]]
    ]  # of queues by name, with epoch seconds, in the long window


class _Sums(Struct, frozen=True):
    """The sums of a task name: transitions, and run times and waits by bucket (not cumulative)."""

    transitions: tuple[int, ...]
    runtime_counts: tuple[int, ...]
    queue_wait_counts: tuple[int, ...]
    runtime_seconds: float = 0.0
    redeliveries: int = 0


class _TaskSample(Struct, frozen=True):
    """The sums of all tasks at one time."""

    events: int
    tasks: Mapping[str, _Sums]
    waits: Mapping[str, tuple[int, ...]]  # by queue and bucket


class _WorkerSample(Struct, frozen=True):
    """The counts of all workers, sinks and the history file, and of series beyond the limit, at one time."""

    workers: Mapping[str, tuple[int, int]]  # processed, missed
    overflowed: int
    lost: Mapping[str, int]  # records by sink
    history_dropped: int


class _Window(Generic[T]):
    """Stores samples of a value. For several threads: `samples` is replaced, not changed."""

    def __init__(self, seconds: float, step: float) -> None:
        self._seconds, self._step = seconds, step
        self.samples: tuple[tuple[float, T], ...] = ()  # with their time, the oldest first

    def add(self, value: Callable[[], T], now: float) -> None:
        """Store a sample, unless the last one is more recent than one step."""
        samples = self.samples
        if not samples or now - samples[-1][0] >= self._step:
            samples = (*samples, (now, value()))
        while len(samples) > 1 and now - samples[0][0] > self._seconds:
            samples = samples[1:]
        self.samples = samples


class Recent:
    """Stores samples of the counts, and returns their growth since the oldest sample."""

    def __init__(self) -> None:
        self._tasks: _Window[_TaskSample] = _Window(WINDOW, STEP_SECONDS)
        self._workers: _Window[_WorkerSample] = _Window(LONG_WINDOW, STEP_SECONDS)
        self._orphans: _Window[int | None] = _Window(LONG_WINDOW, SHORT_STEP_SECONDS)
        self._lengths: _Window[tuple[float, Mapping[str, int | None]]] = _Window(
            LONG_WINDOW, SHORT_STEP_SECONDS
        )
        self._cache: Mapping[str, TaskGrowth] = {}  # by task name

    def add(self, snapshot: Snapshot, now: float) -> None:
        """Store samples of a snapshot that was taken now."""
        self._tasks.add(lambda: _task_sample(snapshot), now)
        self._workers.add(lambda: _worker_sample(snapshot), now)
        self._orphans.add(lambda: _orphans(snapshot), now)
        lengths = {queue.name: queue.length for queue in snapshot.queues}
        self._lengths.add(lambda: (snapshot.exporter.at, lengths), now)

    def growth(self, snapshot: Snapshot, now: float) -> Growth:
        """Return the growth up to a snapshot that was taken now; 0 s and no growth without a sample."""
        since, first = (self._tasks.samples or ((now, _task_sample(snapshot)),))[0]
        long_since, long_first = (self._workers.samples or ((now, _worker_sample(snapshot)),))[0]
        tasks = self._cache = _tasks(snapshot, first, self._cache)
        return Growth(
            seconds=now - since,
            events=max(0, sum(snapshot.events.values()) - first.events),
            tasks=tasks,
            waits=dict(_waits(snapshot, first)),
            long_seconds=now - long_since,
            workers=_workers(snapshot, [sample for _, sample in self._workers.samples]),
            overflowed=max(0, snapshot.series_overflowed - long_first.overflowed),
            lost={
                sink.name: sink.lost - long_first.lost.get(sink.name, 0) for sink in snapshot.exporter.sinks
            },
            history_dropped=_history_dropped(snapshot) - long_first.history_dropped,
            orphans=_mean(self._orphans.samples, now),
            lengths=[lengths for at, lengths in self._lengths.samples if now - at < LONG_WINDOW],
        )


def quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return a quantile of a histogram; None without observations or without bounds.

    The result is that of PromQL's histogram_quantile: linear within a bucket, and the highest bound for the
    last bucket, which has no upper bound.
    """
    cumulative = list(accumulate(counts))
    if not bounds or not cumulative or not cumulative[-1]:
        return None
    rank = share * cumulative[-1]
    bucket = bisect_left(cumulative, rank)
    if bucket == len(bounds):
        return bounds[-1]
    lower, below = (bounds[bucket - 1], cumulative[bucket - 1]) if bucket else (0.0, 0)
    # The division comes first. With the multiplication first, 3 of 3 observations up to 0.1 would exceed 0.1.
    within = lower + (bounds[bucket] - lower) * ((rank - below) / counts[bucket])
    return min(within, bounds[bucket])


# -- samples -------------------------------------------------------------------------------------------


def _task_sample(snapshot: Snapshot) -> _TaskSample:
    tasks = {
        name: _total(aggregates)
        for name, aggregates in _group(snapshot, lambda label_set: label_set.task_name).items()
    }
    return _TaskSample(sum(snapshot.events.values()), tasks, _waits_by_queue(snapshot))


def _worker_sample(snapshot: Snapshot) -> _WorkerSample:
    workers = {worker.name: (worker.processed_total, worker.missed) for worker in snapshot.workers}
    lost = {sink.name: sink.lost for sink in snapshot.exporter.sinks}
    return _WorkerSample(workers, snapshot.series_overflowed, lost, _history_dropped(snapshot))


def _history_dropped(snapshot: Snapshot) -> int:
    history = snapshot.exporter.history
    return sum(history.dropped.values()) if history else 0


def _orphans(snapshot: Snapshot) -> int | None:
    """Return the number of started tasks minus those that workers report as active.

    A worker that is down has no active tasks. None if a worker that is up does not report its number.
    """
    active = [worker.active for worker in snapshot.workers if worker.up]
    if None in active:
        return None
    running = sum(group.count for group in snapshot.tasks if group.state is State.STARTED)
    return running - sum(count for count in active if count is not None)


# -- growth between samples ----------------------------------------------------------------------------


def _mean(samples: Sequence[tuple[float, int | None]], now: float) -> float | None:
    values = [value for _, value in samples if value is not None]
    return sum(values) / len(values) if values and now - samples[0][0] >= MIN_MEAN_SECONDS else None


def _workers(snapshot: Snapshot, samples: Sequence[_WorkerSample]) -> dict[str, WorkerGrowth]:
    """Return the growth by worker since its first sample: its earlier counts belong to no window.

    A worker that was removed and came back counts from 0 again.
    """
    growth = {}
    for worker in snapshot.workers:
        name, now = worker.name, (worker.processed_total, worker.missed)
        processed, missed = next((old.workers[name] for old in samples if name in old.workers), now)
        if worker.processed_total < processed or worker.missed < missed:
            processed = missed = 0
        growth[name] = WorkerGrowth(worker.processed_total - processed, worker.missed - missed)
    return growth


def _waits(snapshot: Snapshot, first: _TaskSample) -> Iterable[tuple[str, float]]:
    now, before = _waits_by_queue(snapshot), dict(first.waits)
    moved = [_minus(counts, now.get(queue, ())) for queue, counts in before.items() if counts]
    before[OTHER] = _columns(counts for counts in (before.get(OTHER, ()), *moved) if any(counts))
    for queue, counts in now.items():
        p95 = quantile(_QUANTILES[1], snapshot.wait_bounds, _minus(counts, before.get(queue, ())))
        if p95 is not None:
            yield queue, p95


def _waits_by_queue(snapshot: Snapshot) -> dict[str, tuple[int, ...]]:
    return {
        name: _total(aggregates).queue_wait_counts
        for name, aggregates in _group(snapshot, lambda label_set: label_set.queue_name).items()
    }


def _tasks(snapshot: Snapshot, first: _TaskSample, cache: Mapping[str, TaskGrowth]) -> dict[str, TaskGrowth]:
    """Return the growth by task name; `cache` has the previous result, which most names keep."""
    aggregates, before = _group(snapshot, lambda label_set: label_set.task_name), dict(first.tasks)
    growth: dict[str, TaskGrowth] = {}
    # The counts of removed label sets are under `other` now. They are no growth of `other`.
    moved = [before.pop(name) for name in before.keys() - aggregates.keys()]
    for name in sorted(aggregates, key=OTHER.__eq__):  # `other` last
        if name == OTHER:
            before[OTHER] = _plus(before.get(OTHER, _ZERO), *moved)
        cached, since = cache.get(name), before.get(name)
        is_same = cached is not None and cached.since == since and cached.aggregates == aggregates[name]
        task = cached if cached is not None and is_same else _task(aggregates[name], since, snapshot)
        growth[name] = task
        if task.moved is not None:
            moved.append(task.moved)
    return growth


def _task(aggregates: Sequence[Aggregate], since: _Sums | None, snapshot: Snapshot) -> TaskGrowth:
    total = _total(aggregates)
    growth, moved = _difference(total, since), _difference(since or _ZERO, total)
    ended, runs = sum(growth.transitions[state] for state in _ENDED), sum(growth.runtime_counts)
    return TaskGrowth(
        aggregates,
        since,
        growth.transitions,
        failure_share=growth.transitions[State.FAILURE] / ended if ended else None,
        runtimes=[quantile(share, snapshot.runtime_bounds, growth.runtime_counts) for share in _QUANTILES],
        waits=[quantile(share, snapshot.wait_bounds, growth.queue_wait_counts) for share in _QUANTILES],
        mean_runtime=growth.runtime_seconds / runs if runs else None,
        redeliveries=growth.redeliveries,
        moved=moved if any(moved.transitions) else None,
    )


def _group(snapshot: Snapshot, label: Callable[[LabelSet], str]) -> dict[str, list[Aggregate]]:
    aggregates: dict[str, list[Aggregate]] = {}
    for label_set, aggregate in snapshot.aggregates.items():
        aggregates.setdefault(label(label_set), []).append(aggregate)
    return aggregates


def _total(aggregates: Sequence[Aggregate]) -> _Sums:
    return _Sums(
        _columns(aggregate.transitions for aggregate in aggregates),
        _columns(histogram.counts for aggregate in aggregates for histogram in aggregate.runtime.values()),
        _columns(aggregate.queue_wait.counts for aggregate in aggregates if aggregate.queue_wait is not None),
        sum(histogram.total for aggregate in aggregates for histogram in aggregate.runtime.values()),
        sum(aggregate.redeliveries for aggregate in aggregates),
    )


def _columns(rows: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return the sum of each column."""
    first, *more = rows if (rows := list(rows)) else ((),)
    return tuple(map(sum, zip(first, *more, strict=True))) if more else tuple(first)


def _difference(now: _Sums, first: _Sums | None) -> _Sums:
    """Return the growth between two samples, at least 0: counts can move to another name."""
    first = first or _ZERO
    return _Sums(
        _minus(now.transitions, first.transitions),
        _minus(now.runtime_counts, first.runtime_counts),
        _minus(now.queue_wait_counts, first.queue_wait_counts),
        max(0.0, now.runtime_seconds - first.runtime_seconds),
        max(0, now.redeliveries - first.redeliveries),
    )


def _plus(*parts: _Sums) -> _Sums:
    return _Sums(
        _columns(part.transitions for part in parts),
        _columns(part.runtime_counts for part in parts if part.runtime_counts),
        _columns(part.queue_wait_counts for part in parts if part.queue_wait_counts),
        sum(part.runtime_seconds for part in parts),
        sum(part.redeliveries for part in parts),
    )


def _minus(now: Sequence[int], first: Sequence[int]) -> tuple[int, ...]:
    difference = tuple(map(sub, now, first)) if first else tuple(now)
    is_growth = min(difference, default=0) >= 0
    return difference if is_growth else tuple(max(0, count) for count in difference)


_ZERO = _Sums((0,) * len(State), (), ())
