"""Clients that keep the listener waiting cannot hold up a scrape, nor stay for ever, nor cost much."""

from __future__ import annotations

import gzip
import socket
import ssl
from functools import partial

import psutil
import pytest
from harness import slow_clients as slow
from harness.exporter import Exporter, ask
from harness.slow_clients import Deaf, Dribbling, HalfClosed, HandshakeStuck, Silent, crowd
from harness.time_spans import Span
from harness.waiting import ANSWER_TIMEOUT, eventually
from harness.web_config import Guarded, nobody

from celery_exporter.web import connections, server

#: Makes each answer some 480 kB, of 60 samples: more than a client that does not read, and the kernel, take.
LARGE = ("--static-label", "padding=" + "x" * 8_000)
OF_EACH = 180
MEMORY = 300e6  # bytes


@pytest.fixture
def plain(tmp_path, running) -> Exporter:
    return running(Exporter(tmp_path / "exporter", nobody(), *LARGE))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return an exporter for all tests that do not measure it."""
    with Exporter(tmp_path_factory.mktemp("exporter"), nobody()) as exporter:
        yield exporter
        exporter.end_well()


@pytest.fixture
def guarded(tmp_path, running) -> Guarded:
    return running(Guarded(tmp_path / "exporter", *LARGE, tls_server_config={}))


@pytest.fixture(params=["plain", "tls"])
def scene(request):
    """Return an exporter and the kinds of slow clients that it can have."""
    if request.param == "plain":
        exporter = request.getfixturevalue("plain")
        return exporter, [partial(kind, exporter.port) for kind in (Silent, HalfClosed, Dribbling, Deaf)]
    exporter = request.getfixturevalue("guarded")
    client = exporter.context()
    return exporter, [
        *(partial(kind, exporter.port) for kind in (Silent, HandshakeStuck)),
        *(partial(kind, exporter.port, client) for kind in (Silent, Dribbling, Deaf)),
    ]


def scrape_times(exporter: Exporter, count: int = 40) -> list[float]:
    """Return the seconds that scrapes take, sorted; on new connections and on one that is kept."""
    kept = exporter.connect()
    times = []
    for number in range(count):
        with Span(exporter.pid) as span:
            answer = ask(kept, "/metrics", {}) if number % 2 else exporter.get("/metrics")
        times.append(span.seconds)
        assert answer.status == 200
    kept.close()
    return sorted(times)


def sockets(exporter: Exporter) -> int:
    """Return how many connections it holds."""
    return sum(
        each.laddr.port == exporter.port and each.status != psutil.CONN_LISTEN
        for each in psutil.Process(exporter.pid).net_connections("tcp")
    )


def test_a_crowd_of_each_kind_holds_up_no_scrape_and_no_end(scene):
    exporter, kinds = scene
    with crowd(OF_EACH, *kinds) as slow_ones:
        eventually(lambda: slow_ones.served(Deaf))  # they are in; the last of each round has its answer
        times = scrape_times(exporter)
        assert times[len(times) // 2] < 0.1, times
        assert times[-1] < 0.5, times
        assert slow_ones.shortest_stay(Silent, HandshakeStuck, Dribbling) > connections.HEAD - slow.PACE
        assert psutil.Process(exporter.pid).memory_info().rss < MEMORY
        exporter.end_well()


def test_who_does_not_say_what_he_wants_is_turned_out(scene):
    exporter, kinds = scene
    with crowd(20, *(kind for kind in kinds if kind.func is not Deaf)) as slow_ones:
        span = Span.until(
            lambda: slow_ones.connected(Silent, HalfClosed, HandshakeStuck, Dribbling) == 0,
            exporter.pid,
            deadline=20,
        )
    stayed = [one.gone - one.since for one in (*slow_ones.of(Dribbling), *slow_ones.of(Silent))]
    assert min(stayed) > connections.HEAD - slow.PACE
    assert span.seconds < connections.HEAD + slow.PACE + 2


@pytest.mark.long
def test_who_does_not_read_is_turned_out(scene):
    exporter, kinds = scene
    with crowd(20, *(kind for kind in kinds if kind.func is Deaf)):
        eventually(lambda: sockets(exporter) == 20, 10)
        with Span() as span:
            eventually(lambda: sockets(exporter) == 0, connections.READ + 10)
        assert span.elapsed_seconds > connections.READ - 5


def test_answers_that_nobody_reads_cost_little_and_hold_up_nobody(scene):
    """500 times 480 kB would be 240 MB; compressed they are a tenth, and nobody need go before his time."""
    exporter, kinds = scene
    deaf = next(kind for kind in kinds if kind.func is Deaf)
    before = psutil.Process(exporter.pid).memory_info().rss
    with crowd(500, deaf):
        scrape_times(exporter, 4)
        assert psutil.Process(exporter.pid).memory_info().rss - before < 160e6


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_hundred_slow_readers_each_get_the_whole_page(plain, encoding):
    """Each reads a part and then nothing for a while, while the others do."""
    request = f"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {encoding}\r\nConnection: close\r\n\r\n"
    address = "127.0.0.1", plain.port
    readers = [socket.create_connection(address, timeout=ANSWER_TIMEOUT) for _ in range(100)]
    for reader in readers:
        reader.sendall(request.encode())
    firsts = [reader.recv(1_000) for reader in readers]
    for first, reader in zip(firsts, readers, strict=True):
        page = b"".join([first, *iter(partial(reader.recv, 4_096), b"")])
        reader.close()
        head, _, body = page.partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0]
        (length,) = (int(line.split()[1]) for line in head.splitlines() if line.startswith(b"content-length"))
        assert len(body) == length
        text = gzip.decompress(body) if encoding == "gzip" else body
        assert text.endswith(b"\n")
        assert len(text) > 400_000


def test_a_crowd_that_does_nothing_shuts_nobody_out(plain):
    """More than are taken at a time: those that wait for longest make room, and Prometheus does not wait."""
    kept = plain.connect()
    assert ask(kept, "/metrics", {}).status == 200
    with crowd(server.MAX_CONNECTIONS + 200, partial(Silent, plain.port)) as slow_ones:
        eventually(lambda: sockets(plain) > server.MAX_CONNECTIONS - 100)
        times = scrape_times(plain)
        assert times[-1] < 0.5, times
        assert sockets(plain) <= server.MAX_CONNECTIONS
        eventually(lambda: slow_ones.connected(Silent) <= server.MAX_CONNECTIONS)
        plain.end_well()


def test_answers_under_way_at_the_end_leave_no_traceback(scene):
    exporter, kinds = scene
    with crowd(OF_EACH, next(kind for kind in kinds if kind.func is Deaf)):
        exporter.end_well()


def test_a_crowd_leaves_descriptors_for_the_broker(tmp_path, running, redis_broker):
    exporter = Exporter(
        tmp_path / "exporter", redis_broker.url, wrapper=("sh", "-c", 'ulimit -n 128; exec "$@"', "sh")
    )
    running(exporter)
    with crowd(300, partial(Silent, exporter.port)):
        exporter.connected()
        assert psutil.Process(exporter.pid).num_fds() < 128
        redis_broker.server.client().client_kill_filter(_type="pubsub")
        eventually(lambda: exporter.value("celery_exporter_reconnects_total") == 1)
        exporter.connected()
        assert "Too many open files" not in exporter.text()


@pytest.mark.parametrize(
    "after",
    [b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 50, b"\x00\xff\r\n\r\n", b"zzz\r\n"],
    ids=["more", "rubbish", "no chunk"],
)
@pytest.mark.parametrize(
    "body", [b"", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 9\r\n"], ids=["", "chunked", "length"]
)
def test_bytes_behind_a_good_request_leave_no_traceback(shared, body, after):
    """What is behind a request may be another one or rubbish; it comes before its answer, or after it."""
    for pause in (False, True):
        with socket.create_connection(("127.0.0.1", shared.port), timeout=ANSWER_TIMEOUT) as stranger:
            stranger.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n%s\r\n" % body)
            if pause:
                assert stranger.recv(65_536).startswith(b"HTTP/1.1 200 ")
            stranger.sendall(after)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(65_536):
                pass
    assert shared.get("/-/healthy").status == 200
    assert "Traceback" not in shared.text()


def test_rubbish_instead_of_a_handshake_leaves_no_traceback(guarded):
    for rubbish in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + b"\xff" * 600,
        b"\x00" * 70_000,
        b"",
    ):
        with socket.create_connection(("127.0.0.1", guarded.port), timeout=ANSWER_TIMEOUT) as stranger:
            try:
                stranger.sendall(rubbish)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(65_536):
                    pass
            except OSError:
                pass
    with (
        socket.create_connection(("127.0.0.1", guarded.port), timeout=ANSWER_TIMEOUT) as raw,
        pytest.raises(ssl.SSLError),
    ):
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")
    assert guarded.get("/-/healthy").status == 200
    assert "Traceback" not in guarded.text()
