"""Everything that is remembered of one task while its short form (`tasks.Task`) cannot hold it."""

from __future__ import annotations

from msgspec import Struct

from celery_exporter.core.types import LabelSet

#: Attempts of one generation: `retries` is less, which the event schema enforces.
MAX_ATTEMPTS = 2**31


def generation_of(attempt: int) -> int:
    """Return the number of the generation that an attempt belongs to."""
    return attempt // MAX_ATTEMPTS


class Delivery(Struct, gc=False):
    """One handing over of a task to a worker process, from received to ended. Times are epoch seconds.

    Events after `task-received` do not say which attempt they belong to. The next attempt may be received,
    even by the same worker, before the end of the last one is reported. So events are matched by worker
    process, the oldest delivery first, which is the order in which a worker executes them.
    """

    worker: str
    pid: int | None
    attempt: int
    ready: float | None  # since when it waits to be started: max(sent, eta)
    received: float | None  # max(received, eta)
    started: float | None = None
    # An ended delivery is kept while its task-sent, and so its wait, is outstanding, or if it was given back.
    ended: bool = False

    def is_given_back(self) -> bool:
        """Return whether it was taken from its worker before it was started."""
        return self.ended and self.started is None


class Generation(Struct, frozen=True, gc=False):
    """The attempts of one sending of a task's id: they are numbered from `base`. See core/executions.py."""

    base: int
    name: str  # the value of the label task_name


class TaskHistory(Struct, gc=False):
    """What happened to one task, in any combination: sent often, delivered twice, reported in part."""

    sent: dict[int, float]  # by attempt whose task-sent was seen: since when it waits, max(sent, eta)
    received: int | None  # the newest attempt that was received
    deliveries: list[Delivery]  # the newest attempt's last
    ended_by: str = ""  # the worker that ended the task, or one of its deliveries while others go on
    skipped: set[int] | None = None  # attempts before `received` without a receipt so far
    attempt_label_sets: dict[int, LabelSet] | None = None  # once an attempt was sent to another queue
    generations: list[Generation] | None = None  # oldest first; None: one, the usual case
    copied: bool = False  # sent to several queues: each worker that receives it has a copy of its own

    def is_received(self, attempt: int) -> bool:
        """Return whether an attempt was received, or ended without a receipt."""
        return self.received is not None and attempt <= self.received and attempt not in (self.skipped or ())

    def is_superseded(self, attempt: int) -> bool:
        """Return whether the newest delivery is of a later generation than this attempt."""
        newest = self.deliveries[-1].attempt if self.deliveries else attempt
        return generation_of(newest) > generation_of(attempt)

    def is_open_before(self, generation: int) -> bool:
        """Return whether a worker has an attempt of an earlier generation."""
        return any(
            not delivery.ended and generation_of(delivery.attempt) < generation
            for delivery in self.deliveries
        )

    def give_back(self, worker: str) -> None:
        """Remove a worker's deliveries; remember the newest one if it was not started."""
        newest = self.deliveries[-1]
        self.deliveries = [delivery for delivery in self.deliveries if delivery.worker != worker]
        if newest.started is None and all(delivery.ended for delivery in self.deliveries):
            returned = Delivery("", None, newest.attempt, newest.ready, newest.received, ended=True)
            self.deliveries.append(returned)

    def attempts(self) -> set[int]:
        """Return the attempts that were sent or delivered, as far as they are remembered."""
        return {*self.sent, *self.delivered()}

    def drop_label_set_if_over(self, attempt: int) -> None:
        """Drop the label set of an attempt that ended before a later one was received.

        If it is received again, it counts under that of the task, as without an expanded history.
        """
        is_over = self.received is not None and attempt < self.received and self.is_received(attempt)
        if self.attempt_label_sets and is_over and attempt not in self.delivered():
            self.attempt_label_sets.pop(attempt, None)

    def delivered(self) -> set[int]:
        """Return the attempts of the deliveries."""
        return {delivery.attempt for delivery in self.deliveries}

    def next_sent(self, attempt: int) -> int | None:
        """Return the oldest later attempt that was sent and not received yet."""
        waiting = (later for later in self.sent if later > attempt and not self.is_received(later))
        return min(waiting, default=None)
