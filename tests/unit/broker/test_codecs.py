"""Deserializers and decompressors of hostile bodies are bounded."""

from __future__ import annotations

import base64
import bz2
import importlib
import lzma
import struct
import tracemalloc
import zlib
from contextlib import suppress

import msgspec
import pytest
from celery import Celery
from celery.events.event import get_exchange
from kombu import Producer, serialization
from kombu import compression as kombu_compression

from celery_exporter.broker import codecs
from celery_exporter.broker.codecs import MAX_BODY, MAX_LOADED, MAX_YAML
from celery_exporter.broker.message import Message, events_of
from celery_exporter.core.events import Event, Malformed

JSON = "application/json"
YAML = "application/x-yaml"
MSGPACK = "application/x-msgpack"
BODY = b'{"type":"task-sent","timestamp":1.5,"hostname":"h","uuid":"u"}'
EVENT = {"type": "task-sent", "timestamp": 1.5, "hostname": "h", "uuid": "u"}
COMPRESS = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
}
with suppress(ImportError):
    COMPRESS["application/x-brotli"] = importlib.import_module("brotli").compress
for _zstd in ("compression.zstd", "backports.zstd"):
    with suppress(ImportError):
        COMPRESS["application/zstd"] = importlib.import_module(_zstd).compress


def test_yaml_is_read_if_it_is_accepted():
    body = serialization.dumps([dict(EVENT), dict(EVENT)], "yaml")[2].encode()
    assert [type(event) for event in events_of(Message(body, YAML, "utf-8"), {JSON, YAML})] == [Event, Event]


def test_msgpack_is_read_if_it_is_accepted():
    body = msgspec.msgpack.encode([EVENT, 5, {b"type": 1, 5: 6}])
    events = events_of(Message(body, MSGPACK, "binary"), {JSON, MSGPACK})
    assert isinstance(events[0], Event)
    assert events[1:] == [Malformed("not_an_object"), Malformed("missing_field")]


BY_ALIAS = b"- &a {type: task-sent, timestamp: 1.5, hostname: h, uuid: u}\n- *a\n"


@pytest.mark.parametrize(
    "body",
    [
        b"a: b: c",
        b"\xff",
        b"{[a]: b}",
        b"!!python/object/apply:tests.Armed.fire []",
        b"!!python/name:os.system",
        b"&a [*a]",
        BY_ALIAS,
        b"a: &a {x: 1}\nb: {<<: [*a, *a]}",
        b"[" * 9 + b"]" * 9,
        b"- " * 10_000,
        b"--- 1\n--- 2",
        b"# " + b"x" * MAX_YAML,
    ],
    ids=lambda body: repr(body[:30]),
)
def test_yaml_that_is_no_plain_data_is_undecodable(body):
    assert events_of(Message(body, YAML), {YAML}) == [Malformed("undecodable")]


def test_odd_things_in_yaml_cost_their_event_only():
    events = b"""
    - {type: task-sent, timestamp: 2001-01-01, hostname: h, uuid: u}
    - {type: task-sent, timestamp: 1.5, hostname: h, uuid: u, retries: 1:59:59:59:59:59:59:59}
    - {type: task-sent, timestamp: 1.5, hostname: h, uuid: u, name: !!binary aGk=}
    - {type: task-sent, timestamp: 1.5, hostname: h, uuid: u, eta: 2001-01-01 00:00:00, 5: !!set {a}}
    - {type: task-sent, timestamp: .nan, hostname: h, uuid: u}
    - {type: task-sent, timestamp: 1.5, hostname: h, uuid: u, clock: 999999999999999999999999, args: [[], {}]}
    """
    events = events_of(Message(events, YAML), {YAML})
    assert events[:5] == [Malformed("bad_field")] * 5
    assert isinstance(events[5], Event)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x05",
        b"\x91" * 10_000,
        b"\xa1\xff",
        b"\x01\x02",
        b"\xc0" * (MAX_LOADED + 1),
    ],
    ids=lambda body: repr(body[:8]),
)
def test_msgpack_that_is_none_is_undecodable(body):
    assert events_of(Message(body, MSGPACK), {MSGPACK}) == [Malformed("undecodable")]


@pytest.mark.parametrize(
    "extension",
    [msgspec.msgpack.Ext(5, b"abc"), msgspec.msgpack.Ext(-1, b"\0\0\0\1")],
    ids=["unknown", "timestamp"],
)
def test_msgpack_extensions_cost_their_event_only(extension):
    body = msgspec.msgpack.encode([{**EVENT, "timestamp": extension}, {**EVENT, "args": extension}])
    bad, good = events_of(Message(body, MSGPACK), {MSGPACK})
    assert bad == Malformed("bad_field")
    assert isinstance(good, Event)


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_compressed_body_is_inflated(compression):
    body = COMPRESS[compression](BODY)
    assert isinstance(events_of(Message(body, JSON, "utf-8", compression), {JSON})[0], Event)
    assert events_of(Message(body[:-3], JSON, "utf-8", compression), {JSON}) == [Malformed("undecodable")]
    assert events_of(Message(b"none", JSON, "utf-8", compression), {JSON}) == [Malformed("undecodable")]
    assert events_of(Message(body + b"x", JSON, "utf-8", compression), {JSON}) == [Malformed("undecodable")]
    assert events_of(Message(body * 2, JSON, "utf-8", compression), {JSON}) == [Malformed("undecodable")]


def test_every_compression_of_kombu_s_is_known():
    names = {*kombu_compression._aliases, *kombu_compression._decoders}
    assert names <= codecs._DECOMPRESSORS.keys()


def test_a_window_that_wants_a_gigabyte_is_refused():
    header = b"\x5d" + struct.pack("<IQ", 2**30, 5)  # .lzma: properties, dictionary, size
    body = header + lzma.compress(b"12345", format=lzma.FORMAT_ALONE)[13:]
    assert lzma.decompress(body) == b"12345"
    assert events_of(Message(body, JSON, "utf-8", "xz"), {JSON}) == [Malformed("undecodable")]
    strongest = lzma.compress(BODY, preset=9)
    assert isinstance(events_of(Message(strongest, JSON, "utf-8", "xz"), {JSON})[0], Event)


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_bomb_is_not_inflated(compression):
    bomb = COMPRESS[compression](b" " * (3 * MAX_BODY))
    tracemalloc.start()
    try:
        assert events_of(Message(bomb, JSON, "utf-8", compression), {JSON}) == [Malformed("undecodable")]
        assert tracemalloc.get_traced_memory()[1] < 2.5 * MAX_BODY
    finally:
        tracemalloc.stop()


def test_an_unknown_compression_is_undecodable():
    assert events_of(Message(BODY, JSON, "utf-8", "rot13"), {JSON}) == [Malformed("undecodable")]


def test_an_application_may_compress_its_task_sent_events():
    """Why there are decompressors: no setting of Celery compresses events, but the producer of a task may."""
    app = Celery(broker="memory://compressed-events", set_as_current=False)
    app.conf.update(task_send_sent_event=True, task_compression="gzip")
    with app.connection_for_write() as connection:
        channel, exchange = connection.default_channel, get_exchange(connection)
        channel.queue_declare("events")
        exchange(channel).declare()
        channel.queue_bind("events", exchange.name, "#")
        app.send_task("t")
        assert "compression" not in channel.basic_get("events", no_ack=True).headers
        app.send_task("t", producer=Producer(connection, compression="bzip2"))
        raw = channel._get("events")
    body, compression = base64.b64decode(raw["body"]), raw["headers"]["compression"]
    (event,) = events_of(Message(body, JSON, "utf-8", compression), {JSON})
    assert isinstance(event, Event)
    assert event.name == "t"
