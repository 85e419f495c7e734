"""A message off the event exchange → events: which serialiser, and whether we trust it."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Collection
from typing import Any

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


#: Bytes that a compressed body may inflate to. A batch of the largest real events is a thousandth of it.
MAX_INFLATED = 32 * 2**20

#: kombu's names of compressions → what makes a decompressor (kombu/compression.py).
_INFLATERS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "gzip": zlib.decompressobj,
    "zlib": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "bzip2": bz2.BZ2Decompressor,
    "bzip": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
    "lzma": lzma.LZMADecompressor,
    "xz": lzma.LZMADecompressor,
}


class UndecodableError(Exception):
    """A body that is not what its sender says, or too large."""


class Payload(Struct, frozen=True, gc=False):
    """One message as it came: its body, and what its sender says the body is."""

    body: bytes
    content_type: str | None = None
    content_encoding: str | None = None
    compression: str | None = None  # kombu's header of that name


#: Stands for a message whose envelope could not be read: it counts as one undecodable event.
BROKEN = Payload(b"")


def events_of(payload: Payload, accept: Collection[str]) -> list[Event | Malformed]:
    """Return the events in a message; `accept` are the content types that may be deserialised.

    Nothing but an accepted type is ever deserialised: unpickling runs code that the sender chose.
    """
    said = (payload.content_type, payload.content_encoding, payload.compression)
    if not all(each is None or isinstance(each, str) for each in said):  # headers hold what senders like
        return [Malformed("undecodable")]
    kind = payload.content_type or CONTENT_TYPES["json"]
    if kind not in accept:
        return [Malformed("content_type")]
    try:
        body = _inflated(payload.body, payload.compression) if payload.compression else payload.body
    except UndecodableError:
        return [Malformed("undecodable")]
    if kind == CONTENT_TYPES["json"]:
        return decode(body)
    try:
        loaded = serialization.loads(body, kind, payload.content_encoding or "binary", accept=accept)
    except Exception:  # noqa: BLE001  a deserialiser of hostile bytes may raise anything; it is counted
        return [Malformed("undecodable")]
    return from_objects(loaded)


def _inflated(body: bytes, compression: str) -> bytes:
    """Return the body decompressed; raise UndecodableError for one larger than `MAX_INFLATED`, too."""
    make = _INFLATERS.get(compression)
    if make is None:
        raise UndecodableError(compression)
    inflater = make()
    try:
        inflated: bytes = inflater.decompress(body, MAX_INFLATED)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise UndecodableError(compression) from error
    if not inflater.eof:
        raise UndecodableError(compression)
    return inflated
