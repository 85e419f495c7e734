"""Deserializers and decompressors for untrusted bodies, bounded in time and memory."""

from __future__ import annotations

import bz2
import importlib
import lzma
import math
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import yaml
from kombu import compression, serialization

#: --accept-content names → content types, as kombu registers them.
CONTENT_TYPES = {
    "json": "application/json",
    "msgpack": "application/x-msgpack",
    "yaml": "application/x-yaml",
    "pickle": "application/x-python-serialize",
}

JSON = CONTENT_TYPES["json"]

#: Bytes of a body, decompressed. Redis disconnects a subscriber that is further behind. A batch of the
#: largest real events has a hundredth of it.
MAX_BODY = 32 * 2**20
#: Bytes that a decompressor may use for its window; the strongest usual presets use 65 MiB.
MAX_WINDOW = 80 * 2**20
#: Bytes of a body that is deserialized to objects, of which each byte may cost 64 bytes.
MAX_LOADED = 2**20
#: The same for YAML: PyYAML reads 300 kB a second. (Its fast parser, in C, can be made to crash.)
MAX_YAML = 2**18
#: Nested brackets, and characters of an integer, in YAML.
MAX_YAML_DEPTH, MAX_YAML_INTEGER = 8, 20


class UndecodableError(Exception):
    """A body that does not match what its sender wrote about it, or is too large."""


# -- serializers other than JSON -----------------------------------------------------------------------


class _YamlLoader(yaml.SafeLoader):
    """Refuses what no event needs and a few lines of which take forever: aliases, depth, long integers."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node; raise for an alias, because ten lines of them expand to a billion nodes."""
        if self.check_event(yaml.AliasEvent):
            raise UndecodableError("alias")
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Start a bracket; PyYAML walks all open brackets at each token in them."""
        if self.flow_level >= MAX_YAML_DEPTH:
            raise UndecodableError("depth")
        super().fetch_flow_collection_start(token)

    def construct_yaml_int(self, node: Any) -> Any:
        """Return an integer; 1:59:59:… can have any length, and long ones can have colliding hashes."""
        return super().construct_yaml_int(node) if len(node.value) <= MAX_YAML_INTEGER else math.inf


_YamlLoader.add_constructor("tag:yaml.org,2002:int", _YamlLoader.construct_yaml_int)

#: By content type: the longest body, and its deserializer.
_LOADERS: dict[str, tuple[int, Callable[[bytes], Any]]] = {
    CONTENT_TYPES["msgpack"]: (MAX_LOADED, msgspec.msgpack.decode),
    CONTENT_TYPES["yaml"]: (MAX_YAML, partial(yaml.load, Loader=_YamlLoader)),
    CONTENT_TYPES["pickle"]: (MAX_LOADED, serialization.unpickle),
}


def load(body: bytes, content_type: str) -> Any:
    """Return the objects in a body of an accepted content type other than JSON. Raises UndecodableError."""
    limit, deserialize = _LOADERS[content_type]
    if len(body) > limit:
        raise UndecodableError(f"{len(body)} bytes")
    try:
        return deserialize(body)
    except Exception as error:  # a deserializer of hostile bytes may raise anything
        raise UndecodableError(content_type) from error


# -- compression ---------------------------------------------------------------------------------------
#
# Celery asks for no compression of events: EventDispatcher passes none to Producer.publish in 5.2 to 5.7, and
# task_compression is for task messages. But an application may: `apply_async(producer=Producer(…,
# compression="gzip"))` is public API, and amqp.send_task_message publishes task-sent through that producer,
# whose own compression kombu applies. kombu's consumers, and so Celery's event receivers, read such events.


def decompress(body: bytes, name: str) -> bytes:
    """Return the body decompressed, by kombu's name of a compression.

    Raises UndecodableError for another name, for a damaged body, and for more than `MAX_BODY` bytes.
    """
    decompressor = _DECOMPRESSORS.get(name)
    if decompressor is None:
        raise UndecodableError(name)
    try:
        return decompressor(body)
    except Exception as error:  # a decompressor of hostile bytes may raise anything
        raise UndecodableError(name) from error


def bound_kombu() -> None:
    """Have kombu decompress with the same limits in this process, because it reads replies of workers."""
    for name in compression.encoders():
        encoder, _ = compression.get_encoder(name)
        compression.register(encoder, _DECOMPRESSORS.get(name, _refuse), name)


def _refuse(_: bytes) -> bytes:
    raise UndecodableError("a compression without a limit")


def _decompress_stream(make_decompressor: Callable[[], Any], body: bytes) -> bytes:
    """Decompress one complete stream, with a decompressor that has the interface of Python's."""
    decompressor = make_decompressor()
    data: bytes = decompressor.decompress(body, MAX_BODY)
    if not decompressor.eof or decompressor.unused_data:
        raise UndecodableError("too large, incomplete, or followed by other data")
    return data


def _decompress_brotli(module: Any, body: bytes) -> bytes:
    decompressor = module.Decompressor()
    data: bytes = decompressor.process(body, output_buffer_limit=MAX_BODY)
    if not decompressor.is_finished():
        raise UndecodableError("too large or incomplete")
    return data


def _decompress_zstd(module: Any, body: bytes) -> bytes:
    options = {module.DecompressionParameter.window_log_max: MAX_WINDOW.bit_length() - 1}
    return _decompress_stream(partial(module.ZstdDecompressor, options=options), body)


#: kombu's names of compressions → decompressors with limits (kombu/compression.py).
_DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), partial(_decompress_stream, zlib.decompressobj)),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), partial(_decompress_stream, bz2.BZ2Decompressor)),
    **dict.fromkeys(
        ("application/x-lzma", "lzma", "xz"),
        partial(_decompress_stream, partial(lzma.LZMADecompressor, memlimit=MAX_WINDOW)),
    ),
}
# kombu has these compressions where the package is installed.
for _module, _function, _names in (
    ("brotlicffi", _decompress_brotli, ("application/x-brotli", "brotli")),
    ("brotli", _decompress_brotli, ("application/x-brotli", "brotli")),
    ("backports.zstd", _decompress_zstd, ("application/zstd", "zstd", "zstandard")),
    ("compression.zstd", _decompress_zstd, ("application/zstd", "zstd", "zstandard")),
):
    with suppress(ImportError):
        _DECOMPRESSORS |= dict.fromkeys(_names, partial(_function, importlib.import_module(_module)))
