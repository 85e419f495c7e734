"""Messages of accepted content types become events; others are not deserialized."""

from __future__ import annotations

import pickle

import pytest

from celery_exporter.broker.codecs import MAX_BODY
from celery_exporter.broker.message import UNREADABLE, Message, events_of
from celery_exporter.core.events import Event, Malformed

JSON = "application/json"
BODY = b'{"type":"task-sent","timestamp":1.5,"hostname":"h","uuid":"u"}'
EVENT = {"type": "task-sent", "timestamp": 1.5, "hostname": "h", "uuid": "u"}


class Armed:
    """An object that records when it is unpickled."""

    fired = False

    def __reduce__(self):
        return (Armed.fire, ())

    @staticmethod
    def fire():
        Armed.fired = True
        return EVENT


def test_json_is_read_with_and_without_a_content_type():
    assert isinstance(events_of(Message(BODY, JSON), {JSON})[0], Event)
    assert isinstance(events_of(Message(BODY), {JSON})[0], Event)
    assert events_of(UNREADABLE, {JSON}) == [Malformed("undecodable")]


@pytest.mark.parametrize(
    "kind", ["application/x-python-serialize", "application/x-yaml", "text/plain", "x" * 300]
)
def test_a_content_type_that_is_not_accepted_is_never_deserialized(kind):
    assert events_of(Message(pickle.dumps(Armed()), kind, "binary"), {JSON}) == [Malformed("content_type")]
    assert not Armed.fired


def test_pickle_is_read_if_it_is_accepted():
    kind = "application/x-python-serialize"
    assert isinstance(events_of(Message(pickle.dumps(EVENT), kind, "binary"), {JSON, kind})[0], Event)
    assert events_of(Message(b"no pickle", kind, "binary"), {JSON, kind}) == [Malformed("undecodable")]


def test_a_body_that_is_too_long_is_undecodable():
    body = b" " * (MAX_BODY - len(BODY)) + BODY
    assert isinstance(events_of(Message(body), {JSON})[0], Event)
    assert events_of(Message(body + b" "), {JSON}) == [Malformed("undecodable")]


@pytest.mark.parametrize("odd", [["json"], {"a": 1}, 5, b"x"])
def test_properties_of_any_type_are_undecodable(odd):
    assert events_of(Message(BODY, odd), {JSON}) == [Malformed("undecodable")]
    assert events_of(Message(BODY, JSON, odd), {JSON}) == [Malformed("undecodable")]
    assert events_of(Message(BODY, JSON, "utf-8", odd), {JSON}) == [Malformed("undecodable")]
