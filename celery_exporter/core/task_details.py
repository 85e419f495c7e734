"""What records need to know of a task besides its state and label set."""

from __future__ import annotations

from msgspec import Struct

from celery_exporter.core.events import Event, EventWithAncestry, epoch

#: Attempts of one task whose times are kept: as many as deliveries (`transitions.MAX_DELIVERIES`).
MAX_TIMED_ATTEMPTS = 8


class AttemptTimes(Struct, frozen=True, gc=False):
    """When an attempt was sent, is due, was received and was started: epoch seconds of the sender's clock."""

    sent: float | None = None
    eta: float | None = None
    received: float | None = None
    started: float | None = None


class TaskDetails(Struct, gc=False):
    """It is removed together with its task.

    The times are those of `attempt`, which the newest event is about. Those of other attempts that are not
    over are in `others`.
    """

    attempt: int | None  # generations included; None: unknown
    root: str | None = None
    parent: str | None = None
    client: str | None = None
    first_sent: float | None = None
    sent: float | None = None
    eta: float | None = None
    received: float | None = None
    started: float | None = None
    args: str | None = None
    kwargs: str | None = None
    others: dict[int, AttemptTimes] | None = None

    def switch(self, attempt: int | None) -> None:
        """Put the times of this attempt into the fields; keep those that are there now, if any."""
        times = AttemptTimes(self.sent, self.eta, self.received, self.started)
        others = self.others or {}
        if self.attempt is not None and times != NO_TIMES:
            others[self.attempt] = times
        times = NO_TIMES if attempt is None else others.pop(attempt, NO_TIMES)
        if len(others) > MAX_TIMED_ATTEMPTS:
            del others[min(others)]
        self.sent, self.eta, self.received, self.started = (
            times.sent,
            times.eta,
            times.received,
            times.started,
        )
        self.attempt, self.others = attempt, others or None

    def add_origin(self, uuid: str, event: Event) -> None:
        """Keep what only task-sent and task-received have; `uuid` is the object that the task has."""
        if event.eta is not None:
            self.eta = epoch(event.eta) or None
        if self.root is None and isinstance(event, EventWithAncestry):  # one of the state file is not
            self.root = uuid if event.root_id == uuid else event.root_id
            self.parent = None if event.parent_id == uuid else event.parent_id  # as a retry writes it

    def end_attempt(self) -> None:
        """Drop the times of the attempt."""
        self.sent = self.eta = self.received = self.started = None


#: Of an attempt of which no event was seen.
NO_TIMES = AttemptTimes()
