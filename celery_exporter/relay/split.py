"""Divides messages of events between shards. Pure.

All that a shard gets of some messages is one message, a line for each of them, in their order. Invariant: a
line depends on the bytes of its message and the number of shards alone. So a message that is relayed again
gives the same lines, by which a shard recognizes them, whatever is relayed with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from celery_exporter.broker.codecs import JSON
from celery_exporter.broker.message import EVENT_LINES, UNREADABLE, Message
from celery_exporter.core.events import WORKER_TYPES, Address, key_of
from celery_exporter.core.json_array import MAX_ITEMS
from celery_exporter.core.shards import shard_of

#: What every shard gets as one message.
EVERY_SHARD = "every"
#: Bytes of a message with several lines, at most. A longer body is a message of its own.
MAX_TEXT_BYTES = 2**20
#: Longest name of a compression that is passed on. Kombu's have some characters.
MAX_NAME_LENGTH = 255
#: The content type in place of that of a relay, if another sender has used it: no exporter accepts it.
FOREIGN_LINES = f"{EVENT_LINES}; not of a relay"


class Part(Struct, frozen=True):
    """A message for one shard, by its index as text, or for `EVERY_SHARD`."""

    shard: str
    message: Message


_events = msgspec.json.Decoder(list[Raw]).decode
_addresses = msgspec.json.Decoder(list[Address]).decode
_address = msgspec.json.Decoder(Address).decode


def split(messages: Iterable[Message], count: int) -> list[Part]:
    """Return what each of `count` shards gets of these messages."""
    parts: list[Part] = []
    lines: dict[str, list[bytes]] = {shard: [] for shard in _all_shards(count)}
    for message in map(_harmless, messages):
        is_plain = message.content_type in {JSON, None} and not message.compression
        for shard, body in _bodies(message, count) if is_plain else [(EVERY_SHARD, message.body)]:
            shards = lines if shard == EVERY_SHARD else (shard,)
            if is_plain and len(body) <= MAX_TEXT_BYTES and b"\n" not in body:
                for each_shard in shards:
                    lines[each_shard].append(body)
            else:
                parts += [part for each_shard in shards for part in _take(lines, each_shard)]
                parts.append(Part(shard, replace(message, body=body)))
    return parts + [part for shard in lines for part in _take(lines, shard)]


def _harmless(message: Message) -> Message:
    """Return a message that can be published, and that no shard takes for one of a relay.

    A sender may write a table into a header, which py-amqp reads and cannot write, or one that fills a frame.
    """
    name = message.compression
    if not (name is None or isinstance(name, str)) or len(name or "") > MAX_NAME_LENGTH:
        return UNREADABLE
    return replace(message, content_type=FOREIGN_LINES) if message.content_type == EVENT_LINES else message


def _bodies(message: Message, count: int) -> list[tuple[str, bytes]]:
    """Return the events that each shard gets of a message.

    What cannot be read here goes to every shard: each takes its own events out of it.
    """
    body = message.body
    try:
        if body[:1] == b"{":
            return [(shard, body) for shard in _shards(_address(body), count)]
        if body.count(b"{") <= MAX_ITEMS:
            return _split_batch(body, count)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    return [(EVERY_SHARD, body)]


def _split_batch(body: bytes, count: int) -> list[tuple[str, bytes]]:
    parts: dict[str, list[Raw]] = {}
    # The addresses first: without them, a body of numbers would become millions of objects.
    for address, event in zip(_addresses(body), _events(body), strict=True):
        for shard in _shards(address, count):
            parts.setdefault(shard, []).append(event)
    return [(shard, b"[%b]" % b",".join(events)) for shard, events in parts.items()]


def _take(lines: dict[str, list[bytes]], shard: str) -> Iterator[Part]:
    """Yield the lines of a shard as messages of limited size, and remove them."""
    taken, lines[shard] = lines[shard], []
    start = size = 0
    for end, line in enumerate(taken):
        if size + len(line) > MAX_TEXT_BYTES:
            yield Part(shard, Message(b"\n".join(taken[start:end]), EVENT_LINES, "utf-8"))
            start, size = end, 0
        size += len(line)
    if taken:
        yield Part(shard, Message(b"\n".join(taken[start:]), EVENT_LINES, "utf-8"))


def _shards(address: Address, count: int) -> tuple[str, ...]:
    """Return the shards that get an event.

    What a worker says of itself is for all of them. The start of a task is for the shard of the worker, too,
    which counts what is missed.
    """
    if address.type in WORKER_TYPES:
        return _all_shards(count)
    own = shard_of(key_of(address.type, address.uuid, address.hostname or ""), count)
    if address.type == "task-started":
        of_worker = shard_of(address.hostname or "", count)
        return (str(own),) if own == of_worker else (str(own), str(of_worker))
    return (str(own),)


@lru_cache(1)
def _all_shards(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))
