"""Spans of records, compared with what opentelemetry-proto makes of the same values."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from celery_exporter.core.records import ATTEMPT_ENDS, Record
from celery_exporter.core.trace_ids import attempt_span_id, task_span_id, trace_id
from celery_exporter.core.types import State
from celery_exporter.sinks.otlp_spans import MAX_SECONDS, SCHEMA_URL, encode, encode_resource, encode_scope

T0 = 1_700_000_000.0
ROOT, PARENT, UUID = (f"0000000{digit}-0000-4000-8000-000000000000" for digit in "123")

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
#: The range of timestamps in events.
epoch_seconds = st.floats(0, 1e11, exclude_min=True, exclude_max=True)
optional_time = st.none() | epoch_seconds
any_record = st.builds(
    Record,
    uuid=text,
    root=st.none() | text,
    parent=st.none() | text,
    name=text,
    queue=st.none() | text,
    worker=st.none() | text,
    client=st.none() | text,
    attempt=st.none() | st.integers(0, 2**31 - 1),
    generation=st.integers(0, 100),
    state=st.sampled_from(sorted(ATTEMPT_ENDS)),
    timestamp=epoch_seconds,
    exception=st.none() | text,
    first_sent=optional_time,
    sent=optional_time,
    eta=st.none() | st.floats(-62_135_600_000, 253_402_343_999),
    received=optional_time,
    started=optional_time,
    is_final=st.booleans(),
)


def record(state: State = State.SUCCESS, **fields) -> Record:
    """Return the end of a task that was sent at T0, received at 1 s, started at 2 s and ended at 4 s."""
    usual = {
        "uuid": UUID,
        "root": ROOT,
        "parent": PARENT,
        "name": "shop.charge",
        "queue": "payments",
        "worker": "w@h",
        "client": "gen1@h",
        "attempt": 0,
        "generation": 0,
        "timestamp": T0 + 4,
        "first_sent": T0,
        "sent": T0,
        "received": T0 + 1,
        "started": T0 + 2,
        "is_final": state is not State.RETRY,
    }
    return Record(state=state, **(usual | fields))


def decoded(*records: Record, **resource: str) -> ResourceSpans:
    body = encode(records, encode_resource({"service.name": "celery", **resource}), encode_scope("1.2.3"))
    (resource_spans,) = ExportTraceServiceRequest.FromString(body).resource_spans
    return resource_spans


def spans_of(*records: Record) -> list[Span]:
    (scope_spans,) = decoded(*records).scope_spans
    return list(scope_spans.spans)


def attributes(message) -> dict[str, str | int]:
    values = {item.key: item.value for item in message.attributes}
    assert len(values) == len(message.attributes), "an attribute appears twice"
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


def events(span: Span) -> dict[str, float]:
    return {event.name: event.time_unix_nano / 1e9 - T0 for event in span.events}


def test_a_finished_task_is_the_span_of_its_attempt_and_its_own():
    attempt, task = spans_of(record())
    assert attempt.trace_id == task.trace_id == trace_id(ROOT)
    assert (task.span_id, task.parent_span_id) == (task_span_id(UUID), task_span_id(PARENT))
    assert (attempt.span_id, attempt.parent_span_id) == (attempt_span_id(UUID, 0, 0), task.span_id)
    assert (task.name, task.kind) == ("shop.charge", Span.SPAN_KIND_PRODUCER)
    assert (attempt.name, attempt.kind) == ("process payments", Span.SPAN_KIND_CONSUMER)
    for span in (attempt, task):
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (T0 * 1e9, (T0 + 4) * 1e9)
        assert not span.HasField("status"), "the conventions leave it unset after a success"
    assert events(attempt) == {"received": 1.0, "started": 2.0}
    assert events(task) == {}


def test_attributes_are_those_of_the_conventions():
    attempt, task = spans_of(record(attempt=2))
    common = {
        "messaging.system": "celery",
        "messaging.destination.name": "payments",
        "messaging.message.id": UUID,
        "celery.task_name": "shop.charge",
        "celery.state": "SUCCESS",
        "celery.retries": 2,
    }
    operation = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
    assert attributes(attempt) == {**common, **operation, "messaging.client.id": "w@h"}
    assert attributes(task) == {**common, "messaging.client.id": "gen1@h"}


def test_a_failure_has_the_class_of_its_exception():
    for span in spans_of(record(State.FAILURE, exception="ValueError")):
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert attributes(span)["error.type"] == attributes(span)["exception.type"] == "ValueError"
    for span in spans_of(record(State.FAILURE)):
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert attributes(span)["error.type"] == "_OTHER"
        assert "exception.type" not in attributes(span)


def test_a_retry_is_the_span_of_an_attempt_and_no_error():
    (attempt,) = spans_of(record(State.RETRY, exception="OSError"))
    assert not attempt.HasField("status")
    assert attributes(attempt)["exception.type"] == "OSError"
    assert "error.type" not in attributes(attempt)


@pytest.mark.parametrize("state", [State.REVOKED, State.REJECTED])
def test_a_task_that_did_not_run_is_no_error(state):
    attempt, task = spans_of(record(state, started=None))
    assert not attempt.HasField("status")
    assert attributes(task)["celery.state"] == state.name
    assert events(attempt) == {"received": 1.0}


def test_the_span_of_a_retried_task_begins_with_its_first_attempt():
    attempt, task = spans_of(record(attempt=1, sent=T0 + 0.5))
    assert attempt.start_time_unix_nano == (T0 + 0.5) * 1e9
    assert task.start_time_unix_nano == T0 * 1e9


@pytest.mark.parametrize(
    ("unknown", "start"),
    [
        ({}, 0.0),
        ({"sent": None, "first_sent": None}, 1.0),
        ({"sent": None, "first_sent": None, "received": None}, 2.0),
        ({"sent": None, "first_sent": None, "received": None, "started": None}, 4.0),
        ({"sent": T0 + 9, "first_sent": T0 + 9}, 1.0),
        ({"sent": T0 + 9, "first_sent": T0 + 9, "received": None, "started": None}, 4.0),
    ],
)
def test_a_span_begins_with_the_first_known_time_and_contains_its_events(unknown, start):
    """The clock of a client may be ahead of the worker's."""
    for span in spans_of(record(**unknown)):
        assert span.start_time_unix_nano / 1e9 - T0 == start


def test_what_is_unknown_is_omitted():
    unknown = dict.fromkeys(("root", "parent", "queue", "worker", "client", "attempt"))
    attempt, task = spans_of(record(**unknown))
    assert task.trace_id == trace_id(UUID)
    assert task.parent_span_id == b""
    assert attempt.name == "process"
    absent = {"messaging.destination.name", "messaging.client.id", "celery.retries"}
    assert not absent & (attributes(attempt).keys() | attributes(task).keys())
    assert "messaging.destination.name" not in attributes(spans_of(record(queue="unknown"))[0])


def test_attempts_of_unknown_number_differ_by_their_end():
    first, second = (spans_of(record(attempt=None, timestamp=T0 + end))[0].span_id for end in (4, 5))
    assert first != second


def test_an_eta_explains_a_wait():
    attempt, task = spans_of(record(eta=T0 + 1.5))
    assert attributes(attempt)["celery.eta"] == "2023-11-14T22:13:21.500000+00:00"
    assert "celery.eta" not in attributes(task)


def test_resource_and_scope():
    resource_spans = decoded(record(), env="prod")
    assert attributes(resource_spans.resource) == {"service.name": "celery", "env": "prod"}
    (scope_spans,) = resource_spans.scope_spans
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("celery-exporter", "1.2.3")
    assert scope_spans.schema_url == SCHEMA_URL


@pytest.mark.parametrize("length", [1, 36, 84, 85, 100, 101, 127, 128, 255])
@pytest.mark.parametrize("character", ["x", "é", "\U0001f600"])
def test_texts_of_any_length(length, character):
    """Lengths are varints, of one byte up to 127."""
    item = record(uuid=character * length, name=character * length, queue=character * length)
    assert [normal(span) for span in spans_of(item)] == [normal(span) for span in expected_spans(item)]


@settings(max_examples=100)
@given(st.lists(any_record, max_size=3))
def test_any_records_are_encoded_as_the_library_does(records):
    expected = [span for item in records for span in expected_spans(item)]
    resource_spans = decoded(*records)
    got = list(resource_spans.scope_spans[0].spans)
    assert [normal(span) for span in got] == [normal(span) for span in expected]
    assert [span.ByteSize() for span in got] == [span.ByteSize() for span in expected]


def expected_spans(item: Record) -> list[Span]:
    """Return the spans of a record, each made by the library at once."""
    common = {
        "messaging.system": "celery",
        "messaging.message.id": item.uuid,
        "messaging.destination.name": None if item.queue == "unknown" else item.queue,
        "celery.task_name": item.name,
        "celery.state": item.state.name,
        "celery.retries": item.attempt,
        "exception.type": item.exception,
    }
    status = None
    if item.state is State.FAILURE:
        status = Status(code=Status.STATUS_CODE_ERROR)
        common["error.type"] = item.exception or "_OTHER"
    times = {"received": item.received, "started": item.started}
    known = [at for at in (item.sent, *times.values(), item.timestamp) if at is not None]
    end = nanoseconds(item.timestamp)
    attempt = Span(
        trace_id=trace_id(item.root or item.uuid),
        span_id=attempt_span_id(
            item.uuid,
            item.generation,
            min(item.timestamp, MAX_SECONDS) if item.attempt is None else item.attempt,
        ),
        parent_span_id=task_span_id(item.uuid),
        name=f"process {item.queue}" if item.queue not in {None, "unknown"} else "process",
        kind=Span.SPAN_KIND_CONSUMER,
        start_time_unix_nano=min(map(nanoseconds, known)),
        end_time_unix_nano=end,
        attributes=key_values(
            common
            | {"messaging.operation.name": "process", "messaging.operation.type": "process"}
            | {"messaging.client.id": item.worker, "celery.eta": iso(item.eta)}
        ),
        events=[
            Span.Event(name=name, time_unix_nano=nanoseconds(at))
            for name, at in times.items()
            if at is not None
        ],
        status=status,
    )
    if not item.is_final:
        return [attempt]
    task = Span(
        trace_id=attempt.trace_id,
        span_id=attempt.parent_span_id,
        parent_span_id=None if item.parent is None else task_span_id(item.parent),
        name=item.name,
        kind=Span.SPAN_KIND_PRODUCER,
        start_time_unix_nano=min(
            attempt.start_time_unix_nano,
            nanoseconds(item.timestamp if item.first_sent is None else item.first_sent),
        ),
        end_time_unix_nano=end,
        attributes=key_values(common | {"messaging.client.id": item.client}),
        status=status,
    )
    return [attempt, task]


def key_values(values: dict[str, str | int | None]) -> list[KeyValue]:
    return [
        KeyValue(
            key=key, value=AnyValue(**{"int_value" if isinstance(value, int) else "string_value": value})
        )
        for key, value in values.items()
        if value is not None
    ]


def nanoseconds(at: float) -> int:
    return int(min(at, MAX_SECONDS) * 1e9)


def iso(eta: float | None) -> str | None:
    try:
        return None if eta is None else datetime.fromtimestamp(eta, UTC).isoformat()
    except (ValueError, OverflowError):
        return None


def normal(span: Span) -> Span:
    """Return a span with its attributes in alphabetical order: their order has no meaning."""
    copy = Span.FromString(span.SerializeToString())
    copy.attributes.sort(key=lambda item: item.key)
    return copy
