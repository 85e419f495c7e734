"""The words of what is booked: states, label values, moments. Plain values, no behaviour."""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct


class State(IntEnum):
    """The states of celery.states that a task can enter, as indexes of a cell's counts."""

    PENDING = 0
    RECEIVED = 1
    STARTED = 2
    SUCCESS = 3
    FAILURE = 4
    RETRY = 5
    REVOKED = 6
    REJECTED = 7


#: What an unknown name or queue is called. Never a plausible guess under a real name.
UNKNOWN = "unknown"
#: Where label values beyond a limit are added up.
OTHER = "other"


class Timestamp(Struct, frozen=True, gc=False):
    """One instant on two clocks, both given by the caller.

    `listened`: seconds spent listening to the broker, monotonic. It stands still while the event path
    is down or the process is frozen, so that nobody is taken for dead, and no event for lost, because
    *we* were not there to hear. `wall`: epoch seconds of this machine.
    """

    listening: float
    wall: float


class LabelSet(Struct, frozen=True, gc=False, cache_hash=True):
    """The label values that a sum stands under; a label that no profile uses is ''."""

    task_name: str
    queue_name: str = ""
    worker: str = ""


#: Under which tasks are booked that the user does not want to see. It is in no snapshot.
EXCLUDED = LabelSet("")
