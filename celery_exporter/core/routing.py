"""Resolves the queue of a message by exchange, routing key and the bindings that workers report.

`task-sent` names the default queue if an application routes by exchange and routing key, and no queue if the
broker delays the message. So the bindings determine the queue. The queue in `task-sent` is used if it agrees
with them, or if they say nothing about it.

All input comes from the network, so the number of bindings, the time of a match and the cache are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec import Struct

#: Bindings at a time, as many as measured queues.
MAX_BINDINGS = 1_000
#: Topic patterns that are tried for one routing key, and words of each: 4 ms at worst.
MAX_PATTERNS = 100
MAX_WORDS = 20
#: Cached routes. An application uses some dozens.
MAX_ROUTES = 5_000

#: kombu.transport.native_delayed_delivery has an exchange for each bit of the delay. The routing key begins
#: with all bits of the delay.
_delay_exchange = re.compile(r"(?:.+_)?celery_delayed_\d{1,2}")
_delay_bits = re.compile(r"(?:[01]\.){28}")
#: kombu.common.Broadcast: each process that declares one has its own queue.
_broadcast_queue = re.compile(r".+\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Binding(Struct, frozen=True):
    """A binding of a queue to an exchange, as `active_queues` reports it."""

    queue: str
    exchange: str
    exchange_type: str
    routing_key: str
    alias: str | None = None  # the name of a broadcast queue in the application


class Route(Struct, frozen=True):
    """The queue of a message; None if it is unknown."""

    queue: str | None
    copied: bool = False  # to each of several queues, so receipts by several workers are no redeliveries


#: Exchange (None: the delay exchanges) and routing key (None: any, for a fanout exchange).
_Address = tuple[str | None, str | None]


class Routes:
    """Maps exchange and routing key to a queue: `update` records bindings, `find` resolves a message."""

    def __init__(self) -> None:
        self._current: frozenset[Binding] = frozenset()
        self._by_queue: dict[str, tuple[Binding, ...]] = {}
        self._exact: dict[_Address, list[Binding]] = {}
        self._patterns: dict[_Address, list[Binding]] = {}  # by exchange and first word, "" for a wildcard
        self._opaque: set[str] = set()  # exchanges whose routing rules are unknown here
        self._cache: dict[tuple[str | None, str | None, str | None], Route] = {}

    def update(self, bindings: Iterable[Binding]) -> None:
        """Replace the bindings of these queues; keep those of other queues up to the limit.

        The broker keeps the bindings of a queue while no worker of the queue runs.
        """
        current = frozenset(bindings)
        if current == self._current:
            return
        self._current = current
        reported: dict[str, tuple[Binding, ...]] = {}
        for binding in sorted(current, key=lambda binding: binding.queue):
            reported[binding.queue] = (*reported.get(binding.queue, ()), binding)
        others = {queue: bindings for queue, bindings in self._by_queue.items() if queue not in reported}
        self._by_queue = _bounded({**reported, **others})
        self._index()

    def find(self, queue: str | None, exchange: str | None, routing_key: str | None) -> Route:
        """Return the route of a message by the fields of its `task-sent`."""
        fields = (queue, exchange, routing_key)
        route = self._cache.get(fields)
        if route is None:
            if len(self._cache) >= MAX_ROUTES:
                self._cache.clear()
            route = self._cache[fields] = self._resolve(queue, exchange, routing_key)
        return route

    def label(self, queue: str) -> str:
        """Return the name to show for a queue that a worker consumes: the alias of a broadcast queue."""
        bindings = self._by_queue.get(queue)
        return _label(bindings[0]) if bindings else queue

    def _resolve(self, queue: str | None, exchange: str | None, routing_key: str | None) -> Route:
        if exchange is None or routing_key is None:
            return Route(queue)
        if not exchange:  # the default exchange: the routing key is the name of the queue
            return Route(routing_key or queue)
        bindings = self._match(exchange, routing_key)
        if bindings:
            return self._route_of(bindings, queue, exchange)
        if queue is None:
            return Route(None)
        is_bound = queue in self._by_queue
        if not is_bound and _broadcast_queue.fullmatch(queue):
            return Route(exchange, copied=True)
        is_contradicted = is_bound and exchange not in self._opaque
        return Route(None if is_contradicted else queue)

    def _match(self, exchange: str, routing_key: str) -> list[Binding]:
        at: str | None = exchange
        if _delay_exchange.fullmatch(exchange) and (bits := _delay_bits.match(routing_key)):
            at, routing_key = None, routing_key[bits.end() :]
        bindings = [*self._exact.get((at, routing_key), ()), *self._exact.get((at, None), ())]
        words = routing_key.split(".")
        if len(words) <= MAX_WORDS:
            candidates = [*self._patterns.get((at, words[0]), ()), *self._patterns.get((at, ""), ())]
            bindings += [binding for binding in candidates if matches(binding.routing_key.split("."), words)]
        return bindings

    def _route_of(self, bindings: Sequence[Binding], queue: str | None, exchange: str) -> Route:
        """Return the only queue of these bindings; for copies of a broadcast, their common name."""
        bindings = [binding for binding in bindings if binding in self._current] or bindings
        queues, labels = {binding.queue for binding in bindings}, {*map(_label, bindings)}
        is_broadcast = all(binding.exchange_type == "fanout" for binding in bindings)
        is_copied = is_broadcast or len(queues) > 1
        if len(labels) == 1:
            return Route(labels.pop(), is_copied)
        if is_broadcast:
            return Route(exchange, is_copied)
        return Route(queue if queue in queues else None, is_copied)

    def _index(self) -> None:
        self._cache.clear()
        self._exact, self._patterns, self._opaque = {}, {}, set()
        for bindings in self._by_queue.values():
            for binding in bindings:
                self._add(binding)

    def _add(self, binding: Binding) -> None:
        exchange, routing_key = binding.exchange, binding.routing_key
        if binding.exchange_type == "fanout":
            self._exact.setdefault((exchange, None), []).append(binding)
            if binding.alias is None:  # Celery does not delay broadcasts
                self._exact.setdefault((None, routing_key), []).append(binding)
        elif binding.exchange_type == "direct":
            self._exact.setdefault((exchange, routing_key), []).append(binding)
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
    """Return whether a topic pattern matches: `*` is one word, `#` is any number of words."""
    at_pattern = at_word = 0
    newest_hash, hash_end = -1, 0  # position of the newest "#", and of the first word after its match
    while at_word < len(words):
        if at_pattern < len(pattern) and pattern[at_pattern] == "#":
            newest_hash, hash_end = at_pattern, at_word
            at_pattern += 1
        elif at_pattern < len(pattern) and pattern[at_pattern] in ("*", words[at_word]):
            at_pattern += 1
            at_word += 1
        elif newest_hash >= 0:  # backtrack: the "#" matches one word more
            hash_end += 1
            at_pattern, at_word = newest_hash + 1, hash_end
        else:
            return False
    return all(word == "#" for word in pattern[at_pattern:])


def _label(binding: Binding) -> str:
    return binding.alias or binding.queue if binding.exchange_type == "fanout" else binding.queue


def _bounded(bindings_by_queue: dict[str, tuple[Binding, ...]]) -> dict[str, tuple[Binding, ...]]:
    """Return the first queues whose bindings number at most `MAX_BINDINGS` together."""
    bounded, total = {}, 0
    for queue, bindings in bindings_by_queue.items():
        total += len(bindings)
        if total > MAX_BINDINGS:
            break
        bounded[queue] = bindings
    return bounded
