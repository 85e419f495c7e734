"""The OTLP sink, and a receiver that answers as the specification says."""

from __future__ import annotations

import gzip
import logging
import ssl
import sys

import pytest
import trustme
from harness.receiver import Answer, Receiver
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from celery_exporter.config.loader import load
from celery_exporter.core.records import ATTEMPT_ENDS
from celery_exporter.core.types import State
from celery_exporter.errors import BadSettingError
from celery_exporter.installation import extra_command
from celery_exporter.sinks.base import REJECTED, TOO_LARGE, PermanentError, TemporaryError
from celery_exporter.sinks.config import OtlpConfig
from celery_exporter.sinks.factory import sinks_for
from celery_exporter.sinks.otlp import OtlpSink
from celery_exporter.sinks.pusher import Pusher

from .test_otlp_spans import record

OK = Answer(200)
#: google.rpc.Status with the fields `code` and `message`: what a receiver answers to a request that fails.
STATUS = b"\x08\x03\x12\x0cno such\npath"


@pytest.fixture
def receiver():
    with Receiver(OK) as receiver:
        yield receiver


@pytest.fixture
def sink(receiver):
    sink = sink_for(receiver)
    yield sink
    sink.close()


def sink_for(receiver: Receiver, **config) -> OtlpSink:
    url = f"{receiver.url}/v1/traces"
    return OtlpSink(url, OtlpConfig(otlp_endpoint=url, **config))


def partial(rejected: int, message: str) -> Answer:
    result = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    return Answer(200, ExportTraceServiceResponse(partial_success=result).SerializeToString())


def test_a_request_has_the_headers_of_the_protocol_and_those_of_the_user(receiver):
    sink = sink_for(receiver, headers={"Api-Key": "s3cret", "Content-Type": "text/plain"})
    body = sink.encode([record()]).body
    sink.send(body, 10)
    sink.close()
    (request,) = receiver.requests
    assert (request.path, request.body) == ("/v1/traces", body)
    assert request.headers["content-type"] == "application/x-protobuf"
    assert request.headers["api-key"] == "s3cret"
    assert request.headers["user-agent"].startswith("celery-exporter/")
    assert "content-encoding" not in request.headers


def test_gzip(receiver):
    sink = sink_for(receiver, is_compressed=True)
    body = sink.encode([record()] * 100).body
    sink.send(body, 10)
    sink.close()
    (request,) = receiver.requests
    assert request.headers["content-encoding"] == "gzip"
    assert gzip.decompress(request.body) == body
    assert len(request.body) < len(body) / 5


def test_only_records_that_end_an_attempt_are_sent(sink):
    sent = sink.select([*map(record, State), object()])
    assert {sent_record.state for sent_record in sent} == ATTEMPT_ENDS


def test_a_probe_is_an_empty_request(sink, receiver):
    sink.probe(10)
    (request,) = receiver.requests
    assert ExportTraceServiceRequest.FromString(request.body) == ExportTraceServiceRequest()


@pytest.mark.parametrize("body", [b"", b"{}", b'{"partialSuccess":{}}', b"OK", b"\x0a\x00"])
def test_any_answer_with_status_200_is_a_success(sink, receiver, body):
    receiver.answer = Answer(200, body)
    sink.send(b"", 10)


def test_spans_that_the_receiver_rejects_are_counted(sink, receiver):
    receiver.answer = partial(3, "span too\nlong")
    with pytest.raises(PermanentError) as caught:
        sink.send(b"", 10)
    assert (caught.value.outcome, caught.value.count) == (REJECTED, 3)
    assert str(caught.value) == f"{sink.address} rejected 3 spans: span too?long"


def test_a_warning_of_the_receiver_is_logged_once(sink, receiver, caplog):
    for answer in (partial(0, "slow down"), partial(0, "slow down"), OK, partial(0, "slow down")):
        receiver.answer = answer
        sink.send(b"", 10)
    warning = f"sink otlp: {sink.address} accepted all spans, with a warning: slow down"
    assert caplog.record_tuples == [("celery_exporter.sinks.otlp", logging.WARNING, warning)] * 2


@pytest.mark.parametrize("status", [429, 502, 503, 504, 401, 404, 500])
def test_a_status_that_may_change_is_retried(sink, receiver, status):
    """The specification allows it for the first four only; see the module."""
    receiver.answer = Answer(status, STATUS, {"Retry-After": "7"})
    with pytest.raises(TemporaryError) as caught:
        sink.send(b"", 10)
    assert caught.value.retry_after == 7
    assert str(caught.value) == f"{sink.address} answers with status {status}: no such?path"


@pytest.mark.parametrize(("status", "outcome"), [(400, REJECTED), (413, TOO_LARGE), (415, REJECTED)])
def test_another_status_loses_the_records(sink, receiver, status, outcome):
    receiver.answer = Answer(status, b"a plain text")
    with pytest.raises(PermanentError) as caught:
        sink.send(b"", 10)
    assert (caught.value.outcome, caught.value.count) == (outcome, None)
    assert str(caught.value) == f"{sink.address} answers with status {status}: a plain text"


def test_the_accounts_of_a_partial_success(receiver):
    receiver.answer = partial(3, "no")
    pusher = Pusher(sink_for(receiver), limit=1000, flush_interval=0.1)
    pusher.put([record() for _ in range(10)])
    pusher.start()
    pusher.stop()
    pusher.join()
    outcomes = pusher.view().outcomes
    assert {outcome: count for outcome, count in outcomes.items() if count} == {"delivered": 7, REJECTED: 3}
    assert len(receiver.requests) == 1, "a partial success is not sent again"


def test_more_rejected_spans_than_records(receiver):
    """A record may have two spans."""
    receiver.answer = partial(20, "no")
    pusher = Pusher(sink_for(receiver), limit=1000, flush_interval=0.1)
    pusher.put([record() for _ in range(10)])
    pusher.start()
    pusher.stop()
    pusher.join()
    assert pusher.view().outcomes[REJECTED] == 10
    assert pusher.view().outcomes["delivered"] == 0


def test_the_timeout_of_the_variable_shortens_that_of_the_pusher(receiver):
    receiver.answer = Answer(is_frozen=True)
    sink = sink_for(receiver, timeout_seconds=0.05)
    with pytest.raises(TemporaryError, match="no answer"):
        sink.send(b"", 60)
    sink.close()


def test_a_certificate_of_the_users_own_authority(tmp_path):
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    with Receiver(OK, tls=server) as receiver:
        sink = sink_for(receiver)
        with pytest.raises(TemporaryError, match="certificate"):
            sink.send(b"", 10)
        sink_for(receiver, certificate=path).send(b"", 10)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_unusable_certificate_file_is_an_invalid_setting(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    config = OtlpConfig(otlp_endpoint="https://host/", certificate=path)
    with pytest.raises(
        BadSettingError, match=r"OTEL_EXPORTER_OTLP_CERTIFICATE: cannot use '.*ca.pem': "
    ) as caught:
        OtlpSink("https://host/", config)
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch):
    for name in [
        name for name in sys.modules if name.startswith(("opentelemetry", "celery_exporter.sinks.otlp"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    config = load({"broker_url": "redis://h", "otlp_endpoint": "http://tempo:4318"}, {}).sinks
    with pytest.raises(BadSettingError) as caught:
        sinks_for(config)
    assert str(caught.value) == (
        f"--otlp-endpoint: opentelemetry-proto is not installed; run: {extra_command('otlp')}"
    )
