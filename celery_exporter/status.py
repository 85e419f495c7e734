"""What is going on, for people and for scripts: a snapshot, and what some that were taken before add to it.

`Status` is the answer of /api/v1/status. Within a version fields are added, and none is renamed, removed or
given another meaning. Times are epoch seconds of this exporter's clock, durations are seconds, rates are per
second; null is what is not known. Pure: time comes in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import sub

from msgspec import Struct

from celery_exporter.advice import Finding, advise
from celery_exporter.core.ledger import Cell
from celery_exporter.core.snapshot import QueueView, Snapshot, WorkerView
from celery_exporter.core.words import OTHER, State

VERSION = 1
#: Seconds over which rates and quantiles are taken, and for which lengths of queues are remembered.
WINDOW, LENGTHS = 300.0, 900.0
#: Seconds between two moments of which lengths are remembered, and between two of which sums are: of these
#: a busy cluster has megabytes.
STEP, SUMS_STEP = 15.0, 60.0

_STATES = tuple(state.name for state in State)
_ENDED = (State.SUCCESS, State.FAILURE)
_SHARES = (0.5, 0.95)


class BrokerStatus(Struct, frozen=True):
    """The event path: whether it is open, and how it does."""

    url: str  # without secrets
    up: bool  # the event subscription is open
    reconnects: int  # since this exporter started
    last_event: float | None  # when the newest event was read
    event_lag: float | None  # by how much it was late, by its sender's clock
    events_per_second: float | None  # over the window
    unacked: int | None  # messages that workers hold and did not acknowledge; Redis only
    blocked: bool | None = None  # the broker blocks publishers, so no event can be sent; RabbitMQ only


class WorkerStatus(Struct, frozen=True):
    """One worker; what it does now is not known of one that is down."""

    name: str
    up: bool  # it did not say goodbye, and was heard within --worker-timeout
    active: int | None  # tasks that it executes now
    pool_size: int | None  # tasks that it can execute at once, as its pool is now
    processed: int  # tasks that its pool accepted, over restarts that were seen
    load: float | None  # of its host, over a minute
    clock_skew: float | None  # its clock minus this exporter's
    task_events: bool | None  # whether it sends them (-E)
    heartbeat: float | None  # when it was last heard
    version: str  # of its Celery; empty where it did not say
    pool_max: int | None = None  # tasks that it can execute at once when --autoscale has grown its pool


class QueueStatus(Struct, frozen=True):
    """One queue."""

    name: str
    length: int | None  # messages that wait in it
    oldest: float | None  # when its oldest message was sent
    consumers: int | None  # workers that take from it
    processes: int | None  # tasks that these can execute at once
    lengths: Sequence[tuple[float, int | None]]  # [when, length] of the last 15 minutes, up to now


class TaskStatus(Struct, frozen=True):
    """One task name: what happened in the last `window` seconds, and what is open now."""

    name: str
    rates: Mapping[str, float]  # tasks that entered a state of celery.states; empty right after a start
    failure_share: float | None  # of those that ended in SUCCESS or FAILURE
    runtime_p50: float | None  # half of the executions took less
    runtime_p95: float | None  # 95 % took less
    wait_p50: float | None  # from sent (or eta) to started: half waited less
    wait_p95: float | None  # 95 % waited less
    open: Mapping[str, int]  # unfinished tasks, by the state they are in
    oldest: float | None  # since when the one is in its state that is longest in it


class FailureStatus(Struct, frozen=True):
    """One failure of late. Arguments, the exception's text and the traceback are not kept."""

    at: float  # by the worker's clock
    task: str
    worker: str
    exception: str  # its class
    uuid: str  # of the task


class Status(Struct, frozen=True):
    """All of it. Rates and quantiles are over `window` seconds."""

    version: int  # of what is described here
    exporter_version: str  # as --version has it
    at: float  # when this was made; it is given to all who ask for 2 s, longer where it is large
    started: float  # when this exporter was
    window: float  # 300 to 375, or less after a start
    broker: BrokerStatus  # the event path
    findings: Sequence[Finding]  # also of what is well
    workers: Sequence[WorkerStatus]  # by name, as the next two are
    queues: Sequence[QueueStatus]
    tasks: Sequence[TaskStatus]
    failures: Sequence[FailureStatus]  # the newest first, 50 at most


class _Sums(Struct, frozen=True):
    """What a task name counted: states, and run times and waits by bucket (not cumulative)."""

    moved: tuple[int, ...]
    ran: tuple[int, ...]
    queued: tuple[int, ...]


class _Point(Struct, frozen=True):
    """One remembered moment."""

    now: float
    events: int
    tasks: Mapping[str, _Sums]


def _point(snapshot: Snapshot, now: float) -> _Point:
    return _Point(now, sum(snapshot.events.values()), _sums(snapshot))


class History:
    """Remembers some moments, and tells by them how fast things go. `now` is in seconds that do not jump.

    Looked at by several threads: what is remembered is replaced, never changed.
    """

    def __init__(self) -> None:
        self._points: tuple[_Point, ...] = ()
        self._lately: Mapping[str, _Lately] = {}
        self._lengths: tuple[tuple[float, float, Mapping[str, int | None]], ...] = ()

    def look(self, snapshot: Snapshot, now: float) -> None:
        """Remember this moment, unless the last one is hardly over."""
        if self._lengths and now - self._lengths[-1][0] < STEP:
            return
        lengths = {queue.name: queue.length for queue in snapshot.queues}
        self._lengths = (
            *(each for each in self._lengths if now - each[0] < LENGTHS),
            (now, snapshot.around.at, lengths),
        )
        points = self._points
        if not points or now - points[-1].now >= SUMS_STEP:
            points = (*points, _point(snapshot, now))
        while len(points) > 1 and now - points[1].now >= WINDOW:
            points = points[1:]
        self._points = points

    def status(self, snapshot: Snapshot, now: float, broker_url: str) -> Status:
        """Return what goes on, as of a snapshot that was taken now."""
        around = snapshot.around
        first = self._points[0] if self._points else _point(snapshot, now)
        window = now - first.now
        self._lately = _all_lately(snapshot, first, self._lately)
        return Status(
            version=VERSION,
            exporter_version=around.version,
            at=around.at,
            started=around.started,
            window=window,
            broker=BrokerStatus(
                broker_url,
                around.broker_up,
                around.reconnects,
                around.last_event,
                around.event_lag,
                (sum(snapshot.events.values()) - first.events) / window if window else None,
                around.unacked,
                None if around.blocked is None else bool(around.blocked),
            ),
            findings=advise(snapshot),
            workers=[_worker(worker) for worker in sorted(snapshot.workers, key=lambda each: each.name)],
            queues=[_queue(queue, around.at, self._lengths) for queue in snapshot.queues],
            tasks=_tasks(snapshot, self._lately, window),
            failures=[
                FailureStatus(each.at, each.key.task_name, each.worker, each.exception, each.uuid)
                for each in snapshot.failures
            ],
        )


def _worker(worker: WorkerView) -> WorkerStatus:
    return WorkerStatus(
        worker.name,
        worker.up,
        worker.active,
        worker.pool_size,
        worker.processed_total,
        worker.loadavg[0] if worker.loadavg else None,
        worker.clock_skew,
        worker.events,
        worker.heartbeat,
        worker.version,
        worker.pool_max,
    )


def _queue(
    queue: QueueView, now: float, lengths: Iterable[tuple[float, float, Mapping[str, int | None]]]
) -> QueueStatus:
    told = [(at, found[queue.name]) for _, at, found in lengths if queue.name in found]
    told.append((now, queue.length))
    return QueueStatus(queue.name, queue.length, queue.oldest, queue.consumers, queue.worker_processes, told)


# -- tasks ---------------------------------------------------------------------------------------------


class _Open(Struct):
    """The unfinished tasks of a name."""

    states: dict[str, int]
    oldest: float | None = None


class _Lately(Struct, frozen=True):
    """What a name counted since a moment, and what follows from it; kept, for most names do not move."""

    cells: Sequence[Cell]
    since: _Sums | None
    moved: Sequence[int]
    failure_share: float | None
    runtimes: Sequence[float | None]  # p50 and p95
    waits: Sequence[float | None]


def _tasks(snapshot: Snapshot, lately: Mapping[str, _Lately], window: float) -> list[TaskStatus]:
    open_: dict[str, _Open] = {}
    for group in snapshot.tasks:
        if group.count:
            one = open_.setdefault(group.key.task_name, _Open({}))
            one.states[group.state.name] = one.states.get(group.state.name, 0) + group.count
            one.oldest = min(filter(None, (group.since, one.oldest)), default=None)
    return [
        _task(name, lately.get(name, _NEVER), window, open_.get(name, _Open({})))
        for name in sorted(lately.keys() | open_.keys())
    ]


def _task(name: str, lately: _Lately, window: float, open_: _Open) -> TaskStatus:
    rates = dict(zip(_STATES, [count / window for count in lately.moved], strict=True)) if window else {}
    (runtime_p50, runtime_p95), (wait_p50, wait_p95) = lately.runtimes, lately.waits
    return TaskStatus(
        name,
        rates,
        lately.failure_share,
        runtime_p50,
        runtime_p95,
        wait_p50,
        wait_p95,
        open_.states,
        open_.oldest,
    )


def _all_lately(snapshot: Snapshot, first: _Point, known: Mapping[str, _Lately]) -> dict[str, _Lately]:
    """Return what each name counted since a moment; `known` is what was returned the last time."""
    cells, before = _cells(snapshot), dict(first.tasks)
    # What was counted of names that are gone is in that of the others now, and is no news there.
    gone = [before.pop(name) for name in before.keys() - cells.keys()]
    before[OTHER] = _plus(before.get(OTHER, _NOTHING), *gone)
    found = {}
    for name, some in cells.items():
        old, since = known.get(name), before.get(name)
        same = old is not None and old.since == since and old.cells == some
        found[name] = old if old is not None and same else _lately(some, since, snapshot)
    return found


def _lately(cells: Sequence[Cell], since: _Sums | None, snapshot: Snapshot) -> _Lately:
    grown = _grown(_added(cells), since)
    ended = sum(grown.moved[state] for state in _ENDED)
    failed = grown.moved[State.FAILURE] / ended if ended else None
    runtimes = [quantile(share, snapshot.runtime_bounds, grown.ran) for share in _SHARES]
    waits = [quantile(share, snapshot.wait_bounds, grown.queued) for share in _SHARES]
    return _Lately(cells, since, grown.moved, failed, runtimes, waits)


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
    return lower + (bounds[bucket] - lower) * (rank - below) / counts[bucket]


def _sums(snapshot: Snapshot) -> dict[str, _Sums]:
    return {name: _added(some) for name, some in _cells(snapshot).items()}


def _cells(snapshot: Snapshot) -> dict[str, list[Cell]]:
    cells: dict[str, list[Cell]] = {}
    for key, cell in snapshot.cells.items():
        cells.setdefault(key.task_name, []).append(cell)
    return cells


def _added(cells: Sequence[Cell]) -> _Sums:
    return _Sums(
        _columns(cell.moved for cell in cells),
        _columns(histogram.counts for cell in cells for histogram in cell.ran.values()),
        _columns(cell.queued.counts for cell in cells if cell.queued is not None),
    )


def _columns(rows: Iterable[Sequence[int]]) -> tuple[int, ...]:
    first, *more = rows if (rows := list(rows)) else ((),)
    return tuple(map(sum, zip(first, *more, strict=True))) if more else tuple(first)


def _grown(now: _Sums, first: _Sums | None) -> _Sums:
    """Return what was counted between two moments. After folding that may be less than nothing: nothing."""
    first = first or _NOTHING
    return _Sums(_minus(now.moved, first.moved), _minus(now.ran, first.ran), _minus(now.queued, first.queued))


def _plus(*all_: _Sums) -> _Sums:
    return _Sums(
        _columns(each.moved for each in all_),
        _columns(each.ran for each in all_ if each.ran),
        _columns(each.queued for each in all_ if each.queued),
    )


def _minus(now: Sequence[int], first: Sequence[int]) -> tuple[int, ...]:
    grown = tuple(map(sub, now, first)) if first else tuple(now)
    return tuple(max(0, each) for each in grown) if min(grown, default=0) < 0 else grown


_NOTHING = _Sums((0,) * len(State), (), ())
_NEVER = _Lately((), None, _NOTHING.moved, None, (None, None), (None, None))
