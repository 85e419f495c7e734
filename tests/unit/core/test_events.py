"""Invariant: whatever bytes arrive, each good event of a batch is used and each bad one is one Malformed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core.events import (
    REASONS,
    TASK_TYPES,
    Event,
    Malformed,
    decode,
    from_objects,
)
from celery_exporter.core.task_exceptions import unregistered_name

from .cluster_driver import heartbeat, received, sent, succeeded

GOOD = sent()


def reasons(body: bytes) -> list[str]:
    """Each event's type, or why it is none."""
    return [found.type if isinstance(found, Event) else found.reason for found in decode(body)]


def test_one_event_and_a_batch_decode_alike():
    one = decode(json.dumps(GOOD).encode())
    batch = decode(json.dumps([GOOD, GOOD]).encode())
    assert batch == one * 2
    assert (one[0].uuid, one[0].queue, one[0].timestamp) == ("u1", "q", GOOD["timestamp"])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (5, "not_an_object"),
        (None, "not_an_object"),
        ([], "not_an_object"),
        ("task-sent", "not_an_object"),
        ({}, "missing_field"),
        ({**GOOD, "type": None}, "missing_field"),
        ({**GOOD, "type": 7}, "bad_field"),
        ({**GOOD, "uuid": None}, "missing_field"),
        ({**GOOD, "uuid": ""}, "bad_field"),
        ({**GOOD, "uuid": "x" * 256}, "bad_field"),
        ({**GOOD, "uuid": "\U0001f600" * 64}, "bad_field"),
        ({**GOOD, "uuid": "\U0001f600" * 64, "runtime": "long"}, "bad_field"),
        ({**GOOD, "hostname": None}, "missing_field"),
        ({**GOOD, "timestamp": None}, "missing_field"),
        ({**GOOD, "timestamp": "now"}, "bad_field"),
        ({**GOOD, "timestamp": True}, "bad_field"),
        ({**GOOD, "timestamp": -1}, "bad_field"),
        ({**GOOD, "timestamp": 1e308}, "bad_field"),
        ({**GOOD, "timestamp": float("nan")}, "bad_field"),
        ({**GOOD, "timestamp": float("inf")}, "bad_field"),
        ({**GOOD, "name": "n" * 10_000}, "bad_field"),
        ({**GOOD, "name": "\ud800"}, "bad_field"),
        ({**GOOD, "name": {"a": 1}}, "bad_field"),
        ({**GOOD, "retries": -1}, "bad_field"),
        ({**GOOD, "retries": 10**400}, "bad_field"),
        ({**succeeded(), "runtime": float("nan")}, "bad_field"),
        ({**succeeded(), "runtime": "long"}, "bad_field"),
        ({**heartbeat(), "hostname": None}, "missing_field"),
        ({**heartbeat(), "loadavg": [1]}, "bad_field"),
        ({**heartbeat(), "loadavg": [1, 2, float("nan")]}, "bad_field"),
        ({**heartbeat(), "sw_ident": "\ud800"}, "bad_field"),
        ({**GOOD, "eta": "\ud800"}, "bad_field"),
        ({**GOOD, "eta": "Z" * 256}, "bad_field"),
        ({**GOOD, "pid": 10**30}, "bad_field"),
        ({**heartbeat(), "loadavg": [1, 2, float("inf")]}, "bad_field"),
        ({**heartbeat(), "loadavg": [1, 2, 1e308]}, "bad_field"),
        ({**heartbeat(), "processed": 2**40}, "bad_field"),
    ],
)
def test_a_bad_event_costs_itself_and_says_why(bad, reason):
    body = json.dumps([GOOD, bad, GOOD]).encode()
    assert reasons(body) == ["task-sent", reason, "task-sent"]


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (succeeded(runtime=None), "runtime"),
        ({**succeeded(), "type": "task-failed", "exception": None}, "exception"),
        (heartbeat(freq=None), "freq"),
        (heartbeat(active=None), "active"),
        (heartbeat(loadavg=None), "loadavg"),
        (received(eta=None), "eta"),
        (received(name=None), "name"),
    ],
)
def test_null_in_a_field_that_may_be_absent_is_absent(event, field):
    (found,) = decode(json.dumps(event).encode())
    assert isinstance(found, Event)
    assert getattr(found, field) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\x00",
        b"{",
        b"[",
        b"nonsense",
        b"\x80\x04\x95pickle",
        b"[" * 100_000,
        b'{"type":"task-sent","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    ],
)
def test_what_is_no_json_is_one_undecodable(body):
    assert reasons(body) == ["undecodable"]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (b"[" * 10_000 + b"]" * 10_000, "undecodable"),
        (b'{"type":"task-sent","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "undecodable"),
        (b'{"type":"task-sent","retries":' + b"9" * 10_000 + b"}", "missing_field"),
        (json.dumps({**GOOD, "retries": 88}).replace("88", "9" * 10_000).encode(), "bad_field"),
        (json.dumps({**GOOD, "timestamp": 88}).replace("88", "9" * 10_000).encode(), "bad_field"),
        (b'{"type":"task-sent","uuid":"\xff"}', "undecodable"),
        (b'{"type":"task-sent"', "undecodable"),
        (b'{"type":task-sent}', "undecodable"),
        (b"{[}]", "undecodable"),
        (b"nul", "undecodable"),
        (b"", "undecodable"),
        (b'{"type":NaN,"x":"' + b"x" * 2**20 + b'"}', "undecodable"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_what_cannot_be_parsed_costs_itself_only(item, reason):
    good = json.dumps(GOOD).encode()
    if item.count(b"{") == item.count(b"}"):
        assert reasons(b"[" + good + b"," + item + b"," + good + b"]") == ["task-sent", reason, "task-sent"]
    assert reasons(b"[" + good + b"," + item) == ["task-sent", "undecodable"], "and nothing after it is found"


def test_a_number_of_any_length_where_nobody_looks_costs_nothing():
    event = json.dumps({**GOOD, "clock": 88}).replace("88", "9" * 10_000)
    assert reasons(f"[{event}, 5]".encode()) == ["task-sent", "not_an_object"]


def test_the_last_of_duplicate_keys_counts_as_in_json_everywhere():
    body = json.dumps(GOOD).encode()[:-1] + b', "uuid": "second"}'
    assert decode(body)[0].uuid == "second"
    assert decode(b'{"uuid": 5, "timestamp": null, ' + body[1:])[0].uuid == "second"
    assert reasons(body[:-1] + b', "uuid": null}') == ["missing_field"]


def test_a_lone_surrogate_in_an_exception_does_not_cost_the_failure():
    event = {**GOOD, "type": "task-failed", "exception": "NotRegistered('\ud800')"}
    (found,) = decode(json.dumps(event).encode())
    assert isinstance(found, Event)
    assert unregistered_name(found.exception) == "?"


def test_an_application_s_own_event_needs_nothing_but_a_type():
    assert reasons(b'{"type": "order-shipped", "uuid": {"a": 1}, "timestamp": "monday"}') == ["order-shipped"]


def test_a_large_body_and_a_large_batch_are_decoded():
    assert reasons(json.dumps({**GOOD, "args": "x" * 10_000_000}).encode()) == ["task-sent"]
    assert len(decode(json.dumps([GOOD] * 100_000).encode())) == 100_000


def test_objects_of_other_serialisers_are_judged_the_same():
    assert from_objects((GOOD, {"type": "task-sent"}, b"x"))[1:] == [
        Malformed("missing_field"),
        Malformed("not_an_object"),
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)
odd_events = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys((*GOOD, "runtime", "eta", "freq", "loadavg", "exception"), json_values)
    | {"type": st.sampled_from(TASK_TYPES) | json_values},
)


@given(st.lists(odd_events | json_values, max_size=5))
def test_a_batch_of_anything_gives_one_result_each(items):
    good = json.dumps(GOOD)
    texts = [json.dumps(item) for item in items]
    found = decode(f"[{','.join([good, *texts, good])}]".encode())
    assert len(found) == len(items) + 2
    assert isinstance(found[0], Event)
    assert isinstance(found[-1], Event)
    assert all(isinstance(each, Event) or each.reason in REASONS for each in found)


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(body):
    assert all(isinstance(each, Event) or each.reason in REASONS for each in decode(body))
