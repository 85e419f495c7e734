"""Shared value types: task states, timestamps, label sets. They have no behaviour."""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct


class State(IntEnum):
    """The states of celery.states that a task can enter, as indexes of `Aggregate.transitions`."""

    PENDING = 0
    RECEIVED = 1
    STARTED = 2
    SUCCESS = 3
    FAILURE = 4
    RETRY = 5
    REVOKED = 6
    REJECTED = 7


#: Label value of an unknown task name or queue.
UNKNOWN = "unknown"
#: Label value under which everything beyond a limit is added up.
OTHER = "other"


class Timestamp(Struct, frozen=True, gc=False):
    """One instant on two clocks, which the caller reads.

    `listening` is the seconds spent listening to the broker, monotonic. This clock stops while the exporter
    receives no events, so that a gap in the subscription does not count as silence of a worker. `wall` is
    epoch seconds of this machine.
    """

    listening: float
    wall: float


class LabelSet(Struct, frozen=True, gc=False, cache_hash=True):
    """The label values of a sum. A label that no profile uses is ''."""

    task_name: str
    queue_name: str = ""
    worker: str = ""


#: The label set of tasks that the user excluded. It is in no snapshot.
EXCLUDED = LabelSet("")
