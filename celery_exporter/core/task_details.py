"""What is known of one task besides its state, its label set and its worker, while anything wants to know it.

Sinks make records of it, and the history shows it. All times are epoch seconds of the sender's clock.
"""

from __future__ import annotations

from msgspec import Struct

from celery_exporter.core.events import Event, EventWithAncestry, EventWithArguments, epoch
from celery_exporter.core.types import LabelSet, State

#: Attempts of one task that are kept besides the newest one, and as many that are not over.
MAX_ATTEMPTS_KEPT = 32
MAX_OPEN_ATTEMPTS = 8
#: The reason of a task that was removed while it was open.
FORGOTTEN = "forgotten"


class Attempt(Struct, frozen=True, gc=False):
    """One attempt of a task, or one delivery of it. None: unknown."""

    number: int | None  # `retries` of the message, and generations as in `task_history.MAX_ATTEMPTS`
    sent: float | None = None
    eta: float | None = None
    received: float | None = None
    started: float | None = None
    ended: float | None = None
    state: State | None = None  # that ended it; None also if no event reported an end
    reason: str | None = None  # why it counts as over then; see `reconcile.REASONS`
    runtime: float | None = None
    exception: str | None = None  # class name
    worker: str | None = None
    label_set: LabelSet | None = None


class AttemptEnd(Struct, frozen=True, gc=False):
    """How an attempt ended; see `Attempt`. `ended` is None for a task that was removed while it was open."""

    ended: float | None
    state: State | None = None
    reason: str | None = None
    runtime: float | None = None
    exception: str | None = None
    worker: str | None = None
    label_set: LabelSet | None = None


_OPEN = AttemptEnd(None)


class Rest(Struct, gc=False):
    """What most tasks do not have: further attempts, and arguments."""

    over: list[Attempt] = []  # oldest first
    open: dict[int, Attempt] = {}  # by number
    args: str | None = None
    kwargs: str | None = None
    result: str | None = None


_NO_REST = Rest()


class TaskDetails(Struct, gc=False):
    """The attempt that the newest event is about in its fields, and the others.

    There may be a million of them, so it has few fields.
    """

    attempt: int | None
    root: str | None = None
    parent: str | None = None
    client: str | None = None
    first_sent: float | None = None
    sent: float | None = None
    eta: float | None = None
    received: float | None = None
    started: float | None = None
    end: AttemptEnd | None = None
    rest: Rest | None = None

    def current(self) -> Attempt:
        """Return the attempt in the fields."""
        end = self.end or _OPEN
        return Attempt(
            self.attempt,
            self.sent,
            self.eta,
            self.received,
            self.started,
            end.ended,
            end.state,
            end.reason,
            end.runtime,
            end.exception,
            end.worker,
            end.label_set,
        )

    def arguments(self) -> tuple[str | None, str | None, str | None]:
        """Return its args, kwargs and result, as far as they are known."""
        rest = self.rest or _NO_REST
        return rest.args, rest.kwargs, rest.result

    def attempts(self) -> list[Attempt]:
        """Return all attempts, the newest last: events of an earlier one may come later."""
        if self.rest is None:
            return [self.current()]
        attempts = [*self.rest.over, *self.rest.open.values(), self.current()]
        if len(attempts) == 1:
            return attempts
        is_numbered = all(attempt.number is not None for attempt in attempts)
        return sorted(attempts, key=_place if is_numbered else _begin)

    def is_first_known(self) -> bool:
        """Return whether the sending of attempt 0 is known.

        A client makes its event after it has sent the task. A fast worker may have sent a retry by then.
        """
        return any(attempt.number == 0 and attempt.sent is not None for attempt in self.attempts())

    def is_of_current(self, worker: str, state: State) -> bool:
        """Return whether an end, of a delivery that is unknown, is of the attempt in the fields.

        A worker sends no task-received for a task that it does not register, or that was revoked before. If
        it rejects a task that failed, or fails one that it rejected, it reports both. A retry is sent before
        the end of the attempt before it is reported.
        """
        if self.end is None:
            is_before = state is State.RETRY and bool(self.attempt)
            return self.received is None and self.started is None and not is_before
        return worker == self.end.worker and {state, self.end.state} == {State.FAILURE, State.REJECTED}

    def switch(self, attempt: int | None) -> None:
        """Put this attempt into the fields, and keep the one that is there."""
        if self.end is not None:
            self.close()
        elif self.attempt is not None and self._has_times():
            others = self._expand().open
            others[self.attempt] = self.current()
            if len(others) > MAX_OPEN_ATTEMPTS:
                del others[min(others)]
        self._load(self.rest.open.pop(attempt, None) if self.rest and attempt is not None else None)
        self.attempt = attempt

    def close(self) -> None:
        """Keep the attempt in the fields, which is over, and begin another delivery of it."""
        rest = self._expand()
        rest.over = [*rest.over[1 - MAX_ATTEMPTS_KEPT :], self.current()]
        self._load(None)

    def add_origin(self, uuid: str, event: Event) -> None:
        """Keep what only task-sent and task-received have; `uuid` is the object that the task has."""
        if event.eta is not None:
            self.eta = epoch(event.eta) or None
        if self.root is None and isinstance(event, EventWithAncestry):  # one of the state file is not
            self.root = uuid if event.root_id == uuid else event.root_id
            self.parent = None if event.parent_id == uuid else event.parent_id  # as a retry writes it

    def add_arguments(self, event: EventWithArguments) -> None:
        """Keep what the task was called with, and what it returned."""
        event.clip_arguments()
        rest = self._expand()
        rest.args, rest.kwargs = event.args or rest.args, event.kwargs or rest.kwargs
        rest.result = event.result

    def _expand(self) -> Rest:
        """Return the rest, to be changed."""
        self.rest = self.rest or Rest()
        return self.rest

    def _has_times(self) -> bool:
        return (self.sent or self.eta or self.received or self.started) is not None

    def _load(self, attempt: Attempt | None) -> None:
        """Put an open attempt into the fields; None is one of which nothing is known."""
        loaded = attempt or _UNKNOWN
        self.sent, self.eta = loaded.sent, loaded.eta
        self.received, self.started, self.end = loaded.received, loaded.started, None


_UNKNOWN = Attempt(None)


def _place(attempt: Attempt) -> tuple[float, float]:
    """Return the place of an attempt: by number, and among deliveries of one number by time."""
    return attempt.number or 0, _begin(attempt)


def _begin(attempt: Attempt) -> float:
    """Return the first time that is known of an attempt at a worker, or else when it was sent."""
    times = (attempt.received, attempt.started, attempt.ended, attempt.sent)
    return next((time for time in times if time is not None), 0.0)
