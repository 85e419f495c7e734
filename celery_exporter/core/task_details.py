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


class TaskDetails(Struct, gc=False):
    """The attempt that the newest event is about in its fields, and the others."""

    attempt: int | None
    root: str | None = None
    parent: str | None = None
    client: str | None = None
    first_sent: float | None = None
    sent: float | None = None
    eta: float | None = None
    received: float | None = None
    started: float | None = None
    ended: float | None = None
    state: State | None = None
    reason: str | None = None
    runtime: float | None = None
    exception: str | None = None
    worker: str | None = None  # that ended it
    label_set: LabelSet | None = None  # once it is over
    args: str | None = None
    kwargs: str | None = None
    result: str | None = None
    over: list[Attempt] | None = None  # oldest first
    others: dict[int, Attempt] | None = None  # that are not over

    def current(self) -> Attempt:
        """Return the attempt in the fields."""
        return Attempt(
            self.attempt,
            self.sent,
            self.eta,
            self.received,
            self.started,
            self.ended,
            self.state,
            self.reason,
            self.runtime,
            self.exception,
            self.worker,
            self.label_set,
        )

    def attempts(self) -> list[Attempt]:
        """Return all attempts, the newest last: events of an earlier one may come later."""
        attempts = [*(self.over or ()), *(self.others or {}).values(), self.current()]
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
        it rejects a task that failed, or fails one that it rejected, it reports both.
        """
        if self.ended is None:
            return self.received is None and self.started is None
        return worker == self.worker and {state, self.state} == {State.FAILURE, State.REJECTED}

    def switch(self, attempt: int | None) -> None:
        """Put this attempt into the fields, and keep the one that is there."""
        if self.ended is not None:
            self.close()
        elif self.attempt is not None and self._has_times():
            self.others = {**(self.others or {}), self.attempt: self.current()}
            if len(self.others) > MAX_OPEN_ATTEMPTS:
                del self.others[min(self.others)]
        self._load((self.others or {}).pop(attempt, None) if attempt is not None else None)
        self.attempt, self.others = attempt, self.others or None

    def close(self) -> None:
        """Keep the attempt in the fields, which is over, and begin another delivery of it."""
        self.over = [*(self.over or ())[-MAX_ATTEMPTS_KEPT + 1 :], self.current()]
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
        self.args, self.kwargs = event.args or self.args, event.kwargs or self.kwargs
        self.result = event.result

    def _has_times(self) -> bool:
        return (self.sent or self.eta or self.received or self.started) is not None

    def _load(self, attempt: Attempt | None) -> None:
        """Put an open attempt into the fields; None is one of which nothing is known."""
        loaded = attempt or _UNKNOWN
        self.sent, self.eta = loaded.sent, loaded.eta
        self.received, self.started = loaded.received, loaded.started
        self.ended = self.state = self.reason = None
        self.runtime = self.exception = self.worker = self.label_set = None


_UNKNOWN = Attempt(None)


def _place(attempt: Attempt) -> tuple[float, float]:
    """Return the place of an attempt: by number, and among deliveries of one number by time."""
    return attempt.number or 0, _begin(attempt)


def _begin(attempt: Attempt) -> float:
    """Return the first time that is known of an attempt at a worker, or else when it was sent."""
    times = (attempt.received, attempt.started, attempt.ended, attempt.sent)
    return next((time for time in times if time is not None), 0.0)
