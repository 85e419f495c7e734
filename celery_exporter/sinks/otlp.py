"""--otlp-endpoint: spans of tasks and attempts, by OTLP over HTTP, in protobuf.

Protocol: opentelemetry.io/docs/specs/otlp. This sink differs from it in one point: it retries a status such
as 401, 404 or 500, as all sinks do. The login, the URL or the receiver may be repaired while records are
buffered.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from msgspec.structs import replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from celery_exporter import __version__
from celery_exporter.core.records import ATTEMPT_ENDS, Record
from celery_exporter.errors import BadSettingError
from celery_exporter.quoting import printable
from celery_exporter.sinks.base import REJECTED, Payload, PermanentError
from celery_exporter.sinks.compression import gzipped
from celery_exporter.sinks.config import OtlpConfig
from celery_exporter.sinks.http import MAX_SHOWN, HttpClient, Response, check
from celery_exporter.sinks.otlp_spans import encode, encode_resource, encode_scope

log = logging.getLogger(__name__)


class OtlpSink:
    """See `Sink`. Raises BadSettingError for a certificate file that cannot be used."""

    name = "otlp"
    max_body_bytes = 16 * 2**20  # the OpenTelemetry Collector takes 20 MiB by default, after decompression
    min_interval = 0.0
    states = tuple(ATTEMPT_ENDS)

    def __init__(self, url: str, config: OtlpConfig) -> None:
        self.address = url
        self._timeout = config.timeout_seconds
        self._is_compressed = config.is_compressed
        self._resource = encode_resource(config.resource)
        self._scope = encode_scope(__version__)
        self._last_warning = ""
        headers = {**config.headers, **_own_headers(config)}
        try:
            self._client = HttpClient(url, lambda: headers, config.certificate)
        except OSError as error:  # or a subclass, SSLError
            raise BadSettingError(
                f"OTEL_EXPORTER_OTLP_CERTIFICATE: cannot use {str(config.certificate)!r}: {error.strerror}; "
                "it takes a file with CA certificates in PEM format"
            ) from None

    def select(self, records: Iterable[Any]) -> list[Any]:
        """See `Sink`: the ends of attempts. Their records have all times of the attempt."""
        return [record for record in records if type(record) is Record and record.state in ATTEMPT_ENDS]

    def encode(self, records: Sequence[Record]) -> Payload:
        """See `Sink`."""
        return Payload(encode(records, self._resource, self._scope))

    def send(self, body: bytes, timeout: float) -> None:
        """See `Sink`."""
        if self._is_compressed:
            body = gzipped(body)
        response = self._client.post(body, min(timeout, self._timeout))
        check(_with_message(response), self.address)
        self._check_spans(response.body)

    def probe(self, timeout: float) -> None:
        """See `Sink`. A receiver takes an empty request, which has an empty body."""
        self.send(b"", timeout)

    def close(self) -> None:
        """See `Sink`."""
        self._client.close()

    def _check_spans(self, answer: bytes) -> None:
        """Raise PermanentError if the receiver accepted the request without some of its spans."""
        result = _partial_success(answer)
        message = printable(result.error_message)[:MAX_SHOWN]
        if result.rejected_spans > 0:
            # A record has one span or two. Which ones were rejected is unknown, so each counts as a record.
            text = f"{self.address} rejected {result.rejected_spans} spans: {message}"
            raise PermanentError(text, REJECTED, result.rejected_spans)
        if message != self._last_warning:
            self._last_warning = message
            if message:
                log.warning("sink otlp: %s accepted all spans, with a warning: %s", self.address, message)


def _own_headers(config: OtlpConfig) -> dict[str, str]:
    compression = {"Content-Encoding": "gzip"} if config.is_compressed else {}
    return {
        "Content-Type": "application/x-protobuf",
        "User-Agent": f"celery-exporter/{__version__}",
        **compression,
    }


def _partial_success(answer: bytes) -> ExportTracePartialSuccess:
    """Return what a receiver answered; empty if it is not protobuf, which some receivers do not send."""
    try:
        return ExportTraceServiceResponse.FromString(answer).partial_success
    except DecodeError:
        return ExportTracePartialSuccess()


def _with_message(response: Response) -> Response:
    """Return a response whose text is readable: that of an error is a `google.rpc.Status` in protobuf.

    Its fields are those of `ExportTracePartialSuccess`: 1 is an integer, and 2 the message.
    """
    try:
        message = printable(ExportTracePartialSuccess.FromString(response.body).error_message)
    except DecodeError:
        return response
    return replace(response, text=message)
