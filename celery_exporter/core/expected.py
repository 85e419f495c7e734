"""Expected tasks: whether each was sent, and whether it succeeded, when its schedule says so.

Invariant: a task becomes overdue only if this exporter received events without a pause from its due time
until the end of its grace, and none was evidence of a run. Events that are sent during a pause are lost, so a
due time whose grace overlaps with a pause is not judged. A task that is overdue before a pause stays overdue,
unless it was due again meanwhile.

    run (sent or succeeded) → due ─ grace ─→ overdue
    the first watch, or the end of a pause, takes the place of a run that is not known

Nothing here happens for an event: the times are those of the aggregates, read once a second. They are kept
here, since the aggregate of an idle task may be removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.schedules import EARLY_SECONDS, Cron, Every
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
#: What is judged, by the states whose newest time is evidence of it: a task that was received was sent, if no
#: client publishes task-sent events.
EVIDENCE: Mapping[State, Sequence[State]] = {
    State.PENDING: (State.PENDING, State.RECEIVED, State.STARTED),
    State.SUCCESS: (State.SUCCESS,),
}


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
    # Of the aggregates when they were read last. A sender whose clock was ahead once keeps `newest` in the
    # future, so that only the count says that there was another run.
    count: int = 0
    newest: float = 0.0

    def start(self, since: float) -> None:
        """Judge only what is due after a time."""
        self.since = since
        self._set_due()

    def record(self, runs: Mapping[State, tuple[int, float]], wall: float) -> None:
        """Record the newest run; `runs` has how often the task entered each state, and when last."""
        of_evidence = [runs[state] for state in EVIDENCE[self.state] if state in runs]
        count = sum(count for count, _ in of_evidence)
        newest = max((at for _, at in of_evidence), default=0.0)
        if count > self.count or newest > self.newest:
            self.last = min(newest, wall)
            self._set_due()
        self.count, self.newest = count, max(newest, self.newest)

    def note_pause(self, begin: float, end: float) -> None:
        """Do not judge what was due, or in its grace, while no events were received."""
        is_late = self.due + self.task.grace < begin
        due = self.due
        if is_late:
            due = self.task.schedule.next_due(max(due, begin - self.task.grace))
        if due - EARLY_SECONDS < end:
            self.start(end)

    def is_overdue(self, wall: float) -> bool:
        """Return whether the grace of the due time is over."""
        return wall > self.due + self.task.grace

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
        self.watches = [Watch(task, state) for task in tasks for state in EVIDENCE]
        self.names = frozenset(watch.task.name for watch in self.watches)
        self._unstarted = self.watches
        self._next = 0.0  # wall time of the next judgement
        self._is_interrupted = False

    def interrupt(self) -> None:
        """Take note of a new subscription: events before it are lost, however short the pause was."""
        self._is_interrupted = True

    def watch(self, wall: float, aggregates: Aggregates) -> None:
        """Judge, at a wall time up to which all events were applied."""
        if not self.watches:
            return
        before, self.watched = self.watched, wall
        is_pause = before is not None and (self._is_interrupted or wall - before > MAX_GAP_SECONDS)
        if not is_pause and before is not None and before <= wall < self._next:
            return
        self._is_interrupted = False
        self._next = wall + JUDGE_SECONDS
        for watch in self._unstarted:
            watch.start(wall)
        self._unstarted = []
        self._record(wall, aggregates)
        if before is not None and is_pause:
            for watch in self.watches:
                watch.note_pause(before, wall)
        self._judge(wall)

    def _record(self, wall: float, aggregates: Aggregates) -> None:
        runs = aggregates.runs(self.names)
        for watch in self.watches:
            watch.record(runs.get(watch.task.name, {}), wall)

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
            same = of_schedule.get((watch.task.name, watch.task.schedule, watch.state))
            watch.start(saved.watched if same is None else same.since)
            if same is None:
                self._unstarted.append(watch)
        self.watched = saved.watched
        self._is_interrupted = True
        self._judge(saved.watched)
