"""Which messages of a durable queue were used, and which of them RabbitMQ may redeliver.

A message is acknowledged when it was used: with a state file, when the file has what the message changed.
RabbitMQ confirms nothing, but it replies to later methods. Until the second reply it may redeliver a message
that was used; such a message has a known digest and is dropped, so each counts once.

A relay that is killed publishes again what its own queue had no acknowledgement of. These are new messages to
RabbitMQ, with lines of earlier ones, so the lines of a relay are dropped by their digest alone. No I/O here.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque

from celery_exporter.broker.consumers.base import Mark

#: How many messages that may be redelivered are remembered, in multiples of the prefetch count.
MEMORY_PREFETCHES = 5
#: Lines of a relay that are remembered. It publishes some hundred a time, and each again at most.
RELAYED_LINES = 20_000


class Acknowledgements:
    """Counts deliveries, uses and acknowledgements. Delivery tags count up from 1 on each connection.

    `relayed` says whether the messages come from a relay. One thread delivers. `release`, `unconfirmed`,
    `expect_again` and `is_waiting` are for any thread.
    """

    def __init__(self, prefetch: int, *, relayed: bool = False) -> None:
        self.prefetch = prefetch
        self.acknowledged = 0  # delivery tag
        self.duplicates = 0  # messages, or lines of a relay, that were dropped
        self._number = 0  # of the connection
        self._released: Mark = (0, 0)
        self._delivered = self._confirmed = 0  # delivery tags
        self._unused: list[tuple[int, int]] = []  # delivery tag and digest, of the current read
        self._used: deque[tuple[int, int]] = deque()  # of earlier reads, not confirmed yet
        self._dropped: deque[tuple[int, int]] = deque()  # redelivered, not confirmed yet
        self._repeatable: Counter[int] = Counter()  # digests of what was used on earlier connections
        #: Delivery tags of the newest lines of a relay by digest, 0 for those of earlier connections.
        self._relayed: dict[int, int] | None = {} if relayed else None

    @property
    def is_relayed(self) -> bool:
        """Return whether the messages come from a relay."""
        return self._relayed is not None

    @property
    def mark(self) -> Mark:
        """Return the position up to which messages were delivered."""
        return self._number, self._delivered

    @property
    def is_confirmed(self) -> bool:
        """Return whether RabbitMQ has processed the newest acknowledgement."""
        return self._confirmed >= self.acknowledged

    def start_connection(self) -> None:
        """Begin a new connection, on which RabbitMQ redelivers all that it has no acknowledgement of."""
        is_small = self._repeatable.total() < MEMORY_PREFETCHES * self.prefetch
        self._repeatable = +self._repeatable if is_small else Counter()
        self._repeatable.update(digest for _, digest in (*self._used, *self._dropped))
        if self._relayed is not None:
            unused = {digest for _, digest in self._unused}
            self._relayed = {digest: 0 for digest in self._relayed if digest not in unused}
        self._used.clear()
        self._dropped.clear()
        self._unused.clear()
        self._number += 1
        self._delivered = self.acknowledged = self._confirmed = 0

    def deliver(self, tag: int, body: bytes, *, redelivered: bool) -> bool:
        """Take note of a message, or of a line of one; return whether it is new, and was not used before."""
        self._delivered = tag
        digest = _digest(body)
        if redelivered and self._repeatable[digest] > 0:
            self._repeatable[digest] -= 1
        elif self._relayed is None or digest not in self._relayed:
            self._unused.append((tag, digest))
            self._remember(tag, digest)
            return True
        self.duplicates += 1
        self._dropped.append((tag, digest))
        return False

    def _remember(self, tag: int, digest: int) -> None:
        """Note a line of a relay, in place of the oldest one if there are too many."""
        if self._relayed is not None:
            self._relayed[digest] = tag
            if len(self._relayed) > RELAYED_LINES:
                del self._relayed[next(iter(self._relayed))]

    def pass_over(self, tag: int) -> None:
        """Take note of a message that is only to be acknowledged."""
        self._delivered = tag

    def end_read(self) -> None:
        """Take the messages of this read for used; their release follows."""
        self._used.extend(self._unused)
        self._unused.clear()

    def next_tag(self) -> int | None:
        """Return the delivery tag to acknowledge up to, None if there is nothing new; it counts as sent."""
        number, tag = self._released
        if number != self._number or tag <= self.acknowledged:
            return None
        self.acknowledged = tag
        return tag

    def confirm(self, tag: int) -> None:
        """Take note of a reply that followed the acknowledgement of this delivery tag.

        Drops the messages up to the tag of the reply before: the process of a queue answers queries before
        it takes acknowledgements that wait (prioritise_call in rabbit_amqqueue_process.erl).
        """
        deleted, self._confirmed = self._confirmed, tag
        for messages in (self._used, self._dropped):
            while messages and messages[0][0] <= deleted:
                messages.popleft()

    def release(self, mark: Mark) -> None:
        """Let messages up to this mark be acknowledged."""
        self._released = mark

    def unconfirmed(self, mark: Mark) -> list[int]:
        """Return the digests of what was used up to this mark and may come again."""
        number, last = mark
        if self._relayed is not None:
            last = last if number == self._number else 0
            return [digest for digest, tag in self._relayed.copy().items() if tag <= last]
        used = self._used.copy() if number == self._number else ()
        dropped = (digest for _, digest in self._dropped.copy())
        return [
            *self._repeatable.copy().elements(),
            *dropped,
            *(digest for tag, digest in used if tag <= last),
        ]

    def expect_again(self, digests: list[int]) -> None:
        """Drop these messages if they come again."""
        if self._relayed is None:
            self._repeatable.update(digests)
        else:
            self._relayed = {**dict.fromkeys(digests, 0), **self._relayed}

    def is_waiting(self) -> bool:
        """Return whether half of the prefetch count waits for its acknowledgement."""
        return self._delivered - self.acknowledged > self.prefetch // 2


def _digest(body: bytes) -> int:
    """Return 8 bytes of a hash, the same in each process."""
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "big")
