"""A scraper receives new series at 0 first, over complete and interrupted connections."""

import http.client
import json
import socket
import struct

import pytest
from harness.broker_marks import on_redis
from harness.events import publish_events, task_events
from harness.exporter import SCRAPER, Exporter
from harness.waiting import ANSWER_TIMEOUT, eventually, until_equal

pytestmark = on_redis
#: Makes a page of some megabytes, which exceeds the socket buffers of a client that does not read.
LARGE = ("--static-label", "padding=" + "x" * 8_000)
FAILURES = "celery_task_failures_total"


@pytest.fixture
def app(running, exporter) -> Exporter:
    """Return an exporter that a scraper has scraped before."""
    app = running(exporter(*LARGE)).connected()
    for _ in range(3):
        app.samples(SCRAPER)
    return app


def fail(app: Exporter, broker: object) -> None:
    """Publish a failed task, and wait until it is counted."""
    *events, end = task_events(1)
    publish_events(broker.url, *events, {**end, "type": "task-failed", "exception": "FirstError('x')"})
    until_equal(lambda: app.total(FAILURES), 1)


def cut_scrape(port: int, headers: dict[str, str]) -> None:
    """Read the beginning of a page, and reset the connection."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.settimeout(ANSWER_TIMEOUT)
        client.connect(("127.0.0.1", port))
        head = {"Host": "a", **headers}
        client.sendall(
            b"GET /metrics HTTP/1.1\r\n%s\r\n" % b"".join(b"%s: %s\r\n" % pair for pair in encoded(head))
        )
        assert client.recv(1_000).startswith(b"HTTP/1.1 200 ")


def encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def test_other_clients_receive_the_count_and_do_not_affect_scrapers(app, broker):
    fail(app, broker)
    for _ in range(5):
        assert app.total(FAILURES) == 1
    assert app.samples(SCRAPER).total(FAILURES) == 0
    eventually(lambda: app.samples(SCRAPER).total(FAILURES) == 1)


@pytest.mark.parametrize("forwarded", [{}, {"X-Forwarded-For": "10.0.0.1"}], ids=["direct", "forwarded"])
def test_an_interrupted_scrape_does_not_count_as_exposed(app, broker, forwarded):
    fail(app, broker)
    for _ in range(5):
        cut_scrape(app.port, {**SCRAPER, **forwarded})
    assert app.samples(SCRAPER).total(FAILURES) == 0
    eventually(lambda: app.samples(SCRAPER).total(FAILURES) == 1)


def test_no_count_decreases_for_scrapers_with_many_addresses(app, broker):
    """Each scrape is from another loopback address, or from one of seventeen in turn."""
    fail(app, broker)
    counts = []
    for number in range(60):
        address = f"127.0.0.{2 + number % (17 if number > 30 else 250)}"
        connection = http.client.HTTPConnection("127.0.0.1", app.port, source_address=(address, 0))
        connection.request("GET", "/metrics", headers=SCRAPER)
        text = connection.getresponse().read().decode()
        connection.close()
        counts.append(
            sum(line.endswith(" 1.0") for line in text.splitlines() if line.startswith(f"{FAILURES}{{"))
        )
    assert counts == sorted(counts), json.dumps(counts)
