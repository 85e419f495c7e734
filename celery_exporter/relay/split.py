"""Divides messages of events between shards. Pure.

All that a shard gets of some messages is one message, a line for each of them. Invariant: a line depends on
the bytes of its message and the number of shards alone. So a message that is relayed again gives the same
lines, by which a shard recognizes them, whatever is relayed with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from celery_exporter.broker.codecs import JSON
from celery_exporter.broker.message import EVENT_LINES, Message
from celery_exporter.core.events import WORKER_TYPES
from celery_exporter.core.shards import key_of, shard_of

#: The part that every shard gets.
EVERY_SHARD = "every"
#: Bytes of a message with several lines, at most.
MAX_TEXT_BYTES = 2**20


class Part(Struct, frozen=True):
    """A message for one shard, by its index as text, or for `EVERY_SHARD`."""

    shard: str
    message: Message


class _Address(Struct, gc=False):
    """The fields of an event that say which shards get it."""

    type: str
    uuid: str | None = None
    hostname: str | None = None


_events = msgspec.json.Decoder(list[Raw]).decode
_addresses = msgspec.json.Decoder(list[_Address]).decode
_address = msgspec.json.Decoder(_Address).decode


def split(messages: Iterable[Message], count: int) -> list[Part]:
    """Return what each of `count` shards gets of these messages."""
    parts: list[Part] = []
    lines: dict[str, list[bytes]] = {}
    for message in messages:
        is_plain = message.content_type in {JSON, None} and not message.compression
        for shard, body in _bodies(message, count) if is_plain else [(EVERY_SHARD, message.body)]:
            if is_plain and b"\n" not in body:
                lines.setdefault(shard, []).append(body)
            else:
                parts.append(Part(shard, replace(message, body=body)))
    joined = ((shard, text) for shard, bodies in lines.items() for text in _joined(bodies))
    return parts + [Part(shard, Message(text, EVENT_LINES, "utf-8")) for shard, text in joined]


def _bodies(message: Message, count: int) -> list[tuple[str, bytes]]:
    """Return the events that each shard gets of a message.

    What cannot be read here goes to every shard: each takes its own events out of it.
    """
    try:
        if message.body[:1] == b"{":
            return [(shard, message.body) for shard in _shards(_address(message.body), count)]
        return _split_batch(message.body, count)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return [(EVERY_SHARD, message.body)]


def _split_batch(body: bytes, count: int) -> list[tuple[str, bytes]]:
    parts: dict[str, list[Raw]] = {}
    for event, address in zip(_events(body), _addresses(body), strict=True):
        for shard in _shards(address, count):
            parts.setdefault(shard, []).append(event)
    return [(shard, b"[%b]" % b",".join(events)) for shard, events in parts.items()]


def _joined(lines: list[bytes]) -> Iterator[bytes]:
    """Yield these lines in texts of limited size."""
    start = size = 0
    for end, line in enumerate(lines):
        if size + len(line) > MAX_TEXT_BYTES and end > start:
            yield b"\n".join(lines[start:end])
            start, size = end, 0
        size += len(line)
    if lines:
        yield b"\n".join(lines[start:])


def _shards(address: _Address, count: int) -> tuple[str, ...]:
    """Return the shards that get an event.

    What a worker says of itself is for all of them. The start of a task is for the shard of the worker, too,
    which counts what is missed.
    """
    if address.type in WORKER_TYPES:
        return (EVERY_SHARD,)
    own = shard_of(key_of(address.type, address.uuid, address.hostname or ""), count)
    if address.type == "task-started":
        of_worker = shard_of(address.hostname or "", count)
        return (str(own),) if own == of_worker else (str(own), str(of_worker))
    return (str(own),)
