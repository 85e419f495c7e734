"""Counts the unacknowledged messages of each queue on Redis. It sends reading commands only.

kombu has one hash for all queues (kombu/transport/redis.py, QoS.append): delivery tag → the JSON of
[message, exchange, routing key]. A number is exact or unknown, never partial.

Values are whole messages, so their sizes are read before them. HSCAN would return values of any size. A value
is read once: a delivery tag is a UUID, and its exchange and routing key do not change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from itertools import accumulate, groupby
from typing import Annotated, Any

import msgspec
import redis
from msgspec import Meta, Raw, Struct

from celery_exporter.broker.redis_keys import prefixed
from celery_exporter.core.routing import MAX_BINDINGS, MAX_WORDS, matches

#: Messages in the hash, beyond which nothing is read. It bounds HKEYS, which blocks Redis for some 2 ms then,
#: and the memory for addresses. Workers hold a few for each process, and those with an eta in the future.
MAX_MESSAGES = 10_000
#: Bytes of new values in one poll, 3,500 messages of 1.2 KB. If there are more, the next polls read on. At
#: both bounds a poll takes 14 ms of CPU time in Redis and 50 ms here; without new messages 2 ms and 3 ms.
MAX_BYTES = 4 * 2**20
#: Bytes in one reply, without its first value: Redis serves other clients between replies.
PAGE_BYTES = 2**18
#: Longest exchange, routing key and queue name, as in AMQP: longer ones would fill the memory.
MAX_NAME_CHARACTERS = 255
#: Routing keys times topic bindings in one poll; at worst 40 us each.
MAX_MATCHES = 10_000

_Name = Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)] | None
_decode = msgspec.json.Decoder(tuple[Raw, _Name, _Name]).decode


class UnackedCounts(Struct, frozen=True):
    """Unacknowledged messages by queue."""

    counts: Mapping[str, int]
    unclear: AbstractSet[str]  # queues that may have more

    def of(self, queue: str) -> int | None:
        """Return the number of one queue, None if it is unknown."""
        is_unknown = queue in self.unclear or len(queue) > MAX_NAME_CHARACTERS
        return None if is_unknown else self.counts.get(queue, 0)


class _Address(Struct, frozen=True, gc=False):
    """Where a message was sent."""

    exchange: str
    routing_key: str


class UnackedMessages:
    """The messages in the hash, of which `count` reads the new ones."""

    def __init__(self, client: Any, channel: Any) -> None:
        self._client = client
        self._channel = channel
        self._key = prefixed(channel, channel.unacked_key)
        self._addresses: dict[bytes, _Address | None] = {}  # by delivery tag; None: the value is unreadable

    def count(self) -> UnackedCounts | None:
        """Return the numbers; None beyond a bound, or if Redis denies access."""
        try:
            return self._route() if self._update() else None
        except redis.ResponseError:
            return None

    def _update(self) -> bool:
        """Read new values up to the bounds; return whether all addresses are known."""
        if self._client.hlen(self._key) > MAX_MESSAGES:
            self._addresses.clear()
            return False
        tags = self._client.hkeys(self._key)
        self._addresses = {tag: self._addresses[tag] for tag in tags if tag in self._addresses}
        new = [tag for tag in tags if tag not in self._addresses]
        with self._client.pipeline(transaction=False) as pipe:
            for tag in new:
                pipe.hstrlen(self._key, tag)
            ends = list(accumulate(pipe.execute()))
        readable = new[: bisect_right(ends, MAX_BYTES)]
        for _, page in groupby(zip(readable, ends, strict=False), key=lambda pair: pair[1] // PAGE_BYTES):
            self._read([tag for tag, _ in page])
        return len(readable) == len(new)

    def _read(self, tags: list[bytes]) -> None:
        for tag, value in zip(tags, self._client.hmget(self._key, tags), strict=True):
            if value is not None:  # None: it was acknowledged meanwhile
                self._addresses[tag] = _address(value)

    def _route(self) -> UnackedCounts | None:
        """Add the messages up by queue, as kombu finds it when it restores a message (`Channel._lookup`)."""
        addresses = Counter(filter(None, self._addresses.values()))
        tables = self._binding_tables({address.exchange for address in addresses} - {""})
        if tables is None:
            return None
        if (
            sum(len(tables[address.exchange].topics) for address in addresses if address.exchange)
            > MAX_MATCHES
        ):
            return None
        counts: Counter[str] = Counter()
        unclear: set[str] = set()
        for address, number in addresses.items():
            if not address.exchange:  # the default exchange: the routing key is the name of the queue
                counts[address.routing_key] += number
                continue
            table = tables[address.exchange]
            queues = table.find(address.routing_key)
            if len(queues) == 1:
                counts[queues.pop()] += number
            else:  # any of these; without one, the exchange may be a fanout exchange
                unclear |= queues or table.queues
        return UnackedCounts(counts, unclear)

    def _binding_tables(self, exchanges: AbstractSet[str]) -> dict[str, _BindingTable] | None:
        """Return the bindings of these exchanges, None if they are too many."""
        if not exchanges:  # usual: Celery sends to the default exchange
            return {}
        if len(exchanges) > MAX_BINDINGS:
            return None
        keys = [prefixed(self._channel, self._channel.keyprefix_queue % exchange) for exchange in exchanges]
        with self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.scard(key)
            if sum(pipe.execute()) > MAX_BINDINGS:
                return None
            for key in keys:
                pipe.smembers(key)
            separator = self._channel.sep.encode()
            return {
                exchange: _BindingTable(member.split(separator) for member in members)
                for exchange, members in zip(exchanges, pipe.execute(), strict=True)
            }


class _BindingTable:
    """The bindings of one exchange, each [routing key, pattern, queue]. Only a topic exchange has patterns.

    A pattern is a regular expression. It is not used, since it comes from the network.
    """

    def __init__(self, members: Iterable[list[bytes]]) -> None:
        self.queues: set[str] = set()
        self.topics: list[tuple[list[str], str]] = []  # words and queue
        self._exact: dict[str, set[str]] = {}  # by routing key
        for member in members:
            if len(member) == 3:
                self._add(*(part.decode(errors="replace") for part in member))

    def _add(self, routing_key: str, pattern: str, queue: str) -> None:
        self.queues.add(queue)
        words = routing_key.split(".")
        if pattern and {"*", "#"} & set(words):
            self.topics.append((words, queue))
        else:
            self._exact.setdefault(routing_key, set()).add(queue)

    def find(self, routing_key: str) -> set[str]:
        """Return the queues that a message with this routing key goes to."""
        queues = set(self._exact.get(routing_key, ()))
        words = routing_key.split(".")
        if self.topics and len(words) > MAX_WORDS:
            return set()
        return queues | {
            queue for topic, queue in self.topics if len(topic) <= MAX_WORDS and matches(topic, words)
        }


def _address(value: bytes) -> _Address | None:
    """Return exchange and routing key of a value. The message itself is not decoded."""
    try:
        _, exchange, routing_key = _decode(value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return _Address(exchange or "", routing_key or "")
