"""Which queues are measured: the table of their names, and the schedule of queries to the broker.

Invariant: both tables are bounded. A name stays while it is requested, consumed, declared on the broker, or
named by a recent event; then it expires. In a full table a new name replaces the one that was unused longest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import Generic, TypeVar

from msgspec import Struct

#: Queues at a time, without the requested ones. Each costs the broker one query in each round or two.
MAX_QUEUES = 1_000
#: Seconds for which a name that only events use is kept: as long as a worker that is down, by default.
QUEUE_TTL_SECONDS = 600.0
#: Seconds within which several events that name a queue count as one use.
RECENT_SECONDS = 60.0

#: Queries in a round for queues that exist, if queries are costly. Half of the queues if that is more, so
#: that no value becomes stale.
MAX_POLLS = 500
#: Further queries in a round, for queues that may not exist. On RabbitMQ each error costs a channel and a
#: line in its log, so a round ends after this number of errors (see `broker/queues/passive_declare.py`).
MAX_PROBES = 50
#: Longest back-off for a queue that does not exist or cannot be read, in seconds.
MAX_BACK_OFF_SECONDS = 600.0

#: Queues of a single process, and queues whose messages the broker moves on: kombu.common.Broadcast,
#: celery.events.EventReceiver, kombu.pidbox, celery.utils.nodenames.worker_direct, and
#: kombu.transport.native_delayed_delivery.
_NEEDS_NO_CONSUMER = re.compile(
    r"bcast\..*|celeryev(\..*)?|(.*\.)?pidbox|.*\.dq2|celery_delayed_\d+", re.DOTALL
)

T = TypeVar("T")


def is_event_queue(name: str) -> bool:
    """Return whether a queue of this name holds events, so exporters or a relay consume it."""
    return name.startswith("celeryev.")


class Queue(Struct, array_like=True, gc=False):
    """A queue in use, by its name."""

    name: str
    used: float  # listening time at which an event or a worker named it last
    declared: bool = False  # the broker had it at the last query
    auto_delete: bool = False  # by the reply of a worker that consumed it
    prioritized: bool = False  # messages with a priority waited in it


class QueueTable:
    """The names of queues in use. Times are listening times. Not thread-safe."""

    def __init__(self, limit: int | None = None) -> None:
        self.recent: set[str] = set()  # used recently: the next use need not be recorded
        self.requested: frozenset[str] = frozenset()
        self.consumed: frozenset[str] = frozenset()  # by a worker that is up
        self._limit = MAX_QUEUES if limit is None else limit
        self._queues: dict[str, Queue] = {}
        # Those that may be evicted, longest unused first; undeclared ones are evicted before declared ones.
        self._undeclared: dict[str, Queue] = {}
        self._declared: dict[str, Queue] = {}
        self._next_expiry = 0.0

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._queues)

    def __contains__(self, name: str) -> bool:
        """Return whether a name is in use."""
        return name in self._queues

    @property
    def is_full(self) -> bool:
        """Return whether a new name replaces another one."""
        return len(self._queues) - len(self.requested) >= self._limit

    def names(self) -> list[str]:
        """Return all names, most recently used last."""
        return [queue.name for queue in sorted(self._queues.values(), key=lambda queue: queue.used)]

    def records(self) -> list[Queue]:
        """Return all queues, for the state file."""
        return list(self._queues.values())

    def needs_consumer(self, name: str) -> bool:
        """Return whether it is a fault if messages wait in this queue and it has no consumer."""
        queue = self._queues.get(name)
        return not (queue and queue.auto_delete) and not _NEEDS_NO_CONSUMER.fullmatch(name)

    def is_prioritized(self, name: str) -> bool:
        """Return whether messages with a priority waited in this queue since its name is in use."""
        queue = self._queues.get(name)
        return queue is not None and queue.prioritized

    # -- changes ---------------------------------------------------------------------------------------

    def request(self, names: Iterable[str]) -> None:
        """Add these names permanently; they replace the ones requested before."""
        self.requested = frozenset(names)
        for name in self.requested:
            self._put(self._queues.get(name) or Queue(name, 0.0))

    def use(self, name: str, at: float) -> int:
        """Record that an event or a worker named a queue; return how many names were evicted or rejected."""
        queue = self._queues.get(name)
        is_full = queue is None and self.is_full
        if is_full and not self._evict():
            return 1  # the new name is rejected: none of the others may be evicted
        if queue is None:
            queue = Queue(name, at)
        queue.used = at
        self._put(queue)
        self.recent.add(name)
        return int(is_full)

    def consume(self, queues: Mapping[str, bool], at: float) -> int:
        """Record the queues that workers consume which are up, each with its auto-delete flag.

        Return how many names were evicted or rejected.
        """
        before, self.consumed = self.consumed, frozenset(queues)
        rejections = sum(self.use(name, at) for name in queues)
        for name in before | self.consumed:
            queue = self._queues.get(name)
            if queue is not None:
                queue.auto_delete = queues.get(name, queue.auto_delete)
                self._put(queue)
        return rejections

    def declare(self, answers: Mapping[str, object]) -> None:
        """Record which queues the broker has and which it lacks; an unreadable queue stays unchanged."""
        for name, answer in answers.items():
            queue = self._queues.get(name)
            declared = answer is not Absence.MISSING
            if queue is not None and answer is not Absence.UNREADABLE and queue.declared != declared:
                queue.declared = declared
                self._put(queue)

    def prioritize(self, names: Iterable[str]) -> None:
        """Record that messages with a priority wait in these queues."""
        for name in names:
            if name in self._queues:
                self._queues[name].prioritized = True

    def is_expiry_due(self, at: float) -> bool:
        """Return whether it is time for `expire`."""
        return at >= self._next_expiry

    def expire(self, at: float) -> None:
        """Remove undeclared names that were not used for `QUEUE_TTL_SECONDS`."""
        self._next_expiry = at + RECENT_SECONDS
        self.recent.clear()
        for queue in list(self._undeclared.values()):
            if queue.used < at - QUEUE_TTL_SECONDS:
                self._drop(queue)

    def restore(self, queues: Iterable[Queue], shift: float, at: float) -> None:
        """Add the queues of an earlier process, whose listening clock is `shift` seconds behind."""
        for queue in sorted(queues, key=lambda queue: queue.used):
            if queue.name in self._queues or not self.is_full or self._evict():
                queue.used = min(queue.used + shift, at)
                self._put(queue)

    def _put(self, queue: Queue) -> None:
        """Add a queue, or move it, as the one that was used last."""
        name = queue.name
        self._queues[name] = queue
        self._undeclared.pop(name, None)
        self._declared.pop(name, None)
        if name not in self.requested and name not in self.consumed:
            (self._declared if queue.declared else self._undeclared)[name] = queue

    def _evict(self) -> bool:
        """Remove the longest unused name that may be evicted; return False if there is none."""
        candidates = self._undeclared or self._declared
        for queue in candidates.values():
            self._drop(queue)
            return True
        return False

    def _drop(self, queue: Queue) -> None:
        for names in (self._queues, self._undeclared, self._declared):
            names.pop(queue.name, None)
        self.recent.discard(queue.name)


class Absence(Enum):
    """Why a query for a queue returned no value."""

    MISSING = "missing"  # the broker has no such queue
    UNREADABLE = "unreadable"  # the broker denies access to it


class _Poll(Struct, Generic[T]):
    """The newest answer to a query for one queue."""

    queried: float = -math.inf
    value: T | None = None
    absence: Absence | None = None
    failures: int = 0  # in a row
    due: float = -math.inf  # time of the next query, after a failure
    pinned: bool = False


class PollSchedule(Generic[T]):
    """Selects the queues to query in each round, and keeps the results.

    Times are of any monotonic clock.

    Queues that exist take turns. Of those that may not exist, the ones that were never queried come first.
    """

    def __init__(self) -> None:
        self._polls: dict[str, _Poll[T]] = {}

    def pick(self, names: list[str], pinned: Collection[str], now: float) -> list[str]:
        """Return the names of the queues to query in this round, the most important first.

        `names` are all names, most recently used last. `pinned` are those that are requested or consumed. A
        newly pinned queue counts as existing.
        """
        polls = self._polls = {name: self._polls.get(name) or _Poll() for name in names}
        for name, poll in polls.items():
            if name in pinned and not poll.pinned:
                poll.failures = 0
            poll.pinned = name in pinned
        existing = [name for name in names if self._presumably_exists(polls[name])]
        existing.sort(key=lambda name: polls[name].queried)
        new = [name for name in reversed(names) if polls[name].queried == -math.inf and name not in pinned]
        failed = [name for name in names if polls[name].failures and polls[name].due <= now]
        failed.sort(key=lambda name: polls[name].due)
        max_polls = max(MAX_POLLS, (len(names) + 1) // 2)
        picked = existing[:max_polls]
        return picked + (new + failed)[: max_polls + MAX_PROBES - len(picked)]

    def record(self, answers: Mapping[str, T | Absence], now: float, interval: float) -> None:
        """Record the broker's answers; the back-off of a failure doubles, starting at `interval` seconds."""
        for name, answer in answers.items():
            poll = self._polls.setdefault(name, _Poll())
            poll.queried = now
            if isinstance(answer, Absence):
                poll.value, poll.absence = None, answer
                poll.failures = min(poll.failures + 1, 32)
                poll.due = now + min(interval * 2**poll.failures, MAX_BACK_OFF_SECONDS)
            else:
                poll.value, poll.absence, poll.failures = answer, None, 0

    def retain(self, names: Collection[str]) -> None:
        """Remove all queues but these."""
        self._polls = {name: poll for name, poll in self._polls.items() if name in names}

    def clear_values(self) -> None:
        """Remove the values, because the broker does not answer."""
        for poll in self._polls.values():
            poll.value = None

    def values(self, now: float, max_age_seconds: float) -> dict[str, T]:
        """Return the values that are younger than `max_age_seconds`, by queue."""
        return {
            name: poll.value
            for name, poll in self._polls.items()
            if poll.value is not None and now - poll.queried < max_age_seconds
        }

    def absent(self, absence: Absence) -> set[str]:
        """Return the queues whose newest answer was this one."""
        return {name for name, poll in self._polls.items() if poll.absence is absence}

    def _presumably_exists(self, poll: _Poll[T]) -> bool:
        return not poll.failures and (poll.pinned or poll.queried > -math.inf)
