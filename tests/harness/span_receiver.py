"""A receiver of traces, by OTLP over HTTP, that parses requests with opentelemetry-proto."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from harness.receiver import Answer, Received, Receiver


@dataclass(frozen=True)
class ReceivedSpan:
    """A span with its ids in hexadecimal digits and times in epoch seconds; `parent` may be empty."""

    trace: str
    id: str
    parent: str
    name: str
    kind: int
    start: float
    end: float
    attributes: dict[str, str | int]
    events: dict[str, float]
    status: int
    resource: dict[str, str | int]

    @property
    def uuid(self) -> str:
        """Return the id of its task."""
        return str(self.attributes["messaging.message.id"])

    @property
    def is_attempt(self) -> bool:
        return "messaging.operation.type" in self.attributes

    @property
    def state(self) -> str:
        return str(self.attributes["celery.state"])


class SpanReceiver(Receiver):
    """Receives spans at `url`, and takes all."""

    def __init__(self) -> None:
        super().__init__(Answer(200))

    @property
    def spans(self) -> list[ReceivedSpan]:
        """Return the spans so far. No two of them have the same id."""
        spans = [span for request in list(self.requests) for span in _spans(request)]
        assert len({span.id for span in spans}) == len(spans), "a span was sent twice"
        return spans

    def tasks(self) -> dict[str, ReceivedSpan]:
        """Return the spans of tasks, by uuid."""
        return {span.uuid: span for span in self.spans if not span.is_attempt}

    def attempts(self, uuid: str) -> list[ReceivedSpan]:
        """Return the spans of the attempts of a task, the first one first."""
        return sorted(
            (span for span in self.spans if span.is_attempt and span.uuid == uuid), key=lambda span: span.end
        )


def _spans(request: Received) -> list[ReceivedSpan]:
    assert request.headers["content-type"] == "application/x-protobuf"
    is_compressed = request.headers.get("content-encoding") == "gzip"
    return spans_in(gzip.decompress(request.body) if is_compressed else request.body)


def spans_in(body: bytes) -> list[ReceivedSpan]:
    """Return the spans in the body of a request."""
    return [
        ReceivedSpan(
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.name,
            span.kind,
            span.start_time_unix_nano / 1e9,
            span.end_time_unix_nano / 1e9,
            _attributes(span),
            {event.name: event.time_unix_nano / 1e9 for event in span.events},
            span.status.code,
            _attributes(resource_spans.resource),
        )
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def _attributes(message) -> dict[str, str | int]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in message.attributes}
