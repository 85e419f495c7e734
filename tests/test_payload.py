"""Which bodies are deserialised, and how much of a compressed one."""

from __future__ import annotations

import bz2
import lzma
import pickle
import tracemalloc
import zlib

import pytest
from kombu import serialization

from celery_exporter.broker.payload import BROKEN, MAX_INFLATED, Payload, events_of
from celery_exporter.core.events import Event, Malformed

JSON = "application/json"
BODY = b'{"type":"task-sent","timestamp":1.5,"hostname":"h","uuid":"u"}'
EVENT = {"type": "task-sent", "timestamp": 1.5, "hostname": "h", "uuid": "u"}
COMPRESS = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
}


class Armed:
    """Says so when it is unpickled."""

    fired = False

    def __reduce__(self):
        return (Armed.fire, ())

    @staticmethod
    def fire():
        Armed.fired = True
        return EVENT


def test_json_is_read_whether_or_not_the_sender_says_that_it_is():
    assert isinstance(events_of(Payload(BODY, JSON), {JSON})[0], Event)
    assert isinstance(events_of(Payload(BODY), {JSON})[0], Event)
    assert events_of(BROKEN, {JSON}) == [Malformed("undecodable")]


@pytest.mark.parametrize(
    "kind", ["application/x-python-serialize", "application/x-yaml", "text/plain", "x" * 300]
)
def test_what_is_not_accepted_is_never_deserialised(kind):
    assert events_of(Payload(pickle.dumps(Armed()), kind, "binary"), {JSON}) == [Malformed("content_type")]
    assert not Armed.fired


def test_pickle_is_read_when_somebody_asked_for_it():
    kind = "application/x-python-serialize"
    assert isinstance(events_of(Payload(pickle.dumps(EVENT), kind, "binary"), {JSON, kind})[0], Event)
    assert events_of(Payload(b"no pickle", kind, "binary"), {JSON, kind}) == [Malformed("undecodable")]


def test_yaml_is_read_when_somebody_asked_for_it():
    kind = "application/x-yaml"
    body = serialization.dumps(EVENT, "yaml")[2].encode()
    assert isinstance(events_of(Payload(body, kind, "utf-8"), {JSON, kind})[0], Event)


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_compressed_body_is_inflated(compression):
    body = COMPRESS[compression](BODY)
    assert isinstance(events_of(Payload(body, JSON, "utf-8", compression), {JSON})[0], Event)
    assert events_of(Payload(body[:-3], JSON, "utf-8", compression), {JSON}) == [Malformed("undecodable")]
    assert events_of(Payload(b"none", JSON, "utf-8", compression), {JSON}) == [Malformed("undecodable")]


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_bomb_is_not_inflated(compression):
    bomb = COMPRESS[compression](b" " * (3 * MAX_INFLATED))
    tracemalloc.start()
    try:
        assert events_of(Payload(bomb, JSON, "utf-8", compression), {JSON}) == [Malformed("undecodable")]
        assert tracemalloc.get_traced_memory()[1] < 2.5 * MAX_INFLATED
    finally:
        tracemalloc.stop()


def test_an_unknown_compression_is_undecodable():
    assert events_of(Payload(BODY, JSON, "utf-8", "rot13"), {JSON}) == [Malformed("undecodable")]


@pytest.mark.parametrize("odd", [["json"], {"a": 1}, 5, b"x"])
def test_what_a_sender_says_of_its_body_may_be_anything(odd):
    assert events_of(Payload(BODY, odd), {JSON}) == [Malformed("undecodable")]
    assert events_of(Payload(BODY, JSON, odd), {JSON}) == [Malformed("undecodable")]
    assert events_of(Payload(BODY, JSON, "utf-8", odd), {JSON}) == [Malformed("undecodable")]
