"""Which queues are measured: the names in use, and whose turn it is to be asked about.

Invariant: both tables are bounded. A name expires that is neither requested, consumed, declared on the broker
nor named by an event of late; in a full table the stalest name gives way to a new one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import Generic, TypeVar

from msgspec import Struct

#: Queues known at a time, besides the requested ones; each costs the broker a question in each round or two.
MAX_QUEUES = 1_000
#: Seconds for which a name that only events use is kept: as long as a worker that is down, by default.
QUEUE_TTL_SECONDS = 600.0
#: Seconds within which several events that name a queue count as one use.
RECENT_SECONDS = 60.0

#: Questions in a round about queues that exist, where questions are costly; half of the queues if these are
#: more, so that no value becomes stale.
MAX_POLLS = 500
#: Questions in a round about queues that may not exist, beyond those. On RabbitMQ each costs a channel and a
#: line in its log, so the round ends after as many errors (see `broker/depths/declared.py`).
MAX_PROBES = 50
#: The longest back-off of a queue that does not exist or cannot be read, in seconds.
MAX_BACK_OFF_SECONDS = 600.0

#: Queues of one process, and those from which the broker itself moves messages on: kombu.common.Broadcast,
#: celery.events.EventReceiver, kombu.pidbox, celery.utils.nodenames.worker_direct, and
#: kombu.transport.native_delayed_delivery.
_NEEDS_NO_CONSUMER = re.compile(
    r"bcast\..*|celeryev(\..*)?|(.*\.)?pidbox|.*\.dq2|celery_delayed_\d+", re.DOTALL
)

T = TypeVar("T")


class Queue(Struct, array_like=True, gc=False):
    """A queue that is known by its name."""

    name: str
    used: float  # listening time at which an event or a worker named it last
    declared: bool = False  # the broker had it when it was last asked
    auto_delete: bool = False  # as a worker that consumed it answered


class QueueTable:
    """The names in use. Times are of the listening clock; not thread-safe."""

    def __init__(self, limit: int | None = None) -> None:
        self.recent: set[str] = set()  # their next use need not be recorded
        self.requested: frozenset[str] = frozenset()
        self.consumed: frozenset[str] = frozenset()  # by a worker that is up
        self._limit = MAX_QUEUES if limit is None else limit
        self._queues: dict[str, Queue] = {}
        # Those that may give way, the stalest first, and those that are not declared before the others.
        self._undeclared: dict[str, Queue] = {}
        self._declared: dict[str, Queue] = {}
        self._next_expiry = 0.0

    def __len__(self) -> int:
        """Return how many names there are."""
        return len(self._queues)

    def __contains__(self, name: str) -> bool:
        """Tell whether a name is in use."""
        return name in self._queues

    @property
    def is_full(self) -> bool:
        """Tell whether a new name costs another one its place."""
        return len(self._queues) - len(self.requested) >= self._limit

    def names(self) -> list[str]:
        """Return all names, the most recently used last."""
        return [queue.name for queue in sorted(self._queues.values(), key=lambda queue: queue.used)]

    def records(self) -> list[Queue]:
        """Return what has to outlast a restart."""
        return list(self._queues.values())

    def needs_consumer(self, name: str) -> bool:
        """Tell whether messages in a queue without a consumer are a fault."""
        queue = self._queues.get(name)
        return not (queue and queue.auto_delete) and not _NEEDS_NO_CONSUMER.fullmatch(name)

    # -- what happens to names -------------------------------------------------------------------------

    def request(self, names: Iterable[str]) -> None:
        """Keep these names whatever happens."""
        self.requested = frozenset(names)
        for name in self.requested:
            self._put(self._queues.get(name) or Queue(name, 0.0))

    def use(self, name: str, at: float) -> int:
        """Record that an event or a worker named a queue; return how many names that cost their place."""
        queue = self._queues.get(name)
        full = queue is None and self.is_full
        if full and not self._evict():
            return 1  # the new one: all others are kept
        if queue is None:
            queue = Queue(name, at)
        queue.used = at
        self._put(queue)
        self.recent.add(name)
        return int(full)

    def consume(self, queues: Mapping[str, bool], at: float) -> int:
        """Take in which queues workers that are up consume, and whether each is deleted without a consumer.

        Return how many names that cost their place.
        """
        before, self.consumed = self.consumed, frozenset(queues)
        lost = sum(self.use(name, at) for name in queues)
        for name in before | self.consumed:
            queue = self._queues.get(name)
            if queue is not None:
                queue.auto_delete = queues.get(name, queue.auto_delete)
                self._put(queue)
        return lost

    def declare(self, answers: Mapping[str, object]) -> None:
        """Take in which queues the broker has and which it has not; an unreadable one stays as it was."""
        for name, answer in answers.items():
            queue = self._queues.get(name)
            declared = answer is not Absence.MISSING
            if queue is not None and answer is not Absence.UNREADABLE and queue.declared != declared:
                queue.declared = declared
                self._put(queue)

    def is_expiry_due(self, at: float) -> bool:
        """Tell whether it is time for `expire`."""
        return at >= self._next_expiry

    def expire(self, at: float) -> None:
        """Drop the names that nothing keeps and that no event used of late."""
        self._next_expiry = at + RECENT_SECONDS
        self.recent.clear()
        for queue in list(self._undeclared.values()):
            if queue.used < at - QUEUE_TTL_SECONDS:
                self._drop(queue)

    def restore(self, queues: Iterable[Queue], shift: float, at: float) -> None:
        """Put back what an earlier process knew, whose clock is `shift` behind."""
        for queue in sorted(queues, key=lambda queue: queue.used):
            if queue.name in self._queues or not self.is_full or self._evict():
                queue.used = min(queue.used + shift, at)
                self._put(queue)

    def _put(self, queue: Queue) -> None:
        """Put a queue where it belongs, as the one used last."""
        name = queue.name
        self._queues[name] = queue
        self._undeclared.pop(name, None)
        self._declared.pop(name, None)
        if name not in self.requested and name not in self.consumed:
            (self._declared if queue.declared else self._undeclared)[name] = queue

    def _evict(self) -> bool:
        """Drop the stalest name that may be dropped; return False if there is none."""
        tier = self._undeclared or self._declared
        for queue in tier.values():
            self._drop(queue)
            return True
        return False

    def _drop(self, queue: Queue) -> None:
        for names in (self._queues, self._undeclared, self._declared):
            names.pop(queue.name, None)
        self.recent.discard(queue.name)


class Absence(Enum):
    """Why there is no value for a queue that the broker was asked about."""

    MISSING = "missing"  # the broker has no such queue
    UNREADABLE = "unreadable"  # the broker refuses to tell


class _Poll(Struct, Generic[T]):
    """The newest answer about one queue."""

    asked: float = -math.inf
    value: T | None = None
    absence: Absence | None = None
    failures: int = 0  # in a row
    due: float = -math.inf  # when to ask again, after a failure
    kept: bool = False


class PollSchedule(Generic[T]):
    """Whose turn it is to be asked about, and what was answered. Times are of any clock that does not jump.

    Queues that exist take turns; of those that may not, the ones that were never asked about come first.
    """

    def __init__(self) -> None:
        self._polls: dict[str, _Poll[T]] = {}

    def pick(self, names: list[str], kept: Collection[str], now: float) -> list[str]:
        """Return the names to ask about in this round, the most important first.

        `names` are all there are, the most recently used last; `kept` are those requested or consumed. One
        that is kept anew is taken for one that exists.
        """
        polls = self._polls = {name: self._polls.get(name) or _Poll() for name in names}
        for name, poll in polls.items():
            if name in kept and not poll.kept:
                poll.failures = 0
            poll.kept = name in kept
        existing = [name for name in names if self._is_taken_to_exist(polls[name])]
        existing.sort(key=lambda name: polls[name].asked)
        new = [name for name in reversed(names) if polls[name].asked == -math.inf and name not in kept]
        failed = [name for name in names if polls[name].failures and polls[name].due <= now]
        failed.sort(key=lambda name: polls[name].due)
        most = max(MAX_POLLS, (len(names) + 1) // 2)
        picked = existing[:most]
        return picked + (new + failed)[: most + MAX_PROBES - len(picked)]

    def record(self, answers: Mapping[str, T | Absence], now: float, interval: float) -> None:
        """Take in what the broker answered; the back-off of a failure doubles from `interval` on."""
        for name, answer in answers.items():
            poll = self._polls.setdefault(name, _Poll())
            poll.asked = now
            if isinstance(answer, Absence):
                poll.value, poll.absence = None, answer
                poll.failures = min(poll.failures + 1, 32)
                poll.due = now + min(interval * 2**poll.failures, MAX_BACK_OFF_SECONDS)
            else:
                poll.value, poll.absence, poll.failures = answer, None, 0

    def keep(self, names: Collection[str]) -> None:
        """Forget all but these."""
        self._polls = {name: poll for name, poll in self._polls.items() if name in names}

    def forget_values(self) -> None:
        """Forget the values: the broker does not answer."""
        for poll in self._polls.values():
            poll.value = None

    def values(self, now: float, max_age_seconds: float) -> dict[str, T]:
        """Return the values that are not too old."""
        return {
            name: poll.value
            for name, poll in self._polls.items()
            if poll.value is not None and now - poll.asked < max_age_seconds
        }

    def absent(self, absence: Absence) -> set[str]:
        """Return the queues about which this was the newest answer."""
        return {name for name, poll in self._polls.items() if poll.absence is absence}

    def _is_taken_to_exist(self, poll: _Poll[T]) -> bool:
        return not poll.failures and (poll.kept or poll.asked > -math.inf)
