"""A message off the event exchange → events: which serialiser, and whether we trust it."""

from __future__ import annotations

from collections.abc import Collection

from kombu import serialization
from msgspec import Struct

from celery_exporter.core.events import Event, Malformed, decode, from_objects

#: --accept-content names → content types, as kombu registers them.
CONTENT_TYPES = {
    "json": "application/json",
    "msgpack": "application/x-msgpack",
    "yaml": "application/x-yaml",
    "pickle": "application/x-python-serialize",
}


class Payload(Struct, frozen=True, gc=False):
    """One message as it came: its body, and what its sender says the body is."""

    body: bytes
    content_type: str | None = None
    content_encoding: str | None = None


#: Stands for a message whose envelope could not be read: it counts as one undecodable event.
BROKEN = Payload(b"")


def events_of(payload: Payload, accept: Collection[str]) -> list[Event | Malformed]:
    """Return the events in a message; `accept` are the content types that may be deserialised.

    Nothing but an accepted type is ever deserialised: unpickling runs code that the sender chose.
    """
    kind = payload.content_type or CONTENT_TYPES["json"]
    if kind not in accept:
        return [Malformed("content_type")]
    if kind == CONTENT_TYPES["json"]:
        return decode(payload.body)
    try:
        loaded = serialization.loads(payload.body, kind, payload.content_encoding or "binary", accept=accept)
    except Exception:  # noqa: BLE001  a deserialiser of hostile bytes may raise anything; it is counted
        return [Malformed("undecodable")]
    return from_objects(loaded)
