"""The interface of message lookups, and what bounds one.

A look only reads. It takes no message, acknowledges none, and declares nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from celery_exporter.core.message_location import MessageLocation

#: Queues in one look; each costs a round trip on RabbitMQ.
MAX_QUEUES = 50
#: Messages that one look reads, and their bytes: half a second of Redis on one core, and of this process.
MAX_MESSAGES, MAX_BYTES = 50_000, 64 * 2**20
#: Seconds after which a look ends. A command that the broker does not answer takes `REPLY_TIMEOUT_SECONDS`
#: more.
MAX_SECONDS = 5.0


class MessageLookup(Protocol):
    """Looks for the message of a task."""

    def look_up(self, uuid: str, queues: Sequence[str], others: Sequence[str] = ()) -> MessageLocation:
        """Return where the message of a task is.

        `queues` are those to which it was sent, as far as is known; `others` are looked at after them if that
        may show the message. Raises BrokerError if the broker does not answer.
        """


class Budget(Struct):
    """What is left of the bounds of one look; `deadline` is a monotonic time."""

    deadline: float
    messages: int = MAX_MESSAGES
    message_bytes: int = MAX_BYTES

    @classmethod
    def new(cls) -> Budget:
        """Return the budget of a look that starts now."""
        return cls(time.monotonic() + MAX_SECONDS)

    def spend(self, messages: Sequence[bytes]) -> None:
        """Count messages that were read."""
        self.messages -= len(messages)
        self.message_bytes -= sum(map(len, messages))

    def spent(self) -> str:
        """Return which bound the look has reached, empty if none."""
        if self.messages <= 0:
            return f"the look ended after {MAX_MESSAGES:,} messages"
        if self.message_bytes <= 0:
            return f"the look ended after {MAX_BYTES // 2**20} MiB of messages"
        return f"the look ended after {MAX_SECONDS:g} s" if time.monotonic() > self.deadline else ""
