"""What we conclude from events, and under which label values it is booked. Plain values, no behaviour."""

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


class Moment(Struct, frozen=True, gc=False):
    """One instant on two clocks, both given by the caller.

    `listened`: seconds spent listening to the broker, monotonic. It stands still while the event path
    is down or the process is frozen, so that nobody is taken for dead, and no event for lost, because
    *we* were not there to hear. `wall`: epoch seconds of this machine.
    """

    listened: float
    wall: float


class Key(Struct, frozen=True, gc=False, cache_hash=True):
    """The label values that a sum stands under; a label that no profile uses is ''."""

    task_name: str
    queue_name: str = ""
    worker: str = ""


#: Under which tasks are booked that the user does not want to see. It is in no snapshot.
HIDDEN = Key("")


class Known(Struct, frozen=True, gc=False):
    """This label set exists: its sums start at 0."""

    key: Key


class Moved(Struct, frozen=True, gc=False):
    """A task entered a state at `at` (epoch seconds, the sender's clock)."""

    key: Key
    state: State
    at: float


class SentBy(Struct, frozen=True, gc=False):
    """A task was sent by a client on this host, and so became PENDING."""

    key: Key
    at: float
    client: str


class Raised(Struct, frozen=True, gc=False):
    """A task failed with an exception of this class."""

    key: Key
    exception: str


class Ran(Struct, frozen=True, gc=False):
    """An execution took this many seconds and ended in SUCCESS, FAILURE or RETRY; below 0 by skew."""

    key: Key
    state: State
    seconds: float
    uuid: str | None = None


class Queued(Struct, frozen=True, gc=False):
    """From sent (or eta) to started, in seconds; below 0 by the skew of two clocks."""

    key: Key
    seconds: float
    uuid: str | None = None


class Prefetched(Struct, frozen=True, gc=False):
    """From received by a worker (or eta) to started by it, in seconds; below 0 by skew."""

    key: Key
    seconds: float
    uuid: str | None = None


class Redelivered(Struct, frozen=True, gc=False):
    """A worker received a task that had been received before, in the same attempt."""

    key: Key


class Folded(Struct, frozen=True, gc=False):
    """A label set is given up: what was counted under `key` moves to `into`."""

    key: Key
    into: Key


Fact = Known | Moved | SentBy | Raised | Ran | Queued | Prefetched | Redelivered | Folded
