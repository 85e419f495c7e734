"""Slow clients neither delay scrapes nor use much memory, and are disconnected after a time limit."""

from __future__ import annotations

import gzip
import socket
import ssl
from functools import partial

import psutil
import pytest
from harness.exporter import Exporter, send_request
from harness.slow_clients import (
    STEP_SECONDS,
    HalfClosedClient,
    IdleClient,
    SlowReader,
    SlowSender,
    StalledHandshake,
    slow_clients,
)
from harness.time_spans import TimeSpan
from harness.waiting import ANSWER_TIMEOUT, eventually
from harness.web_config import WebConfigExporter, unreachable_url

from celery_exporter.web import connections, server

#: Makes a response of 480 kB with 60 samples. That exceeds the socket buffers of a client that does not read.
LARGE = ("--static-label", "padding=" + "x" * 8_000)
CLIENTS_OF_EACH_KIND = 180
MAX_MEMORY_BYTES = 300e6


@pytest.fixture
def plain(tmp_path, running) -> Exporter:
    return running(Exporter(tmp_path / "exporter", unreachable_url(), *LARGE))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return one exporter for all tests that measure nothing."""
    with Exporter(tmp_path_factory.mktemp("exporter"), unreachable_url()) as exporter:
        yield exporter
        exporter.stop_cleanly()


@pytest.fixture
def tls_exporter(tmp_path, running) -> WebConfigExporter:
    return running(WebConfigExporter(tmp_path / "exporter", *LARGE, tls_server_config={}))


@pytest.fixture(params=["plain", "tls"])
def scene(request):
    """Return an exporter, and factories of the kinds of slow clients that can connect to it."""
    if request.param == "plain":
        exporter = request.getfixturevalue("plain")
        kinds = (IdleClient, HalfClosedClient, SlowSender, SlowReader)
        return exporter, [partial(kind, exporter.port) for kind in kinds]
    exporter = request.getfixturevalue("tls_exporter")
    client = exporter.context()
    return exporter, [
        *(partial(kind, exporter.port) for kind in (IdleClient, StalledHandshake)),
        *(partial(kind, exporter.port, client) for kind in (IdleClient, SlowSender, SlowReader)),
    ]


def scrape_times(exporter: Exporter, count: int = 40) -> list[float]:
    """Return the sorted durations of scrapes in seconds, half of them on one persistent connection."""
    persistent = exporter.connect()
    times = []
    for number in range(count):
        with TimeSpan(exporter.pid) as span:
            response = send_request(persistent, "/metrics", {}) if number % 2 else exporter.get("/metrics")
        times.append(span.seconds)
        assert response.status == 200
    persistent.close()
    return sorted(times)


def sockets(exporter: Exporter) -> int:
    """Return the number of its open connections."""
    return sum(
        connection.laddr.port == exporter.port and connection.status != psutil.CONN_LISTEN
        for connection in psutil.Process(exporter.pid).net_connections("tcp")
    )


def test_many_slow_clients_do_not_delay_scrapes_and_shutdown(scene):
    exporter, kinds = scene
    with slow_clients(CLIENTS_OF_EACH_KIND, *kinds) as clients:
        # The last client of each round has a response, so all have connected.
        eventually(lambda: clients.served(SlowReader))
        times = scrape_times(exporter)
        assert times[len(times) // 2] < 0.1, times
        assert times[-1] < 0.5, times
        shortest = clients.shortest_connection(IdleClient, StalledHandshake, SlowSender)
        assert shortest > connections.REQUEST_HEAD_TIMEOUT_SECONDS - STEP_SECONDS
        assert psutil.Process(exporter.pid).memory_info().rss < MAX_MEMORY_BYTES
        exporter.stop_cleanly()


def test_clients_without_a_complete_request_are_disconnected(scene):
    exporter, kinds = scene
    with slow_clients(20, *(kind for kind in kinds if kind.func is not SlowReader)) as clients:
        span = TimeSpan.until(
            lambda: clients.connected(IdleClient, HalfClosedClient, StalledHandshake, SlowSender) == 0,
            exporter.pid,
            deadline=20,
        )
    shortest = clients.shortest_connection(SlowSender, IdleClient)
    assert shortest > connections.REQUEST_HEAD_TIMEOUT_SECONDS - STEP_SECONDS
    assert span.seconds < connections.REQUEST_HEAD_TIMEOUT_SECONDS + STEP_SECONDS + 2


@pytest.mark.long
def test_clients_that_do_not_read_are_disconnected(scene):
    exporter, kinds = scene
    with slow_clients(20, *(kind for kind in kinds if kind.func is SlowReader)):
        eventually(lambda: sockets(exporter) == 20, 10)
        with TimeSpan() as span:
            eventually(lambda: sockets(exporter) == 0, connections.READ_TIMEOUT_SECONDS + 10)
        assert span.elapsed_seconds > connections.READ_TIMEOUT_SECONDS - 5


def test_unread_responses_use_little_memory_and_delay_no_scrape(scene):
    """500 responses of 480 kB are 240 MB. Compressed they are a tenth, so no client is disconnected early."""
    exporter, kinds = scene
    slow_reader = next(kind for kind in kinds if kind.func is SlowReader)
    before = psutil.Process(exporter.pid).memory_info().rss
    with slow_clients(500, slow_reader):
        scrape_times(exporter, 4)
        assert psutil.Process(exporter.pid).memory_info().rss - before < 160e6


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_hundred_slow_readers_receive_the_complete_page(plain, encoding):
    """Each client reads a part, and then waits while the others read."""
    request = f"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {encoding}\r\nConnection: close\r\n\r\n"
    address = "127.0.0.1", plain.port
    readers = [socket.create_connection(address, timeout=ANSWER_TIMEOUT) for _ in range(100)]
    for reader in readers:
        reader.sendall(request.encode())
    parts = [reader.recv(1_000) for reader in readers]
    for part, reader in zip(parts, readers, strict=True):
        page = b"".join([part, *iter(partial(reader.recv, 4_096), b"")])
        reader.close()
        head, _, body = page.partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0]
        (length,) = (int(line.split()[1]) for line in head.splitlines() if line.startswith(b"content-length"))
        assert len(body) == length
        text = gzip.decompress(body) if encoding == "gzip" else body
        assert text.endswith(b"\n")
        assert len(text) > 400_000


def test_scrapes_succeed_while_idle_clients_exceed_the_connection_limit(plain):
    """The connections that have waited longest are closed, so a scrape does not wait."""
    persistent = plain.connect()
    assert send_request(persistent, "/metrics", {}).status == 200
    with slow_clients(server.MAX_CONNECTIONS + 200, partial(IdleClient, plain.port)) as clients:
        eventually(lambda: sockets(plain) > server.MAX_CONNECTIONS - 100)
        times = scrape_times(plain)
        assert times[-1] < 0.5, times
        assert sockets(plain) <= server.MAX_CONNECTIONS
        eventually(lambda: clients.connected(IdleClient) <= server.MAX_CONNECTIONS)
        plain.stop_cleanly()


def test_unfinished_responses_at_shutdown_log_no_traceback(scene):
    exporter, kinds = scene
    with slow_clients(CLIENTS_OF_EACH_KIND, next(kind for kind in kinds if kind.func is SlowReader)):
        exporter.stop_cleanly()


def test_file_descriptors_remain_for_the_broker_with_many_clients(tmp_path, running, redis_broker):
    exporter = Exporter(
        tmp_path / "exporter", redis_broker.url, wrapper=("sh", "-c", 'ulimit -n 128; exec "$@"', "sh")
    )
    running(exporter)
    with slow_clients(300, partial(IdleClient, exporter.port)):
        exporter.connected()
        assert psutil.Process(exporter.pid).num_fds() < 128
        redis_broker.server.client().client_kill_filter(_type="pubsub")
        eventually(lambda: exporter.value("celery_exporter_reconnects_total") == 1)
        exporter.connected()
        assert "Too many open files" not in exporter.text()


@pytest.mark.parametrize(
    "extra",
    [b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 50, b"\x00\xff\r\n\r\n", b"zzz\r\n"],
    ids=["pipelined", "binary", "no chunk"],
)
@pytest.mark.parametrize(
    "body", [b"", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 9\r\n"], ids=["", "chunked", "length"]
)
def test_bytes_after_a_valid_request_log_no_traceback(shared, body, extra):
    """They are pipelined requests or invalid bytes, and arrive before the response or after it."""
    for pause in (False, True):
        with socket.create_connection(("127.0.0.1", shared.port), timeout=ANSWER_TIMEOUT) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n%s\r\n" % body)
            if pause:
                assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
            client.sendall(extra)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65_536):
                pass
    assert shared.get("/-/healthy").status == 200
    assert "Traceback" not in shared.text()


def test_invalid_bytes_instead_of_a_tls_handshake_log_no_traceback(tls_exporter):
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + b"\xff" * 600,
        b"\x00" * 70_000,
        b"",
    ):
        with socket.create_connection(("127.0.0.1", tls_exporter.port), timeout=ANSWER_TIMEOUT) as client:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65_536):
                    pass
            except OSError:
                pass
    with (
        socket.create_connection(("127.0.0.1", tls_exporter.port), timeout=ANSWER_TIMEOUT) as raw,
        pytest.raises(ssl.SSLError),
    ):
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")
    assert tls_exporter.get("/-/healthy").status == 200
    assert "Traceback" not in tls_exporter.text()
