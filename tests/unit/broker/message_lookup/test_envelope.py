"""The id of a task in an envelope, of either protocol, damaged or hostile."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.broker.message_lookup.envelope import Head, read_head, read_unacknowledged_head

JSON = "application/json"


def envelope(
    body: bytes | str = b"[[], {}, {}]", *, content_type: str = JSON, headers: Any = None, **properties: Any
) -> bytes:
    """Return an envelope; bytes become base64."""
    if isinstance(body, bytes):
        body, properties = base64.b64encode(body).decode(), {**properties, "body_encoding": "base64"}
    fields = {"body": body, "content-type": content_type, "content-encoding": "utf-8"}
    return json.dumps({**fields, "headers": headers or {}, "properties": properties}).encode()


def test_protocol_2_has_id_and_times_in_headers():
    headers = {"id": "a", "eta": "2026-01-02T00:00:00+00:00", "expires": "2026-01-03T00:00:00Z", "task": "x"}
    assert read_head(envelope(headers=headers, correlation_id="other")) == Head("a", 1767312000, 1767398400)


def test_a_header_wins_over_the_body():
    assert read_head(envelope(b'{"id": "body"}', headers={"id": "header"})) == Head("header")


@pytest.mark.parametrize("body", [b'{"id": "a", "eta": null}', '{"id": "a"}'])
def test_protocol_1_has_the_id_in_the_body(body):
    assert read_head(envelope(body, correlation_id="other")) == Head("a")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"\x80\x04K\x01.", "application/x-python-serialize"),
        (b'{"id": "a"}', "application/x-python-serialize"),
        (b"\xff", JSON),
        (b"[]", JSON),
        ("", JSON),
    ],
)
def test_a_body_that_cannot_be_read_leaves_the_correlation_id(body, content_type):
    """No other serializer is deserialized."""
    assert read_head(envelope(body, content_type=content_type, correlation_id="c")) == Head("c")
    assert read_head(envelope(body, content_type=content_type)) is None


@pytest.mark.parametrize("value", [1, [], {"a": "b"}, True])
def test_fields_of_another_type_are_unknown(value):
    assert read_head(envelope(headers={"id": value, "eta": "x", "expires": value})) == Head(None)
    assert read_head(envelope(headers={"id": "a", "eta": value, "expires": "x"})) == Head("a")


@pytest.mark.parametrize("message", [b"", b"null", b"[]", b'{"headers": 1}', b"\xff", b"{}", b"[" * 100_000])
def test_other_values_are_unreadable(message):
    assert read_head(message) is None
    assert read_unacknowledged_head(b"[" + message + b"]") is None


def test_a_message_that_a_worker_holds_is_the_first_of_three():
    assert read_unacknowledged_head(b"[" + envelope(headers={"id": "a"}) + b', "", "jobs"]') == Head("a")
    assert read_unacknowledged_head(b"[]") is None


@given(
    st.binary()
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_bytes_are_read_or_unreadable(message):
    for read in (read_head, read_unacknowledged_head):
        assert isinstance(read(message), Head | None)
