"""Why tasks are where they are, asked during a fault, and compared with what the broker has after it."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

import kombu
from harness.diagnoses import PENDING, RECEIVED, Answer, Asker, contradictions
from harness.outcomes import Attempt, Entry, Outcome
from harness.waiting import eventually
from harness.workers import client

if TYPE_CHECKING:
    from typing import Self

    from .availability_contract import Watched

#: Right diagnoses of a message that waits in a queue without a consumer, and of one that is gone.
WAITING = {"no-consumer", "waiting", "queue-without-consumer", "just-sent"}
GONE = {"no-message", "message-gone", "not-in-queue", "queue-missing", "just-sent"}
#: Right diagnoses of a task of which all events were published at once. A fault loses some.
ENDED = {"finished", "never-seen"}


class Explained:
    """Asks about a message that nothing consumes, and about made-up tasks.

    The message is sent before the fault, if the exporter `is_connected` then.
    """

    def __init__(self, app: Watched, *, is_connected: bool) -> None:
        self._app = app
        self._is_sent = is_connected
        self._uuid = str(uuid4())
        self._queue = f"waiting-{self._uuid}"
        self._entries: list[Entry] = []  # of the message
        self._asker = Asker(lambda: app, lambda: random.choice([self._uuid, *app.published[-2:]]))
        self._fault = [math.inf, math.inf]  # from when on, and until when it lasts, in epoch seconds

    def __enter__(self) -> Self:
        if self._is_sent:
            with client(self._app.broker_url) as sender:
                sender.send_task("tasks.succeed", queue=self._queue, task_id=self._uuid)
            self._record(PENDING)
            eventually(lambda: self._asker.ask(self._uuid).explanation.diagnosis in WAITING)
            self._asker.answers.clear()
        self._asker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._asker.stop()

    def fault_began(self) -> None:
        """Note that the exporter cannot reach the broker."""
        self._fault[0] = time.time()

    def fault_ends(self) -> None:
        """Note that it may reach the broker from now on."""
        self._fault[1] = time.time()

    def assert_true(self) -> None:
        """Assert that no answer was false, and that one that is given now agrees with the broker."""
        length = self._length()
        answer = self._asker.ask(self._uuid)
        if self._is_sent:
            look = answer.explanation.location.look_at(self._queue)
            assert ((look and look.length) or 0) == length, answer
            assert answer.explanation.diagnosis in (WAITING if length else GONE), answer
        if length:
            self._record(RECEIVED)  # the message is there, so no answer may have been that it is gone
        lines = [line for answer in self._asker.answers for line in self._contradictions(answer)]
        assert not lines, "\n\n".join(lines)
        assert self._asker.errors == []

    def _contradictions(self, answer: Answer) -> Iterator[str]:
        began, ends = self._fault
        explanation, location = answer.explanation, answer.explanation.location
        if began < answer.asked < answer.answered < ends and (
            location.place != "unknown" or not location.reason
        ):
            yield f"the broker cannot be reached: {answer}"
        if explanation.uuid != self._uuid:
            if explanation.diagnosis not in ENDED:
                yield f"the task has ended: {answer}"
            return
        yield from contradictions(answer, self._entries, 0.0)
        is_gone = self._entries[-1:] and self._entries[-1].outcome.state == PENDING
        if location.place == "queue" and is_gone and answer.asked > ends:
            yield f"the message is gone: {answer}"

    def _length(self) -> int:
        """Return how many messages the queue has."""
        with kombu.Connection(self._app.broker_url) as connection:
            try:
                return int(connection.default_channel.queue_declare(self._queue, passive=True).message_count)
            except connection.channel_errors:  # it does not exist
                return 0

    def _record(self, state: str) -> None:
        outcome = Outcome("tasks.succeed", self._queue, state, "")
        self._entries.append(Entry(Attempt(self._uuid, 0), outcome, 0.0, stored=time.time()))
