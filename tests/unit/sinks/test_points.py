"""Records as points: the rows of the table in both layouts, and points that never overwrite each other."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core.records import MeasuredRecord, Measurements, Record
from celery_exporter.core.types import State
from celery_exporter.sinks.base import INCOMPLETE, REJECTED
from celery_exporter.sinks.http_request import HttpRequest
from celery_exporter.sinks.points import (
    MAX_CACHED_SERIES,
    MAX_ERROR_CODES,
    MAX_REMEMBERED,
    NAMES,
    FieldsEncoder,
    Identity,
    LunaEncoder,
    UniqueTimes,
    is_wanted,
)
from celery_exporter.sinks.pusher import MAX_BATCH

from .line_reader import Point, read

T0 = 1_700_000_000.0
ROOT, UUID = "0f0e5a3e-root", "9b1f32a8-uuid"
IDS = {"task_id": ROOT, "subtask_id": UUID}
LAYOUTS = [pytest.param(FieldsEncoder, id="fields"), pytest.param(LunaEncoder, id="luna")]


def record(state: State, at: float = 3.0, **fields: Any) -> Record:
    defaults: dict[str, Any] = {
        "uuid": UUID,
        "root": ROOT,
        "parent": None,
        "name": "tasks.add",
        "queue": "q",
        "worker": "w@h",
        "client": "client@h",
        "attempt": 0,
        "generation": 0,
        "timestamp": T0 + at,
        "sent": T0,
        "received": T0 + 0.5,
        "is_final": state not in {State.PENDING, State.RECEIVED, State.STARTED, State.RETRY},
    }
    return Record(state=state, **{**defaults, **fields})


FAILED = record(State.FAILURE, exception="ValueError", runtime=1.25)
MEASURED = MeasuredRecord(
    UUID, ROOT, "tasks.add", "w@h", T0, Measurements({"model": "v2"}, {"match_time": 2})
)


def encode(*records: Any, encoder: type[FieldsEncoder] = FieldsEncoder, **options: Any) -> list[Point]:
    points, left_out = encode_some(*records, encoder=encoder, **options)
    assert not left_out
    return points


def encode_some(
    *records: Any,
    encoder: type[FieldsEncoder] = FieldsEncoder,
    service: str = "shop",
    labels: Mapping[str, str] | None = None,
    distinct_names: bool = False,
) -> tuple[list[Point], Mapping[str, int]]:
    payload = encoder(service, labels or {}, distinct_names=distinct_names).encode(records)
    assert read(payload.body) == read(payload.body, pairs=True)
    return read(payload.body), payload.left_out


def test_receipts_starts_ends_measurements_and_requests_are_wanted():
    assert [state.name for state in State if is_wanted(record(state))] == [
        *("RECEIVED", "STARTED", "SUCCESS", "FAILURE", "REVOKED", "REJECTED")
    ]
    assert not is_wanted(record(State.REJECTED, is_final=False))  # given back to the queue
    assert is_wanted(MEASURED)
    assert is_wanted(HttpRequest(T0, "GET:/metrics", 200, 0.1, "x"))


# -- the table ---------------------------------------------------------------------------------------------

ROWS = [  # record, measurement, tags besides those of all, fields besides ids
    (record(State.RECEIVED), "worker_requests", {}, {"transport_time": 3.0}),
    (record(State.STARTED), "worker_queue", {"task_type": "tasks.add"}, {"transport_time": 2.5}),
    (
        FAILED,
        "subtask_errors",
        {"task_type": "tasks.add", "error_code": "ValueError"},
        {"error_code": "ValueError"},
    ),
    (
        FAILED,
        "subtask_final",
        {"task_type": "tasks.add", "status": "FAILURE"},
        {"status": "FAILURE", "execution_time": 1.25},
    ),
    (
        record(State.SUCCESS, runtime=0.5),
        "subtask_final",
        {"task_type": "tasks.add", "status": "SUCCESS"},
        {"status": "SUCCESS", "execution_time": 0.5},
    ),
    (
        record(State.REVOKED),
        "subtask_final",
        {"task_type": "tasks.add", "status": "REVOKED"},
        {"status": "REVOKED"},
    ),
    (
        MEASURED,
        "subtask_execution",
        {"task_type": "tasks.add", "model": "v2"},
        {"match_time": 2.0},
    ),
]


@pytest.mark.parametrize(("source", "measurement", "tags", "fields"), ROWS)
def test_luna_is_the_table(source, measurement, tags, fields):
    (point,) = (point for point in encode(source, encoder=LunaEncoder) if point.measurement == measurement)
    assert point.tags == {"service": "shop", **IDS, **tags}
    assert point.fields == fields


@pytest.mark.parametrize(("source", "measurement", "tags", "fields"), ROWS)
def test_fields_has_ids_in_fields_and_the_task_and_queue_in_tags(source, measurement, tags, fields):
    (point,) = (point for point in encode(source) if point.measurement == measurement)
    queue = {} if measurement == "subtask_execution" else {"queue": "q"}
    assert point.tags == {"service": "shop", "task_type": "tasks.add", **queue, **tags}
    assert point.fields == {**IDS, "worker": "w@h", **fields}


@pytest.mark.parametrize("encoder", LAYOUTS)
def test_version_3_has_no_tag_and_field_of_one_name(encoder):
    requests = [HttpRequest(T0, "GET:/metrics", status, 0.1, "id") for status in (200, 503)]
    records = [row[0] for row in ROWS]
    points = encode(*records, *requests, encoder=encoder, labels={"env": "prod"}, distinct_names=True)
    assert {point.measurement for point in points} == {
        *("worker_requests", "worker_queue", "subtask_execution", "subtask_errors", "subtask_final"),
        *("requests", "errors"),
    }
    for point in points:
        assert not point.tags.keys() & point.fields.keys()
        assert (point.tags.keys() | point.fields.keys()) - {"env", "model", "match_time"} <= NAMES
    fields = {name for point in points for name in point.fields}
    assert {"error", "final_status"} <= fields


@pytest.mark.parametrize("encoder", LAYOUTS)
def test_each_request_is_a_point_and_a_failed_one_is_an_error_besides(encoder):
    good, bad = (
        HttpRequest(T0, "GET:/metrics", 200, 0.25, "one"),
        HttpRequest(T0, "GET:other", 404, 0.5, "two"),
    )
    first, second, error = encode(good, bad, encoder=encoder)
    assert (first.measurement, second.measurement, error.measurement) == ("requests", "requests", "errors")
    assert first.tags == {"service": "shop", "route": "GET:/metrics", "status_code": "200"}
    assert first.fields == {"request_id": "one", "execution_time": 0.25}
    assert second.tags == {"service": "shop", "route": "GET:other", "status_code": "404"}
    assert error.tags == {**second.tags, "error_code": "404"}
    assert error.fields == second.fields


@pytest.mark.parametrize("encoder", LAYOUTS)
def test_static_labels_are_tags(encoder):
    labels = {"env": "prod", "place": "a, b", "empty": ""}
    for point in encode(
        FAILED, MEASURED, HttpRequest(T0, "GET:/", 200, 0.1, "x"), encoder=encoder, labels=labels
    ):
        assert {name: point.tags.get(name) for name in labels} == {
            "env": "prod",
            "place": "a, b",
            "empty": None,
        }


def test_unknown_values_are_left_out():
    unknown = {"root": None, "queue": None, "worker": None, "sent": None, "received": None}
    received, started = encode(record(State.RECEIVED, **unknown), record(State.STARTED, **unknown))
    assert received.fields == started.fields == {"subtask_id": UUID}
    assert received.tags == {"service": "shop", "task_type": "tasks.add"}
    (luna,) = encode(record(State.RECEIVED, root=None), encoder=LunaEncoder)
    assert luna.tags == {"service": "shop", "subtask_id": UUID}


def test_a_failure_without_an_exception_has_an_empty_error():
    error, final = encode(record(State.FAILURE))
    assert (error.fields["error_code"], "error_code" in error.tags, final.tags["status"]) == (
        "",
        False,
        "FAILURE",
    )


def test_points_without_a_field_are_counted_as_incomplete():
    no_times = [record(State.RECEIVED, sent=None), record(State.STARTED, received=None)]
    no_fields = MeasuredRecord(UUID, ROOT, "t", "w", T0, Measurements({"a": "b"}, {"x": math.nan}))
    points, left_out = encode_some(*no_times, no_fields, FAILED, encoder=LunaEncoder)
    assert left_out == {INCOMPLETE: 3}
    assert [point.measurement for point in points] == ["subtask_errors", "subtask_final"]
    assert len(encode(*no_times, no_fields)) == 3


def test_durations_are_never_negative():
    skewed = [record(State.RECEIVED, at=-1.0), record(State.STARTED, at=0.2)]
    assert [point.fields["transport_time"] for point in encode(*skewed)] == [0.0, 0.0]


def test_a_payload_of_nothing_is_empty():
    assert encode() == []
    assert FieldsEncoder("s", {}, distinct_names=False).encode([]).body == b""


# -- what applications measured ----------------------------------------------------------------------------


def test_measurements_of_a_task_are_in_its_last_points():
    measured = Measurements({"model": "v2", "empty": ""}, {"match_time": 2, "cached": True, "note": 'a "b"'})
    for point in encode(record(State.FAILURE, measurements=measured), encoder=LunaEncoder):
        assert (point.tags["model"], "empty" in point.tags) == ("v2", False)
        names = ("match_time", "cached", "note")
        assert [point.fields[name] for name in names] == [2.0, True, 'a "b"']


def test_names_of_applications_never_replace_ours():
    names = ["status", "service", "env", "time", "_hidden", "same", "measured_status", "a b"]
    measured = Measurements(dict.fromkeys(names, "tag"), dict.fromkeys(names, 1.0))
    (point,) = encode(
        record(State.SUCCESS, measurements=measured), labels={"env": "prod"}, distinct_names=True
    )
    assert (point.tags["status"], point.tags["service"], point.tags["env"]) == ("SUCCESS", "shop", "prod")
    assert sorted(name for name, text in point.tags.items() if text == "tag") == sorted(
        [
            *("measured_status", "measured_service", "measured_env", "measured_time", "measured__hidden"),
            *("same", "measured_measured_status", "a b"),
        ]
    )
    assert sum(measured == 1.0 for measured in point.fields.values()) == len(names)
    assert not point.tags.keys() & point.fields.keys()


# -- times -------------------------------------------------------------------------------------------------


def test_times_have_the_microseconds_of_the_event():
    at = T0 + 0.123456
    (point,) = encode(record(State.RECEIVED, timestamp=at))
    assert point.nanoseconds // 1_000 == 1_700_000_000_123_456


@pytest.mark.parametrize("encoder", LAYOUTS)
def test_points_of_equal_tags_and_times_do_not_overwrite_each_other(encoder):
    """Also those of two payloads, and as fast as others: a clock may be coarse."""
    encoder = encoder("shop", {}, distinct_names=False)
    records = [record(State.RECEIVED, uuid=f"u{index}") for index in range(MAX_REMEMBERED + MAX_BATCH)]
    requests = [HttpRequest(T0, "GET:/metrics", 200, 0.1, f"r{index}") for index in range(MAX_BATCH)]
    begin = time.process_time()
    payloads = [encoder.encode(records[at : at + MAX_BATCH]).body for at in range(0, len(records), MAX_BATCH)]
    points = [point for body in (*payloads, encoder.encode(requests).body) for point in read(body)]
    assert time.process_time() - begin < 10
    assert len({point.identity for point in points}) == len(records) + len(requests)
    assert all(point.nanoseconds - (T0 + 3) * 1e9 < 40_000 for point in points)


def test_the_same_records_yield_the_same_bytes():
    """So a payload that is divided, or sent by two exporters, has the same points."""
    records = [record(State.RECEIVED, uuid=f"u{index}") for index in range(2_000)]
    encoder = FieldsEncoder("shop", {}, distinct_names=False)
    whole = encoder.encode(records).body
    assert encoder.encode(records[:700]).body + encoder.encode(records[700:]).body == whole
    other = FieldsEncoder("shop", {}, distinct_names=False)
    assert other.encode(records).body == whole
    assert len({point.nanoseconds for point in read(whole)}) == 2_000
    alone = FieldsEncoder("shop", {}, distinct_names=False)
    assert alone.encode(records[:1]).body in whole


def test_the_memory_of_times_is_limited():
    times = UniqueTimes()
    for index in range(100_000):
        if index % 1_000 == 0:
            times.forget_the_oldest()
        times.of(T0 + index // 2_000, Identity("", "", index, index % 1_000))
    dicts = (times._owners, times._former, times._next, times._moved)
    assert max(map(len, dicts)) <= MAX_REMEMBERED + 1_000  # and one payload


def test_times_after_2262_are_rejected_because_they_would_spoil_the_payload():
    """InfluxDB 2 rejects a payload as a whole if it cannot parse a line of it."""
    points, left_out = encode_some(record(State.RECEIVED, timestamp=9e10), record(State.STARTED))
    assert left_out == {REJECTED: 1}
    assert [point.measurement for point in points] == ["worker_queue"]
    (last,) = encode(record(State.RECEIVED, timestamp=9_223_372_035.0))
    assert last.nanoseconds < 2**63 - 1


# -- limits and hostile texts ------------------------------------------------------------------------------


def test_exception_classes_in_tags_are_limited():
    failures = [record(State.FAILURE, exception=f"Error{number}") for number in range(MAX_ERROR_CODES + 5)]
    points = [point for point in encode(*failures) if point.measurement == "subtask_errors"]
    assert len({point.tags["error_code"] for point in points}) == MAX_ERROR_CODES + 1
    assert points[-1].tags["error_code"] == "other"
    assert points[-1].fields["error_code"] == f"Error{MAX_ERROR_CODES + 4}"


def test_the_cache_is_limited():
    encoder = FieldsEncoder("shop", {}, distinct_names=False)
    records = [record(State.RECEIVED, name=f"t{number}") for number in range(MAX_CACHED_SERIES + 5)]
    assert len(read(encoder.encode(records).body)) == len(records)
    assert len(encoder._series_by_key) <= MAX_CACHED_SERIES


hostile = st.text('ab,= \\"\n\r\t') | st.text(max_size=300)
optional_text = st.none() | hostile
optional_time = st.none() | st.floats(0, 1e11)


@given(
    st.lists(
        st.builds(
            record,
            st.sampled_from([state for state in State if is_wanted(record(state))]),
            uuid=hostile.filter(bool),
            root=optional_text,
            name=hostile.filter(bool),
            queue=optional_text,
            worker=optional_text,
            exception=optional_text,
            timestamp=st.floats(1e-3, 9e9) | st.sampled_from([T0, T0 + 1e-6]),
            sent=optional_time,
            received=optional_time,
            runtime=optional_time,
            measurements=st.builds(
                Measurements,
                st.dictionaries(hostile, hostile, max_size=3),
                st.dictionaries(hostile, st.floats() | st.booleans() | hostile, max_size=3),
            ),
        ),
        max_size=10,
        unique_by=lambda record: record.uuid,
    ),
    st.sampled_from([FieldsEncoder, LunaEncoder]),
)
def test_any_records_yield_valid_lines_and_the_accounts_close(records, encoder):
    points, left_out = encode_some(*records, encoder=encoder, service='s, "=', distinct_names=True)
    failures = sum(record.state is State.FAILURE for record in records)
    assert len(points) == len(records) + failures - sum(left_out.values())
    for point in points:
        assert point.tags["service"] == 's, "='
        assert not point.tags.keys() & point.fields.keys()
        assert 0 < point.nanoseconds < 2**63
    if encoder is FieldsEncoder:
        assert len({point.identity for point in points}) == len(points)
