"""Faults of the receivers of sinks: `/metrics` is not affected, and no record is lost without being counted.

The exporter and the broker are real. The receiver is an HTTP server whose faults the test chooses. A sink is
tested with all faults by a row in `SINKS`.
"""

from __future__ import annotations

import gzip
import json
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import trustme
from harness.events import publish_events, task_events
from harness.exporter import Exporter, Samples
from harness.receiver import Answer, Receiver
from harness.span_receiver import spans_in
from harness.waiting import eventually, until_equal
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from celery_exporter.sinks.base import BUFFER_FULL, DELIVERED, REJECTED, TOO_LARGE

RECORDS, BUFFERED = "celery_exporter_sink_records_total", "celery_exporter_sink_buffered_records"
#: Seconds for a scrape while a receiver fails. It takes some 10 ms on a quiet machine; Prometheus waits 10 s.
MAX_SCRAPE_SECONDS = 5.0
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


@dataclass(frozen=True)
class SinkCase:
    """A sink under test. `records_in` returns how many different records are in the bodies of requests."""

    name: str  # value of the label `sink`
    options: Callable[[str], list[str]]  # by the URL of the receiver
    success: Answer
    records_of_a_task: int  # of sent, received, started and succeeded
    wants_requests: bool
    records_in: Callable[[list[bytes]], int]
    one_rejected: Answer  # to a payload of which the receiver rejects one record


def _lines(bodies: list[bytes]) -> int:
    return len({line for body in bodies for line in body.splitlines() if not line.startswith(b"errors,")})


INFLUXDB = SinkCase(
    name="influxdb",
    options=lambda url: [f"--influx-url={url}", "--influx-version=1", "--influx-database=celery"],
    success=Answer(204),
    records_of_a_task=3,
    wants_requests=True,
    records_in=_lines,
    one_rejected=Answer(400, b'{"error":"partial write: points beyond retention policy dropped=1"}'),
)


def _attempts(bodies: list[bytes]) -> int:
    """Return the number of attempts: of the two spans of a task, one is its only attempt."""
    return len({span.id for body in bodies for span in spans_in(body) if span.is_attempt})


_ONE_REJECTED = ExportTracePartialSuccess(rejected_spans=1, error_message="too old")
OTLP = SinkCase(
    name="otlp",
    options=lambda url: [f"--otlp-endpoint={url}"],
    success=Answer(200),
    records_of_a_task=1,
    wants_requests=False,
    records_in=_attempts,
    one_rejected=Answer(200, ExportTraceServiceResponse(partial_success=_ONE_REJECTED).SerializeToString()),
)


def _entries(bodies: list[bytes]) -> int:
    """Return the number of entries; those that were sent twice are equal."""
    streams = [stream for body in bodies for stream in json.loads(gzip.decompress(body))["streams"]]
    return len({(at, line) for stream in streams for at, line, _ in stream["values"]})


LOKI = SinkCase(
    name="loki",
    options=lambda url: [f"--loki-url={url}"],
    success=Answer(204),
    records_of_a_task=4,
    wants_requests=False,
    records_in=_entries,
    one_rejected=Answer(400, b"entry for stream '{service=\"celery\"}' has timestamp too old: 2023-11-14"),
)
SINKS = [INFLUXDB, LOKI, OTLP]


class Accounts:
    """Scrapes an exporter, and compares its accounts of a sink with what was published."""

    def __init__(self, app: Exporter, sink: SinkCase, broker_url: str) -> None:
        self._app = app
        self._sink = sink
        self._broker_url = broker_url
        self._scrapes = 0
        self.tasks = 0
        self.longest_scrape = 0.0
        self._at_first = self._total(self.scrape())

    def publish(self, tasks: int) -> None:
        """Publish the events of so many tasks, and wait until they are counted."""
        for number in range(self.tasks, self.tasks + tasks):
            publish_events(self._broker_url, *task_events(number))
        self.tasks += tasks
        until_equal(lambda: self.scrape().total("celery_tasks_total", state="SUCCESS"), self.tasks)

    def scrape(self) -> Samples:
        begin = time.monotonic()
        samples = self._app.samples()
        self.longest_scrape = max(self.longest_scrape, time.monotonic() - begin)
        self._scrapes += 1
        return samples

    def check(self) -> None:
        """Check that all records have an outcome or are buffered, and that no scrape took long."""
        until_equal(lambda: self._total(self.scrape()) - self._expected(), 0)
        assert self.longest_scrape < MAX_SCRAPE_SECONDS

    def outcomes(self) -> dict[str, int]:
        """Return the outcomes once no record is buffered; the records of scrapes count as delivered."""

        def settled() -> Samples | None:
            samples = self.scrape()
            return samples if samples.value(BUFFERED, sink=self._sink.name) == 0 else None

        # A request becomes a record after its answer, so none is buffered between two scrapes and a flush.
        samples = eventually(settled, 60, every=0.5)
        outcomes = samples.by(RECORDS, "outcome", sink=self._sink.name)
        return {outcome: int(count) for (outcome,), count in outcomes.items() if count}

    def _expected(self) -> float:
        requests = self._scrapes - 1 if self._sink.wants_requests else 0
        return self._at_first + self.tasks * self._sink.records_of_a_task + requests

    def _total(self, samples: Samples) -> float:
        return samples.total(RECORDS, sink=self._sink.name) + (
            samples.value(BUFFERED, sink=self._sink.name) or 0
        )


@pytest.fixture(params=SINKS, ids=lambda sink: sink.name)
def sink(request) -> SinkCase:
    return request.param


@pytest.fixture
def receiver(sink):
    receiver = Receiver(sink.success)
    yield receiver
    receiver.stop()


@pytest.fixture
def accounts(sink, receiver, running, exporter, broker):
    """`accounts(*options)` starts an exporter with the sink, and returns its accounts.

    The receiver ends after the exporter, which sends the records of the last scrapes.
    """

    def start(*options: str, environment: dict[str, str] | None = None) -> Accounts:
        arguments = [*sink.options(receiver.url), "--sink-flush-interval=0.2", *options]
        app = running(exporter(*arguments, environment=environment)).connected()
        return Accounts(app, sink, broker.url)

    yield start
    receiver.answer = sink.success  # otherwise the exporter tries for seconds to deliver before it ends
    if not receiver.is_running:
        receiver.start()


def delivered(receiver: Receiver, sink: SinkCase) -> int:
    """Return how many different records the receiver has taken."""
    return sink.records_in([request.body for request in receiver.requests if request.answer.status < 300])


# -- faults --------------------------------------------------------------------------------------------------


def answers(**changes) -> Callable[[Receiver, SinkCase], None]:
    """Return a fault that answers like this; other fields are those of success."""

    def begin(receiver: Receiver, sink: SinkCase) -> None:
        receiver.answer = replace(sink.success, **changes)

    return begin


def restart(receiver: Receiver, _: SinkCase) -> None:
    receiver.stop()
    receiver.start()


def is_absent(receiver: Receiver, _: SinkCase) -> None:
    receiver.stop()


FAULTS = {
    "absent": is_absent,
    "restart": restart,
    "slow": answers(seconds=3.0),
    "status 500": answers(status=500, body=b"out of memory"),
    "status 503": answers(status=503, headers={"Retry-After": "0"}),
    "status 429": answers(status=429, headers={"Retry-After": "2"}),
    "status 401": answers(status=401, body=b"unauthorized"),
    "frozen": answers(is_frozen=True),
    "cut": answers(status=200, body=b"x" * 1_000, is_cut=True),
}


@on_redis
@pytest.mark.parametrize("fault", FAULTS)
def test_records_wait_until_the_receiver_works(accounts, receiver, sink, fault):
    receiver.start()
    account = accounts()
    account.publish(5)
    eventually(lambda: delivered(receiver, sink))
    FAULTS[fault](receiver, sink)
    before = len(receiver.requests)
    account.publish(20)
    if fault not in {"absent", "restart"}:
        eventually(lambda: len(receiver.requests) > before)
    account.publish(20)
    account.check()
    receiver.answer = sink.success
    if fault == "absent":
        receiver.start()
    outcomes = account.outcomes()
    assert set(outcomes) == {DELIVERED}
    account.check()
    total = account.tasks * sink.records_of_a_task
    until_equal(lambda: delivered(receiver, sink) >= outcomes[DELIVERED] >= total, want=True)
    if fault not in {"absent", "restart", "slow"}:
        bodies = Counter(request.body for request in receiver.requests)
        assert max(bodies.values()) > 1, "a payload is sent again unchanged"
    check_pauses(receiver)


def check_pauses(receiver: Receiver) -> None:
    """Check that the exporter waits as long as the receiver asks for, and does not flood one that fails."""
    for request, following in pairwise(receiver.requests):
        if request.answer.status >= 400:
            asked_for = float(request.answer.headers.get("Retry-After", 0))
            assert following.at - request.at >= max(0.05, asked_for)


@on_redis
def test_a_certificate_of_an_unknown_authority_is_refused(accounts, receiver, tmp_path):
    known, unknown = trustme.CA(), trustme.CA()
    known.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    receiver.tls = _tls(unknown)
    receiver.start()
    account = accounts(environment={"SSL_CERT_FILE": str(tmp_path / "ca.pem")})
    account.publish(10)
    eventually(lambda: "certificate verify failed" in account._app.text())
    account.check()
    assert receiver.requests == []
    receiver.stop()
    receiver.tls = _tls(known)
    receiver.start()
    assert set(account.outcomes()) == {DELIVERED}
    account.check()


def _tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@on_redis
def test_a_partial_write_loses_what_the_receiver_rejects(accounts, receiver, sink):
    receiver.start()
    receiver.answer = sink.one_rejected
    account = accounts()
    account.publish(20)
    account.check()
    eventually(lambda: account.outcomes().get(REJECTED, 0) > 0)
    receiver.answer = sink.success
    account.publish(5)
    outcomes = account.outcomes()
    rejections = sum(request.answer == sink.one_rejected for request in receiver.requests)
    assert outcomes[REJECTED] == rejections
    assert set(outcomes) == {DELIVERED, REJECTED}
    account.check()


@on_redis
@pytest.mark.parametrize("status", [400, 413])
def test_what_the_receiver_never_takes_is_dropped_and_counted(accounts, receiver, sink, status):
    receiver.start()
    receiver.answer = Answer(status, b"never")
    account = accounts()
    account.publish(20)
    account.check()
    outcomes = account.outcomes()
    assert set(outcomes) == {{400: REJECTED, 413: TOO_LARGE}[status]}
    assert sum(outcomes.values()) >= account.tasks * sink.records_of_a_task
    account.check()


@on_redis
def test_a_full_buffer_drops_the_oldest_records_and_counts_them(accounts, receiver, sink):
    account = accounts("--sink-buffer=1000")
    account.publish(1_000 // sink.records_of_a_task + 200)
    account.check()
    dropped = account.scrape().value(RECORDS, sink=sink.name, outcome=BUFFER_FULL)
    assert dropped >= account.tasks * sink.records_of_a_task - 1_000
    receiver.start()
    outcomes = account.outcomes()
    assert set(outcomes) == {DELIVERED, BUFFER_FULL}
    account.check()
    assert delivered(receiver, sink) >= outcomes[DELIVERED]


@on_redis
def test_what_is_buffered_is_sent_at_the_end(accounts, receiver, sink):
    receiver.start()
    account = accounts("--sink-flush-interval=60")
    account.publish(50)
    account.check()
    account._app.stop_cleanly()
    assert delivered(receiver, sink) >= 50 * sink.records_of_a_task


@on_redis
def test_what_cannot_be_sent_at_the_end_is_logged(accounts, receiver, sink):
    account = accounts()
    account.publish(50)
    account.check()
    buffered = account.scrape().value(BUFFERED, sink=sink.name)
    assert account._app.stop(deadline=8) == 0
    (line,) = [line for line in account._app.text().splitlines() if "were not sent before the end" in line]
    lost = int(line.partition(f"sink {sink.name}: ")[2].partition(" records")[0])
    assert lost >= buffered >= 50 * sink.records_of_a_task
    assert receiver.requests == []
