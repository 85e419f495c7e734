"""Invariant: for any bytes, each good event of a batch is used, and each bad one is one Malformed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core import events, json_array
from celery_exporter.core.events import (
    MAX_LOOSE_BYTES,
    MEASURED,
    REASONS,
    TASK_TYPES,
    Event,
    EventWithArguments,
    Malformed,
    decode,
    from_objects,
)
from celery_exporter.core.task_exceptions import unregistered_name

from .cluster_driver import failed, heartbeat, received, sent, started, succeeded

GOOD = sent()
TEXT = json.dumps(GOOD).encode()
GOOD_MEASURED = {
    **GOOD,
    "type": MEASURED,
    "tags": {"a": "b"},
    "fields": {"x": 1, "y": -2.5, "z": True, "s": ""},
}


def reasons(body: bytes) -> list[str]:
    """Return the type of each event, or the reason why it is malformed."""
    return [event.type if isinstance(event, Event) else event.reason for event in decode(body)]


def test_one_event_and_a_batch_decode_alike():
    single = decode(json.dumps(GOOD).encode())
    batch = decode(json.dumps([GOOD, GOOD]).encode())
    assert batch == single * 2
    assert (single[0].uuid, single[0].queue, single[0].timestamp) == ("u1", "q", GOOD["timestamp"])


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
def test_a_bad_event_is_malformed_with_a_reason_and_its_neighbours_are_used(bad, reason):
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
def test_null_in_an_optional_field_counts_as_absent(event, field):
    (decoded,) = decode(json.dumps(event).encode())
    assert isinstance(decoded, Event)
    assert getattr(decoded, field) is None


#: Deeper than the decoder follows. From Python 3.14 on, the size of the stack limits it, no number of levels.
NESTED = b"[" * 1_000_000 + b"]" * 1_000_000


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
        b'{"type":"task-sent","x":' + NESTED + b"}",
    ],
)
def test_invalid_json_is_one_undecodable_event(body):
    assert reasons(body) == ["undecodable"]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (NESTED, "undecodable"),
        (b'{"type":"task-sent","x":' + NESTED + b"}", "undecodable"),
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
def test_an_item_that_cannot_be_parsed_does_not_affect_its_neighbours(item, reason):
    good = json.dumps(GOOD).encode()
    if item.count(b"{") == item.count(b"}"):
        assert reasons(b"[" + good + b"," + item + b"," + good + b"]") == ["task-sent", reason, "task-sent"]
    assert reasons(b"[" + good + b"," + item) == ["task-sent", "undecodable"], (
        "and nothing after it is decoded"
    )


def test_a_number_of_any_length_in_an_unused_field_is_ignored():
    event = json.dumps({**GOOD, "clock": 88}).replace("88", "9" * 10_000)
    assert reasons(f"[{event}, 5]".encode()) == ["task-sent", "not_an_object"]


def test_the_last_of_duplicate_keys_counts():
    body = json.dumps(GOOD).encode()[:-1] + b', "uuid": "second"}'
    assert decode(body)[0].uuid == "second"
    assert decode(b'{"uuid": 5, "timestamp": null, ' + body[1:])[0].uuid == "second"
    assert reasons(body[:-1] + b', "uuid": null}') == ["missing_field"]


def test_a_lone_surrogate_in_an_exception_does_not_make_the_failure_malformed():
    event = {**GOOD, "type": "task-failed", "exception": "NotRegistered('\ud800')"}
    (decoded,) = decode(json.dumps(event).encode())
    assert isinstance(decoded, Event)
    assert unregistered_name(decoded.exception) == "?"


IDS = {"r": "r", "\ud800x": "?x", "x" * 255: "x" * 255, "x" * 256: None, "": None, 5: None}
REPRS = {"(1,)": "(1,)", "(\ud800)": "(?)", 5: None}


@pytest.mark.parametrize(
    ("field", "value", "decoded"),
    [
        *((field, *item) for field in ("root_id", "parent_id") for item in IDS.items()),
        *((field, *item) for field in ("args", "kwargs", "result") for item in REPRS.items()),
    ],
)
def test_what_only_records_need_does_not_make_an_event_malformed(field, value, decoded):
    body = json.dumps({**GOOD, "traceback": "\ud800", field: value}).encode()
    (event,) = decode(body, EventWithArguments)
    assert isinstance(event, EventWithArguments), event
    assert getattr(event, field) == decoded


def test_a_custom_event_needs_a_type_only():
    assert reasons(b'{"type": "order-shipped", "uuid": {"a": 1}, "timestamp": "monday"}') == ["order-shipped"]


def test_a_large_body_and_a_large_batch_are_decoded():
    assert reasons(json.dumps({**GOOD, "args": "x" * 10_000_000}).encode()) == ["task-sent"]
    assert len(decode(json.dumps([GOOD] * 100_000).encode())) == 100_000


@pytest.mark.parametrize(("end", "result"), [("abc", "task-sent"), ("abcd", "bad_field")])
def test_the_id_of_a_task_has_at_most_255_bytes_however_it_is_decoded(end, result):
    event = {**GOOD, "uuid": "\U0001f600" * 63 + end}
    assert reasons(json.dumps(event).encode()) == [result]
    assert reasons(json.dumps([event, 5]).encode()) == [result, "not_an_object"]
    assert reasons(json.dumps({**event, "traceback": "\ud800"}).encode()) == [result]


def test_a_worker_event_beside_a_bad_event_needs_no_id():
    assert reasons(json.dumps([heartbeat(), 5]).encode()) == ["worker-heartbeat", "not_an_object"]


def test_the_events_of_a_batch_are_bounded_before_they_are_decoded(monkeypatch):
    for module in (events, json_array):
        monkeypatch.setattr(module, "MAX_ITEMS", 2)
    monkeypatch.setattr(events, "_FEW_ITEMS_BYTES", 10)
    assert reasons(json.dumps([GOOD] * 2).encode()) == ["task-sent"] * 2
    assert reasons(json.dumps([GOOD] * 5).encode()) == ["task-sent", "task-sent", "undecodable"]


def test_objects_of_other_serializers_are_checked_alike():
    assert from_objects((GOOD, {"type": "task-sent"}, b"x"))[1:] == [
        Malformed("missing_field"),
        Malformed("not_an_object"),
    ]


@pytest.mark.parametrize("space", [b"\x0b", b"\x0c", b"\xc2\xa0"])
def test_only_json_white_space_is_accepted(space):
    assert decode(b"[" + space + TEXT + b"," + TEXT + b"]")[0] == Malformed("undecodable")
    assert decode(b"[" + TEXT + b"]" + space)[1:] == [Malformed("undecodable")]


def test_an_empty_item_is_one_malformed_event():
    assert decode(b"[" + TEXT + b",," + TEXT + b"]")[1] == Malformed("undecodable")


def test_a_bad_event_of_more_than_a_megabyte_is_not_loaded():
    bad = b'[{"type": NaN, "args": "%s"}]'
    longest = b"x" * (MAX_LOOSE_BYTES - len(bad % b"") + 2)  # without the brackets
    assert decode(bad % longest) == [Malformed("bad_field")]
    assert decode(bad % (longest + b"x")) == [Malformed("undecodable")]


def test_a_number_of_any_length_is_out_of_range():
    digits = b"9" * 5_000
    assert reasons(TEXT.replace(b'"retries": 0', b'"retries": ' + digits)) == ["bad_field"]


def test_a_custom_event_has_its_type_only():
    custom = {"type": "order-shipped", "timestamp": 17, "hostname": "shop@h", "uuid": {"a": 1}}
    assert decode(json.dumps(custom).encode()) == [Event("order-shipped", 0.0, "")]


@pytest.mark.parametrize("missing", ["type", "timestamp", "hostname", "uuid"])
def test_an_object_of_another_serializer_needs_the_required_fields(missing):
    event = {field: value for field, value in GOOD.items() if field != missing}
    assert from_objects(event) == from_objects([event]) == [Malformed("missing_field")]


def test_one_object_of_another_serializer_is_one_event():
    assert from_objects(GOOD) == from_objects((GOOD,)) == decode(TEXT)


def test_a_lone_surrogate_in_a_traceback_does_not_make_the_failure_malformed():
    event = failed(exception="ExceptionWithTraceback()", traceback="\ud800 x")
    (decoded,) = decode(json.dumps(event).encode())
    assert isinstance(decoded, Event)
    assert decoded.traceback == "? x"


# -- measurements ------------------------------------------------------------------------------------------

BAD_MEASUREMENTS = [
    {"tags": []},
    {"tags": {"a": 1}},
    {"tags": {"a": None}},
    {"tags": {"": "a"}},
    {"tags": {"a" * 256: "b"}},
    {"tags": {"a": "b" * 256}},
    {"tags": {"a": "\ud800"}},
    {"tags": {str(number): "" for number in range(21)}},
    {"fields": "x"},
    {"fields": {"x": None}},
    {"fields": {"x": [1]}},
    {"fields": {"x": "y" * 256}},
    {"fields": {"x": float("nan")}},
    {"fields": {"x": float("inf")}},
    {"fields": {"x": 1e101}},
    {"fields": {"x": -1e101}},
    {"fields": {"x": 10**400}},
    {"fields": {"\ud800": 1}},
    {"fields": {str(number): number for number in range(51)}},
]


def test_a_measurement_has_tags_and_fields():
    (event,) = decode(json.dumps(GOOD_MEASURED).encode())
    assert from_objects(GOOD_MEASURED) == [event]
    assert event.tags == {"a": "b"}
    assert event.fields == {"x": 1.0, "y": -2.5, "z": True, "s": ""}
    assert {*map(type, event.fields.values())} == {float, bool, str}
    most = {
        "tags": {f"{n:255}": "b" * 255 for n in range(20)},
        "fields": {f"{n:255}": 1e100 for n in range(50)},
    }
    assert reasons(json.dumps(GOOD_MEASURED | most).encode()) == [MEASURED]


@pytest.mark.parametrize("bad", BAD_MEASUREMENTS, ids=lambda bad: repr(bad)[:30])
def test_only_of_a_measurement_tags_and_fields_are_checked(bad):
    """Of an application's own event, or one of Celery's, they may have any value."""
    assert reasons(json.dumps([GOOD, GOOD_MEASURED | bad, GOOD]).encode())[1] == "bad_field"
    assert from_objects(GOOD_MEASURED | bad) == [Malformed("bad_field")]
    custom = {"type": "order-shipped", **bad}
    for event in (GOOD | bad, started() | bad, custom, GOOD | bad | {"args": "x" * MAX_LOOSE_BYTES}):
        is_loose = any(text in json.dumps(event) for text in ("NaN", "Infinity", "\\ud800"))
        if not (is_loose and len(event.get("args", "")) == MAX_LOOSE_BYTES):
            assert reasons(json.dumps([GOOD, event]).encode())[1] == event["type"]
            assert from_objects(event)[0].type == event["type"]


@pytest.mark.parametrize("field", ["uuid", "timestamp", "hostname"])
def test_a_measurement_needs_what_other_task_events_need(field):
    assert reasons(json.dumps(GOOD_MEASURED | {field: None}).encode()) == ["missing_field"]
    assert from_objects(GOOD_MEASURED | {field: None}) == [Malformed("missing_field")]


def test_an_event_with_arguments_keeps_them_whatever_its_tags_are():
    body = json.dumps(GOOD | {"args": "(1,)", "root_id": "r", "tags": 5}).encode()
    (event,) = decode(body, EventWithArguments)
    assert (event.args, event.root_id, event.queue, event.tags) == ("(1,)", "r", "q", None)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)
odd_events = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        (*GOOD, "runtime", "eta", "freq", "loadavg", "exception", "tags", "fields"), json_values
    )
    | {"type": st.sampled_from((*TASK_TYPES, MEASURED)) | json_values},
)


@given(st.lists(odd_events | json_values, max_size=5))
def test_a_batch_of_anything_gives_one_result_for_each_item(items):
    good = json.dumps(GOOD)
    texts = [json.dumps(item) for item in items]
    events = decode(f"[{','.join([good, *texts, good])}]".encode())
    assert len(events) == len(items) + 2
    assert isinstance(events[0], Event)
    assert isinstance(events[-1], Event)
    assert all(isinstance(event, Event) or event.reason in REASONS for event in events)


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_malformed(body):
    assert all(isinstance(event, Event) or event.reason in REASONS for event in decode(body))
