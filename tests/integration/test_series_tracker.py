"""New series are at 0 on each page until it was read: over real connections, whole ones and cut ones."""

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
#: Makes a page of some megabytes: more than a client that does not read, and the kernel, take.
LARGE = ("--static-label", "padding=" + "x" * 8_000)
FAILED = "celery_task_failures_total"


@pytest.fixture
def app(running, exporter) -> Exporter:
    found = running(exporter(*LARGE)).connected()
    for _ in range(3):  # so it is known
        found.samples(SCRAPER)
    return found


def fail(app: Exporter, broker: object) -> None:
    """Have it count a failure, and see that it has."""
    *life, end = task_events(1)
    publish_events(broker.url, *life, {**end, "type": "task-failed", "exception": "FirstError('x')"})
    until_equal(lambda: app.total(FAILED), 1)


def cut_scrape(port: int, headers: dict[str, str]) -> None:
    """Read the beginning of a page, and refuse the rest (RST)."""
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


def test_people_see_the_count_at_once_and_change_nothing(app, broker):
    fail(app, broker)
    for _ in range(5):
        assert app.total(FAILED) == 1
    assert app.samples(SCRAPER).total(FAILED) == 0
    eventually(lambda: app.samples(SCRAPER).total(FAILED) == 1)


@pytest.mark.parametrize("forwarded", [{}, {"X-Forwarded-For": "10.0.0.1"}], ids=["", "as from elsewhere"])
def test_a_scrape_that_is_cut_in_the_middle_has_shown_nothing(app, broker, forwarded):
    fail(app, broker)
    for _ in range(5):
        cut_scrape(app.port, {**SCRAPER, **forwarded})
    assert app.samples(SCRAPER).total(FAILED) == 0
    eventually(lambda: app.samples(SCRAPER).total(FAILED) == 1)


def test_servers_behind_many_addresses_see_no_count_fall(app, broker):
    """Of the loopback network, each scrape from another one, or seventeen in turn."""
    fail(app, broker)
    seen = []
    for number in range(60):
        address = f"127.0.0.{2 + number % (17 if number > 30 else 250)}"
        connection = http.client.HTTPConnection("127.0.0.1", app.port, source_address=(address, 0))
        connection.request("GET", "/metrics", headers=SCRAPER)
        text = connection.getresponse().read().decode()
        connection.close()
        seen.append(
            sum(line.endswith(" 1.0") for line in text.splitlines() if line.startswith(f"{FAILED}{{"))
        )
    assert seen == sorted(seen), json.dumps(seen)
