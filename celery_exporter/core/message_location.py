"""Where the message of a task is, as far as one look at the broker shows.

Invariant: a place is named only if the look saw it. `ABSENT` means that every message that could be looked at
was another one. Whatever limits a look makes the place `UNKNOWN`, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

Place = Literal["queue", "unacknowledged", "absent", "unknown"]


class QueueLook(Struct, frozen=True):
    """One queue, as the broker reported it."""

    name: Annotated[str, Meta(description="Name of the queue.")]
    length: Annotated[
        int | None, Meta(description="Messages ready for delivery. Null if the broker did not say.")
    ]
    consumers: Annotated[int | None, Meta(description="Consumers. Null if the broker does not say.")] = None
    is_missing: Annotated[bool, Meta(description="Whether the broker has no such queue.")] = False
    examined: Annotated[int, Meta(description="Messages whose task id was read.")] = 0


class UnacknowledgedLook(Struct, frozen=True):
    """The messages that workers hold without acknowledgement, as Redis stores them."""

    length: Annotated[int | None, Meta(description="Their number. Null if the broker did not say.")]
    examined: Annotated[int, Meta(description="Messages whose task id was read.")] = 0


class MessageLocation(Struct, frozen=True):
    """Where the message of a task is. Times are Unix times in seconds; null means unknown."""

    place: Annotated[Place, Meta(description="Where the message is.")]
    queue: Annotated[str | None, Meta(description="The queue in which it waits.")] = None
    position: Annotated[
        int | None, Meta(description="Its place in the queue; 1 is delivered next. Null for another place.")
    ] = None
    since: Annotated[float | None, Meta(description="When a worker took it, by the clock of the worker.")] = (
        None
    )
    eta: Annotated[float | None, Meta(description="The time before which it must not start.")] = None
    expires: Annotated[float | None, Meta(description="When it expires.")] = None
    queues: Annotated[Sequence[QueueLook], Meta(description="The queues that were looked at.")] = ()
    unacknowledged: Annotated[
        UnacknowledgedLook | None, Meta(description="The messages that workers hold. Redis only.")
    ] = None
    delayed: Annotated[
        int | None,
        Meta(description="Messages in the queues of native delayed delivery. Null if there are none."),
    ] = None
    reason: Annotated[str, Meta(description="Why the place is unknown. Empty if it is known.")] = ""

    def look_at(self, queue: str) -> QueueLook | None:
        """Return what the look showed of a queue, None if it was not looked at."""
        return next((look for look in self.queues if look.name == queue), None)
