"""A message off the event exchange → events: which serialiser, whether we trust it, how much we read."""

from __future__ import annotations

import bz2
import importlib
import lzma
import math
import zlib
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import yaml
from kombu import compression, serialization
from msgspec import Struct

from celery_exporter.core.events import Event, Malformed, decode, from_objects

#: --accept-content names → content types, as kombu registers them.
CONTENT_TYPES = {
    "json": "application/json",
    "msgpack": "application/x-msgpack",
    "yaml": "application/x-yaml",
    "pickle": "application/x-python-serialize",
}

JSON = CONTENT_TYPES["json"]

#: Bytes that a body may have, and that a compressed one may inflate to: Redis cuts a subscriber off that is
#: behind by more. A batch of the largest real events is a hundredth of it.
MAX_BODY = 32 * 2**20
#: Memory in bytes that a decompressor may want for itself; the strongest usual settings want 65 MiB.
MAX_WINDOW = 80 * 2**20
#: Bytes of a body whose serialiser makes an object of each thing in it, at up to 64 bytes for one.
MAX_LOADED = 2**20
#: The same for YAML, of which PyYAML reads 300 kB a second. (Its fast reader, in C, can be made to crash.)
MAX_YAML = 2**18
#: Brackets within brackets, and characters of a whole number, in YAML.
MAX_YAML_DEPTH, MAX_YAML_NUMBER = 8, 20


class UndecodableError(Exception):
    """A body that is not what its sender says, or too large."""


class RefusedError(Exception):
    """A body in a serialiser that is not accepted."""

    def __init__(self, content_type: str) -> None:
        super().__init__(content_type)
        self.content_type = content_type


class Message(Struct, frozen=True, gc=False):
    """One message as it came: its body, and what its sender says the body is."""

    body: bytes
    content_type: str | None = None
    content_encoding: str | None = None
    compression: str | None = None  # kombu's header of that name


#: Stands for a message whose envelope could not be read: it counts as one undecodable event.
UNREADABLE = Message(b"")


def payload_of(message: Any) -> Message:
    """Return what kombu has of a message, whose body it has inflated."""
    body = message.body
    return Message(
        body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body or b""),
        getattr(message, "content_type", None),
        getattr(message, "content_encoding", None),
    )


def object_of(payload: Message, accept: Collection[str]) -> Any:
    """Return what a message holds, by the same rules as its events.

    Raises RefusedError for a serialiser that is not accepted, UndecodableError for what cannot be read.
    """
    kind = payload.content_type or JSON
    if not isinstance(kind, str):
        raise UndecodableError("content type")
    if kind not in accept:
        raise RefusedError(kind)
    if kind != JSON:
        return _loaded(payload.body, kind)
    try:
        return msgspec.json.decode(_sized(payload.body, MAX_BODY))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UndecodableError(kind) from error


def events_of(payload: Message, accept: Collection[str]) -> list[Event | Malformed]:
    """Return the events in a message; `accept` are the content types that may be deserialised.

    Nothing but an accepted type is ever deserialised: unpickling runs code that the sender chose.
    """
    kind, encoding, compressed = payload.content_type or JSON, payload.content_encoding, payload.compression
    # Headers hold what senders like.
    if not isinstance(kind, str) or not (encoding is None or isinstance(encoding, str)):
        return [Malformed("undecodable")]
    if not (compressed is None or isinstance(compressed, str)):
        return [Malformed("undecodable")]
    if kind not in accept:
        return [Malformed("content_type")]
    try:
        body = _sized(_inflated(payload.body, compressed) if compressed else payload.body, MAX_BODY)
        if kind == JSON:
            return decode(body)
        return from_objects(_loaded(body, kind))
    except UndecodableError:
        return [Malformed("undecodable")]


def _sized(body: bytes, limit: int) -> bytes:
    if len(body) > limit:
        raise UndecodableError(f"{len(body)} bytes")
    return body


# -- serialisers other than JSON -----------------------------------------------------------------------


class _YamlLoader(yaml.SafeLoader):
    """Refuses what no event needs and a few lines of which take for ever: aliases, depth, long numbers."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node; raise for an alias, for ten lines of them make a billion things."""
        if self.check_event(yaml.AliasEvent):
            raise UndecodableError("alias")
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Take a bracket; PyYAML looks at all that are open at each thing in them."""
        if self.flow_level >= MAX_YAML_DEPTH:
            raise UndecodableError("deep")
        super().fetch_flow_collection_start(token)

    def construct_yaml_int(self, node: Any) -> Any:
        """Return a whole number; 1:59:59:… can have any length, and long ones can be made to collide."""
        return super().construct_yaml_int(node) if len(node.value) <= MAX_YAML_NUMBER else math.inf


_YamlLoader.add_constructor("tag:yaml.org,2002:int", _YamlLoader.construct_yaml_int)

#: By content type: the longest body, and what makes objects of it.
_LOADERS: dict[str, tuple[int, Callable[[bytes], Any]]] = {
    CONTENT_TYPES["msgpack"]: (MAX_LOADED, msgspec.msgpack.decode),
    CONTENT_TYPES["yaml"]: (MAX_YAML, partial(yaml.load, Loader=_YamlLoader)),
    CONTENT_TYPES["pickle"]: (MAX_LOADED, serialization.unpickle),
}


def _loaded(body: bytes, kind: str) -> Any:
    limit, load = _LOADERS[kind]
    try:
        return load(_sized(body, limit))
    except Exception as error:  # a deserialiser of hostile bytes may raise anything
        raise UndecodableError(kind) from error


# -- compressions --------------------------------------------------------------------------------------


def _stream(make: Callable[[], Any], body: bytes) -> bytes:
    """Inflate with a decompressor of the shape that those of Python have: one whole stream."""
    inflater = make()
    inflated: bytes = inflater.decompress(body, MAX_BODY)
    if not inflater.eof or inflater.unused_data:
        raise UndecodableError("too large, cut off, or followed by something")
    return inflated


def _brotli(module: Any, body: bytes) -> bytes:
    inflater = module.Decompressor()
    inflated: bytes = inflater.process(body, output_buffer_limit=MAX_BODY)
    if not inflater.is_finished():
        raise UndecodableError("too large, or cut off")
    return inflated


def _zstd(module: Any, body: bytes) -> bytes:
    options = {module.DecompressionParameter.window_log_max: MAX_WINDOW.bit_length() - 1}
    return _stream(partial(module.ZstdDecompressor, options=options), body)


#: kombu's names of compressions → what inflates them, to `MAX_BODY` at most (kombu/compression.py).
_INFLATE: dict[str, Callable[[bytes], bytes]] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), partial(_stream, zlib.decompressobj)),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), partial(_stream, bz2.BZ2Decompressor)),
    **dict.fromkeys(
        ("application/x-lzma", "lzma", "xz"),
        partial(_stream, partial(lzma.LZMADecompressor, memlimit=MAX_WINDOW)),
    ),
}
# Where these are installed kombu has them, and so have we.
for _module, _function, _names in (
    ("brotlicffi", _brotli, ("application/x-brotli", "brotli")),
    ("brotli", _brotli, ("application/x-brotli", "brotli")),
    ("backports.zstd", _zstd, ("application/zstd", "zstd", "zstandard")),
    ("compression.zstd", _zstd, ("application/zstd", "zstd", "zstandard")),
):
    with suppress(ImportError):
        _INFLATE |= dict.fromkeys(_names, partial(_function, importlib.import_module(_module)))


def bound_kombu() -> None:
    """Have kombu inflate within `MAX_BODY`, too, where it reads a message for us, in all of this process."""
    for name in compression.encoders():
        encoder, _ = compression.get_encoder(name)
        compression.register(encoder, _INFLATE.get(name, _refused), name)


def _refused(_: bytes) -> bytes:
    raise UndecodableError("a compression that we cannot bound")


def _inflated(body: bytes, name: str) -> bytes:
    """Return the body decompressed; raise UndecodableError for one larger than `MAX_BODY`, too."""
    inflate = _INFLATE.get(name)
    if inflate is None:
        raise UndecodableError(name)
    try:
        return inflate(body)
    except Exception as error:  # a decompressor of hostile bytes may raise anything
        raise UndecodableError(name) from error
