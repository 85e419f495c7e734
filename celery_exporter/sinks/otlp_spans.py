"""Records → spans, in the bytes of an OTLP request (`ExportTraceServiceRequest`).

A record that ends an attempt becomes the span of the attempt. If it ends the task, too, it also becomes the
span of the task, which is the parent of the spans of its attempts. The messages are those of
opentelemetry/proto/trace/v1/trace.proto. Names and attributes are those of the semantic conventions
(opentelemetry.io/docs/specs/semconv/messaging/messaging-spans); the attributes `celery.*` have the names of
opentelemetry-instrumentation-celery.

The library takes 40 µs for the two spans of a task. So it encodes only what many spans have in common, which
is cached; what differs, ids and times, is written here, and both take 6 µs. That is correct because the
concatenation of two encoded messages is the encoding of one with the fields of both
(protobuf.dev/programming-guides/encoding#last-one-wins).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache

from msgspec.structs import replace
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from celery_exporter.core.records import Record
from celery_exporter.core.trace_ids import attempt_span_id, task_span_id, trace_id
from celery_exporter.core.types import UNKNOWN, State
from celery_exporter.metrics.exposition.protobuf import varint

#: The version of the conventions.
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
#: The value of messaging.system: none is registered for Celery, and the conventions allow others.
MESSAGING_SYSTEM = "celery"
#: The value of error.type for a failure whose exception is unknown.
OTHER_ERROR = "_OTHER"
#: Encoded parts of each kind that are cached, some 200 bytes each.
MAX_CACHED = 4_096
#: The last second whose nanoseconds fit into 64 bits. Timestamps of events may be later.
MAX_SECONDS = 18_446_744_073

# Tags of the messages around spans.
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = b"\x0a", b"\x12", b"\x12"
# Parts of a span that have a fixed length: what precedes a value is its tag, and its length if it has one.
_IDS_AND_TIMES = struct.Struct("<2s16s 2s8s BQ BQ")
_TRACE_ID, _SPAN_ID, _PARENT_SPAN_ID, _START, _END = b"\x0a\x10", b"\x12\x08", b"\x22\x08", 0x39, 0x41
_EVENT = struct.Struct("<3sQ")  # of a span; its name follows
_RECEIVED, _STARTED = (b"\x5a\x13\x09", b"\x12\x08received"), (b"\x5a\x12\x09", b"\x12\x07started")


def encode(records: Sequence[Record], resource: bytes, scope: bytes) -> bytes:
    """Return a request with the spans of records, each of which ends an attempt."""
    try:
        spans = [*map(_spans, records)]
    except struct.error:
        spans = [*map(_spans, map(_before_2554, records))]
    length = len(scope) + sum(map(len, spans))
    scope_spans = _SCOPE_SPANS + varint(length)
    length += len(resource) + len(scope_spans)
    return b"".join((_RESOURCE_SPANS, varint(length), resource, scope_spans, scope, *spans))


def encode_resource(attributes: Mapping[str, str]) -> bytes:
    """Return what precedes the spans of a `ResourceSpans`: what they describe."""
    return ResourceSpans(resource=Resource(attributes=_attributes(attributes))).SerializeToString()


def encode_scope(version: str) -> bytes:
    """Return what precedes the spans of a `ScopeSpans`: that this exporter made them."""
    scope = InstrumentationScope(name="celery-exporter", version=version)
    return ScopeSpans(scope=scope, schema_url=SCHEMA_URL).SerializeToString()


def _spans(record: Record) -> bytes:
    """Return the span of an attempt; and that of the task, if it is finished."""
    uuid, ended = record.uuid, record.timestamp
    trace, task_span = trace_id(record.root or uuid), task_span_id(uuid)
    number = ended if record.attempt is None else record.attempt
    common = _end(record.state, record.attempt, record.exception) + _message_id(uuid)
    start = ended
    for at in (record.sent, record.received, record.started):  # the clocks of client and worker may differ
        if at is not None and at < start:
            start = at
    attempt = _span(
        _ids_and_times(trace, attempt_span_id(uuid, record.generation, number), start, ended),
        _PARENT_SPAN_ID + task_span,
        _attempt(record.name, record.queue),
        _client(record.worker),
        common,
        b"" if record.eta is None else _eta(record.eta),
        b"" if record.received is None else _event(_RECEIVED, record.received),
        b"" if record.started is None else _event(_STARTED, record.started),
    )
    if not record.is_final:
        return attempt
    if record.first_sent is not None and record.first_sent < start:
        start = record.first_sent
    return attempt + _span(
        _ids_and_times(trace, task_span, start, ended),
        b"" if record.parent is None else _PARENT_SPAN_ID + task_span_id(record.parent),
        _task(record.name, record.queue),
        _client(record.client),
        common,
    )


def _span(*fields: bytes) -> bytes:
    """Return a span as a field of `ScopeSpans`."""
    span = b"".join(fields)
    return _head(len(span)) + span


@lru_cache(MAX_CACHED)
def _head(length: int) -> bytes:
    return _SPANS + varint(length)


def _ids_and_times(trace: bytes, span: bytes, start: float, end: float) -> bytes:
    """Return these fields; raise struct.error for a time that does not fit."""
    return _IDS_AND_TIMES.pack(
        _TRACE_ID, trace, _SPAN_ID, span, _START, int(start * 1e9), _END, int(end * 1e9)
    )


def _event(around: tuple[bytes, bytes], at: float) -> bytes:
    before, name = around
    return _EVENT.pack(before, int(at * 1e9)) + name


def _before_2554(record: Record) -> Record:
    """Return a record whose times fit."""
    times = {
        name: getattr(record, name) for name in ("timestamp", "first_sent", "sent", "received", "started")
    }
    return replace(record, **{name: min(at, MAX_SECONDS) for name, at in times.items() if at is not None})


def _message_id(uuid: str) -> bytes:
    encoded = uuid.encode()
    return _message_id_head(len(encoded)) + encoded


# -- what many spans have in common ------------------------------------------------------------------------


@lru_cache(MAX_CACHED)
def _attempt(name: str, queue: str | None) -> bytes:
    """Return the name, the kind and attributes of an attempt: a "process" span of the conventions."""
    destination = _destination(queue)
    operation = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
    return Span(
        name=" ".join(["process", *destination.values()]),
        kind=Span.SPAN_KIND_CONSUMER,
        attributes=_attributes(_task_attributes(name) | operation | destination),
    ).SerializeToString()


@lru_cache(MAX_CACHED)
def _task(name: str, queue: str | None) -> bytes:
    """Return the name, the kind and attributes of a task.

    It is none of the operations of the conventions. Its kind is that of a deferred execution, seen from the
    sender: consumers process it.
    """
    return Span(
        name=name,
        kind=Span.SPAN_KIND_PRODUCER,
        attributes=_attributes(_task_attributes(name) | _destination(queue)),
    ).SerializeToString()


def _task_attributes(name: str) -> dict[str, str]:
    return {"messaging.system": MESSAGING_SYSTEM, "celery.task_name": name}


def _destination(queue: str | None) -> dict[str, str]:
    return {} if queue is None or queue == UNKNOWN else {"messaging.destination.name": queue}


@lru_cache(MAX_CACHED)
def _client(node: str | None) -> bytes:
    return b"" if node is None else _encoded({"messaging.client.id": node})


@lru_cache(MAX_CACHED)
def _end(state: State, attempt: int | None, exception: str | None) -> bytes:
    """Return how an attempt ended: its status and attributes. A retry is no error, as it is handled."""
    attributes: dict[str, str | int] = {"celery.state": state.name}
    if attempt is not None:
        attributes["celery.retries"] = attempt
    if exception is not None:
        attributes["exception.type"] = exception
    if state is not State.FAILURE:
        return _encoded(attributes)
    status = Status(code=Status.STATUS_CODE_ERROR)
    error = {"error.type": exception or OTHER_ERROR}
    return Span(attributes=_attributes(attributes | error), status=status).SerializeToString()


@lru_cache(MAX_CACHED)
def _message_id_head(length: int) -> bytes:
    """Return the attribute for an id of this length in bytes, without the id, which is its end."""
    return _encoded({"messaging.message.id": "x" * length})[:-length]


def _eta(eta: float) -> bytes:
    try:
        return _encoded({"celery.eta": datetime.fromtimestamp(eta, UTC).isoformat()})
    except (ValueError, OverflowError):  # a time zone can move the last second of 9999 into the year 10000
        return b""


def _encoded(attributes: Mapping[str, str | int]) -> bytes:
    return Span(attributes=_attributes(attributes)).SerializeToString()


def _attributes(attributes: Mapping[str, str | int]) -> list[KeyValue]:
    return [KeyValue(key=name, value=_value(value)) for name, value in attributes.items()]


def _value(value: str | int) -> AnyValue:
    return AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value)
