"""Expected tasks: whether each was sent, and whether it succeeded, when its schedule says so.

Invariant: a task becomes overdue only if this exporter received events without a pause from its due time
until the end of its grace, and none was evidence of a run. Events that are sent during a pause are lost, so a
due time whose grace overlaps with a pause is not judged. There are two exceptions:

- A task that is overdue stays so over a pause that is shorter than its grace and than `every`. Over a longer
  one, it stays so unless it was due again meanwhile.
- A task that is due again within its grace is sent more often than a broker reconnects. Only the first of
  several short pauses takes the place of a run; the others make its grace longer. Else it would never be
  overdue.

    run (sent or succeeded) → due ─ grace ─→ overdue
    the first watch, or the end of a pause, takes the place of a run that is not known

A task was sent when its first attempt was: workers send retries, so these say nothing about beat. Only this
is noted at an event, and only at task-sent events of expected tasks. All else is read from the aggregates,
once a second. The times are kept here, since the aggregate of an idle task may be removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.schedules import EARLY_SECONDS, Cron, Every
from celery_exporter.core.tasks import TaskTable
from celery_exporter.core.types import State

#: Tasks that may be expected of one broker: each is judged every second, which takes 2 µs.
MAX_EXPECTED = 1_000
#: Seconds from the due time until a task is overdue, by default. Beat wakes up every 5 minutes at least
#: (`beat_max_loop_interval`; celery/beat.py), and needs that long to notice a clock that was changed.
DEFAULT_GRACE_SECONDS = 300.0
#: Seconds between two judgements.
JUDGE_SECONDS = 1.0
#: Seconds without a watch that are a pause. The event subscription watches four times a second while it
#: receives events; a busy machine may take longer, and loses no event by that.
MAX_GAP_SECONDS = 5.0
#: What is judged.
JUDGED = (State.PENDING, State.SUCCESS)


class ExpectedTask(Struct, frozen=True):
    """A task that has to run, by the name that metrics show; `grace` is in seconds."""

    name: str
    schedule: Every | Cron
    grace: float = DEFAULT_GRACE_SECONDS


class Watch(Struct):
    """One entry of the configuration and one state, PENDING (sent) or SUCCESS. Times are epoch seconds."""

    task: ExpectedTask
    state: State
    since: float = 0.0  # the newest due time before it is not judged
    last: float | None = None  # of the newest run; not later than when it was noticed
    due: float = 0.0  # the first due time after `since` and `last`
    # Of the aggregates when they were read last. A clock that was ahead once keeps `newest` in the future, so
    # that only the count says that there was another run.
    count: int = 0
    newest: float = 0.0
    has_sends: bool = False  # a task-sent event was received, so that receipts by workers are no evidence
    postponed: bool = False  # a pause took the place of a run since the last one
    paused: float = 0.0  # seconds of short pauses since the due time, by which the grace is longer

    def start(self, since: float) -> None:
        """Judge only what is due after a time."""
        self.since, self.paused = since, 0.0
        self._set_due()

    def record(self, at: float) -> None:
        """Record a run at a time."""
        self.last = at if self.last is None else max(at, self.last)
        self.postponed, self.paused = False, 0.0
        self._set_due()

    def read(self, count: int, newest: float, wall: float) -> float | None:
        """Return the time of a run that the aggregates have since they were read last."""
        is_newer, is_less, is_more = newest > self.newest, count < self.count, count > self.count
        self.count, self.newest = count, max(newest, self.newest)
        # A series that was removed begins at 0 again. Without a newer time, the sender's clock is behind.
        is_run = is_more or (is_newer and (is_less or self.state is State.SUCCESS))
        return (newest if is_newer else wall) if is_run else None

    def note_pause(self, begin: float, end: float) -> None:
        """Do not judge what was due, or in its grace, while no events were received."""
        self._set_back(end)
        task, due = self.task, self.due
        every = task.schedule.seconds if isinstance(task.schedule, Every) else task.grace
        is_short = end - begin < min(task.grace, every)
        if self.is_overdue(begin):
            if is_short:
                return
            due = task.schedule.next_due(max(due, begin - task.grace))
        if due - EARLY_SECONDS >= end:
            return
        if is_short and self.postponed and task.schedule.next_due(due) <= due + task.grace:
            self.paused += end - begin
            return
        self.postponed = True
        self.start(end)

    def is_overdue(self, wall: float) -> bool:
        """Return whether the grace of the due time is over."""
        return wall > self.due + self.task.grace + self.paused

    def _set_back(self, wall: float) -> None:
        """Replace times in the future, which were read from a clock that was wrong, by the time now."""
        if max(self.since, self.last or 0.0) > wall:
            self.since = min(self.since, wall)
            self.last = self.last and min(self.last, wall)
            self._set_due()

    def _set_due(self) -> None:
        after = self.since if self.last is None else max(self.since, self.last)
        self.due = self.task.schedule.next_due(after)


class ExpectedView(Struct, frozen=True):
    """One expected task and one state, as celery_task_overdue shows it. Of several entries, the worst."""

    name: str
    state: State
    due: float  # the first due time without a run; of several entries, the earliest
    overdue: bool
    last: float | None  # when it was sent, or succeeded, last


class SavedExpected(Struct):
    """The part of the state file; `watched` is when events were received last."""

    watched: float
    watches: list[Watch]


class ExpectedTasks:
    """The expected tasks of one broker. Not thread-safe. Call `watch` only while events arrive."""

    def __init__(self, tasks: Iterable[ExpectedTask] = ()) -> None:
        self.views: Sequence[ExpectedView] = ()  # as of the newest judgement
        self.watched: float | None = None  # wall time of the newest watch
        self.watches = [Watch(task, state) for task in tasks for state in JUDGED]
        self.names = frozenset(watch.task.name for watch in self.watches)
        #: The newest sender's time of first attempts since the last judgement, by name.
        self._sends: dict[str, float] = {}
        self._unstarted = self.watches
        self._next = 0.0  # wall time of the next judgement
        self._is_interrupted = False
        self._is_subscription_new = False
        # An event with an earlier sender's time may have waited: in a durable queue, or while the process
        # was stopped. A new subscription without such a queue begins with new events.
        self._live_since = 0.0

    def interrupt(self) -> None:
        """Take note of a new subscription: events before it are lost, however short the pause was."""
        self._is_interrupted = self._is_subscription_new = True

    def note_sent(self, name: str, at: float) -> None:
        """Take note of a first attempt that was sent, by the name that metrics show."""
        if name in self.names:
            self._sends[name] = max(at, self._sends.get(name, 0.0))

    def watch(self, wall: float, aggregates: Aggregates, tasks: TaskTable) -> None:
        """Judge, at a wall time up to which all events were applied."""
        if not self.watches:
            return
        before, self.watched = self.watched, wall
        is_pause = before is None or self._is_interrupted or abs(wall - before) > MAX_GAP_SECONDS
        if not is_pause and before is not None and before <= wall < self._next:
            return
        self._next = wall + JUDGE_SECONDS
        for watch in self._unstarted:
            watch.start(wall)
        self._unstarted = []
        if is_pause:
            self._live_since = wall
        self._record(wall, aggregates, tasks)
        if is_pause:
            self._end_pause(wall if before is None else min(before, wall), wall)
        self._judge(wall)

    def _end_pause(self, begin: float, end: float) -> None:
        for watch in self.watches:
            watch.note_pause(begin, end)
        if self._is_subscription_new:
            self._live_since = 0.0
        self._is_interrupted = self._is_subscription_new = False

    def _record(self, wall: float, aggregates: Aggregates, tasks: TaskTable) -> None:
        runs, retrying = aggregates.runs(self.names), tasks.retrying(self.names)
        sends, self._sends = self._sends, {}
        for watch in self.watches:
            name = watch.task.name
            of_task = runs.get(name)
            if watch.state is State.PENDING and name in sends:
                watch.has_sends = True
                at: float | None = sends[name]
            elif watch.has_sends or of_task is None:
                at = None
            elif watch.state is State.PENDING:
                at = watch.read(of_task.first_receipts(retrying[name]), of_task.newest(State.RECEIVED), wall)
            else:
                at = watch.read(of_task.counts[State.SUCCESS], of_task.newest(State.SUCCESS), wall)
            if at is not None:
                watch.record(self._noticed(at, wall))

    def _noticed(self, at: float, wall: float) -> float:
        """Return the time of a run by the clock of the exporter: that of the sender may be behind."""
        is_live = at >= self._live_since
        return wall if is_live and at < wall - EARLY_SECONDS else min(at, wall)

    def _judge(self, wall: float) -> None:
        views: dict[tuple[str, State], ExpectedView] = {}
        for watch in self.watches:
            overdue, key = watch.is_overdue(wall), (watch.task.name, watch.state)
            view = ExpectedView(watch.task.name, watch.state, watch.due, overdue, watch.last)
            other = views.get(key, view)
            views[key] = min(view, other, key=lambda each: (not each.overdue, each.due))
        self.views = [*views.values()]

    # -- state file --------------------------------------------------------------------------------------

    def restore(self, saved: SavedExpected) -> None:
        """Continue where an earlier process ended; the time between both is a pause, which `watch` notes.

        A task that is new, or has another schedule, is watched from now on.
        """
        of_schedule = {(old.task.name, old.task.schedule, old.state): old for old in saved.watches}
        of_task = {(old.task.name, old.state): old for old in saved.watches}
        self._unstarted = []
        for watch in self.watches:
            old = of_task.get((watch.task.name, watch.state))
            if old is not None:
                watch.last, watch.count, watch.newest = old.last, old.count, old.newest
                watch.has_sends = old.has_sends
            same = of_schedule.get((watch.task.name, watch.task.schedule, watch.state))
            watch.start(saved.watched if same is None else same.since)
            if same is None:
                self._unstarted.append(watch)
            else:
                watch.postponed, watch.paused = same.postponed, same.paused
        self.watched = saved.watched
        self._is_interrupted = True
        self._judge(saved.watched)
