"""Which queue a message goes to, by the exchange, the routing key and the bindings that workers report.

`task-sent` names the default queue where an application routes by exchange and routing key, and none where
the broker delays the message. So the queue is taken from the bindings; the name in `task-sent` stands where
nothing that is known contradicts it.

Everything here comes from the wire: the number of bindings, the cost of a match and the cache are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec import Struct

#: Bindings remembered at a time, as many as queues are measured.
MAX_BINDINGS = 1_000
#: Topic patterns that are tried for one routing key, of up to so many words: 4 ms at worst.
MAX_PATTERNS = 100
MAX_WORDS = 20
#: Routing keys whose queue is remembered: an application uses some dozens.
MAX_ROUTES = 5_000

#: kombu.transport.native_delayed_delivery: an exchange for each bit of the delay, the bits before the key.
_delay_exchange = re.compile(r"(?:.+_)?celery_delayed_\d{1,2}")
_delay_bits = re.compile(r"(?:[01]\.){28}")
#: kombu.common.Broadcast: each process that declares one has a queue of its own.
_own_queue = re.compile(r".+\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Binding(Struct, frozen=True):
    """One way into a queue, as `active_queues` reports it."""

    queue: str
    exchange: str
    exchange_type: str
    routing_key: str
    alias: str | None = None  # what the application calls a broadcast queue


class Route(Struct, frozen=True):
    """Where a message goes. `queue` is None where that is not known."""

    queue: str | None
    copied: bool = False  # to each of several queues: that several workers receive it is no redelivery


#: Exchange (None: through the delay exchanges) and routing key (None: any, for a fanout exchange).
_Address = tuple[str | None, str | None]


class Routes:
    """Maps exchange and routing key to a queue. `update` records bindings, `find` resolves."""

    def __init__(self) -> None:
        self._current: frozenset[Binding] = frozenset()
        self._by_queue: dict[str, tuple[Binding, ...]] = {}
        self._exact: dict[_Address, list[Binding]] = {}
        self._patterns: dict[_Address, list[Binding]] = {}  # by exchange and first word, "" for a wildcard
        self._opaque: set[str] = set()  # exchanges of types whose rules are not known here
        self._cache: dict[tuple[str | None, str | None, str | None], Route] = {}

    def update(self, bindings: Iterable[Binding]) -> None:
        """Replace what is known of these queues, and keep what is known of others while there is room.

        A broker keeps the bindings of a queue while none of its workers runs.
        """
        current = frozenset(bindings)
        if current == self._current:
            return
        self._current = current
        reported: dict[str, tuple[Binding, ...]] = {}
        for binding in sorted(current, key=lambda binding: binding.queue):
            reported[binding.queue] = (*reported.get(binding.queue, ()), binding)
        others = {queue: known for queue, known in self._by_queue.items() if queue not in reported}
        self._by_queue = _bounded({**reported, **others})
        self._index()

    def find(self, queue: str | None, exchange: str | None, routing_key: str | None) -> Route:
        """Return the route of a message, where `task-sent` names these."""
        triple = (queue, exchange, routing_key)
        route = self._cache.get(triple)
        if route is None:
            if len(self._cache) >= MAX_ROUTES:
                self._cache.clear()
            route = self._cache[triple] = self._resolve(queue, exchange, routing_key)
        return route

    def label(self, queue: str) -> str:
        """Return what to call a queue that a worker consumes: the alias, if it is one copy of a broadcast."""
        known = self._by_queue.get(queue)
        return _label(known[0]) if known else queue

    def _resolve(self, queue: str | None, exchange: str | None, routing_key: str | None) -> Route:
        if exchange is None or routing_key is None:
            return Route(queue)
        if not exchange:  # the default exchange: the routing key is the name of the queue
            return Route(routing_key or queue)
        matches = self._match(exchange, routing_key)
        if matches:
            return self._agree(queue, exchange, matches)
        if queue is None:
            return Route(None)
        known = self._by_queue.get(queue)
        if known is None and _own_queue.fullmatch(queue):
            return Route(exchange, copied=True)
        contradicted = known is not None and exchange not in self._opaque
        return Route(None if contradicted else queue)

    def _match(self, exchange: str, routing_key: str) -> list[Binding]:
        at: str | None = exchange
        if _delay_exchange.fullmatch(exchange) and (bits := _delay_bits.match(routing_key)):
            at, routing_key = None, routing_key[bits.end() :]
        found = [*self._exact.get((at, routing_key), ()), *self._exact.get((at, None), ())]
        words = routing_key.split(".")
        if len(words) <= MAX_WORDS:
            patterns = [*self._patterns.get((at, words[0]), ()), *self._patterns.get((at, ""), ())]
            found += [each for each in patterns if matches(each.routing_key.split("."), words)]
        return found

    def _agree(self, queue: str | None, exchange: str, found: Sequence[Binding]) -> Route:
        """Return the one queue that these bindings lead to, or what copies of the message have in common."""
        found = [each for each in found if each in self._current] or found
        queues, labels = {each.queue for each in found}, {_label(each) for each in found}
        broadcast = all(each.exchange_type == "fanout" for each in found)
        copied = broadcast or len(queues) > 1
        if len(labels) == 1:
            return Route(labels.pop(), copied)
        if broadcast:
            return Route(exchange, copied)
        return Route(queue if queue in queues else None, copied)

    def _index(self) -> None:
        self._cache.clear()
        self._exact, self._patterns, self._opaque = {}, {}, set()
        for bindings in self._by_queue.values():
            for binding in bindings:
                self._add(binding)

    def _add(self, binding: Binding) -> None:
        exchange, key = binding.exchange, binding.routing_key
        if binding.exchange_type == "fanout":
            self._exact.setdefault((exchange, None), []).append(binding)
            if binding.alias is None:  # Celery delays nothing for a broadcast
                self._exact.setdefault((None, key), []).append(binding)
        elif binding.exchange_type == "direct":
            self._exact.setdefault((exchange, key), []).append(binding)
        elif binding.exchange_type == "topic":
            for at in (exchange, None):
                self._add_topic(at, binding)
        else:
            self._opaque.add(exchange)

    def _add_topic(self, at: str | None, binding: Binding) -> None:
        words = binding.routing_key.split(".")
        if not {"*", "#"} & set(words):
            self._exact.setdefault((at, binding.routing_key), []).append(binding)
        elif len(words) <= MAX_WORDS:
            first = "" if words[0] in ("*", "#") else words[0]
            patterns = self._patterns.setdefault((at, first), [])
            if len(patterns) < MAX_PATTERNS:
                patterns.append(binding)
            else:
                self._opaque.add(binding.exchange)


def matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Tell whether a topic pattern matches: `*` stands for one word, `#` for any number of them."""
    at = place = 0
    star, after = -1, 0  # the newest "#", and up to where it reaches
    while place < len(words):
        if at < len(pattern) and pattern[at] == "#":
            star, after = at, place
            at += 1
        elif at < len(pattern) and pattern[at] in ("*", words[place]):
            at += 1
            place += 1
        elif star >= 0:
            after += 1
            at, place = star + 1, after
        else:
            return False
    return all(word == "#" for word in pattern[at:])


def _label(binding: Binding) -> str:
    shared = binding.exchange_type == "fanout" and binding.alias
    return binding.alias or binding.queue if shared else binding.queue


def _bounded(queues: dict[str, tuple[Binding, ...]]) -> dict[str, tuple[Binding, ...]]:
    """Return the first queues that have, together, no more bindings than there may be."""
    kept, room = {}, MAX_BINDINGS
    for queue, bindings in queues.items():
        room -= len(bindings)
        if room < 0:
            break
        kept[queue] = bindings
    return kept
