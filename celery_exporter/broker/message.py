"""Messages of the event exchange → events.

Only accepted serializers are read, and bodies of a limited size.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import Struct

from celery_exporter.broker.codecs import JSON, MAX_BODY, UndecodableError, decompress, load
from celery_exporter.core.events import Event, Malformed, decode, from_objects

#: The content type of messages of a relay: a JSON body of events in each line.
EVENT_LINES = "application/x-ndjson"
#: The content type of a message without events, by which exporters find out which of them is active.
TEST_MESSAGE = "application/x-celery-exporter-test"


class RefusedError(Exception):
    """A body in a serializer that is not accepted."""

    def __init__(self, content_type: str) -> None:
        super().__init__(content_type)
        self.content_type = content_type


class Message(Struct, frozen=True, gc=False):
    """One message as it arrived: its body, and what the sender wrote about it, which may have any type."""

    body: bytes
    content_type: str | None = None
    content_encoding: str | None = None
    compression: str | None = None  # kombu's header of that name


#: Stands for a message whose envelope cannot be read: it counts as one undecodable event.
UNREADABLE = Message(b"")


def from_kombu(message: Any) -> Message:
    """Return a message of kombu, which has decompressed the body."""
    body = message.body
    return Message(
        body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body or b""),
        getattr(message, "content_type", None),
        getattr(message, "content_encoding", None),
    )


def object_of(message: Message, accept: Collection[str]) -> Any:
    """Return the deserialized body; `accept` are the content types that may be deserialized.

    Raises RefusedError for any other content type, UndecodableError for a body that cannot be read.
    """
    content_type = message.content_type or JSON
    if not isinstance(content_type, str):
        raise UndecodableError("content type")
    if content_type not in accept:
        raise RefusedError(content_type)
    if content_type != JSON:
        return load(message.body, content_type)
    try:
        return msgspec.json.decode(limited(message.body))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UndecodableError(content_type) from error


def events_of(
    message: Message, accept: Collection[str], schema: type[Event] = Event
) -> list[Event | Malformed]:
    """Return the events in a message; `accept` are the content types that may be deserialized.

    `schema` is the type of the events: `Event` or a subclass of it.
    Nothing else is ever deserialized: unpickling runs code that the sender chose.
    """
    content_type, encoding = message.content_type or JSON, message.content_encoding
    compression = message.compression
    if not isinstance(content_type, str) or not (encoding is None or isinstance(encoding, str)):
        return [Malformed("undecodable")]
    if not (compression is None or isinstance(compression, str)):
        return [Malformed("undecodable")]
    if content_type not in accept:
        return [Malformed("content_type")]
    try:
        body = limited(decompress(message.body, compression) if compression else message.body)
        if content_type == JSON:
            return decode(body, schema)
        return from_objects(load(body, content_type), schema)
    except UndecodableError:
        return [Malformed("undecodable")]


def limited(body: bytes) -> bytes:
    """Return a body; raise UndecodableError if it is too long."""
    if len(body) > MAX_BODY:
        raise UndecodableError(f"{len(body)} bytes")
    return body
