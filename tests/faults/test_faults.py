"""The law under every fault, held by `Watch`:

/metrics answers in 100 ms (median) and 500 ms (worst) and its counters never fall; liveness stays green;
readiness turns red within 15 s, and green again within 10 s of the end of the fault; threads and sockets
return to their number before it. `make test` runs these over Redis, `make faults` all of them.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu
import psutil
import pytest
from harness.events import one_task, publish_events
from harness.exporter import Exporter, Samples
from harness.proxy import Proxy
from harness.servers import RabbitServer, RedisServer
from harness.waiting import eventually

Start = Callable[..., Any]

RED, GREEN = 15.0, 10.0
MEDIAN, WORST = 0.1, 0.5
#: Threads that are made as scrapes come in side by side.
RENDERERS = 2
COUNTING = ("_total", "_count", "_bucket", "_sum")


class Watched(Exporter):
    """An exporter, and the broker's own address for what the test publishes beside it."""

    def __init__(self, folder: Path, server: Any, *arguments: str, url: str | None = None) -> None:
        super().__init__(folder, url or server.url, "-Q", "celery", *arguments)
        self.broker_url = server.url


class Watch(threading.Thread):
    """Scrapes all the time, and remembers what should not have been."""

    def __init__(self, app: Exporter) -> None:
        super().__init__(daemon=True)
        self.app = app
        self.times: list[float] = []
        self.faults: list[str] = []
        self._last = Samples()
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.1):
            begin = time.monotonic()
            try:
                samples = self.app.samples()
            except (OSError, AssertionError) as error:
                self.faults.append(f"/metrics: {error!r}")
                continue
            self.times.append(time.monotonic() - begin)
            if self.app.get("/-/healthy").status != 200:
                self.faults.append("/-/healthy is not 200")
            self.faults += [
                f"{series} fell from {was} to {samples.get(series)}"
                for series, was in self._last.items()
                if series[0].endswith(COUNTING) and samples.get(series, 0.0) < was
            ]
            self._last = samples

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        assert self.faults == []
        assert statistics.median(self.times) < MEDIAN
        assert max(self.times) < WORST


@contextmanager
def watched(app: Watched) -> Iterator[None]:
    """Hold the law over what happens inside."""
    process = psutil.Process(app.pid)

    def size() -> tuple[int, int]:
        return process.num_threads(), len([one for one in process.net_connections() if not of_http(app, one)])

    counted(app, 1)
    before = size()
    watch = Watch(app)
    watch.start()
    try:
        yield
        counted(app, 1)
    finally:
        watch.stop()

    def is_back() -> bool:
        now = size()
        assert now[0] <= before[0] + RENDERERS, now
        assert now[1] <= before[1], now
        return True

    eventually(is_back, 15, what=f"threads and connections back to {before}")


def of_http(app: Exporter, connection: Any) -> bool:
    return bool(connection.laddr and connection.laddr.port == app.port)


numbers = itertools.count(1)


def counted(app: Watched, more: float) -> None:
    """Hold that it hears: what is published is counted, if need be at the second try."""
    before = app.total("celery_tasks_total", state="SUCCESS")

    def heard() -> bool:
        publish_events(app.broker_url, *one_task(next(numbers)))
        return app.total("celery_tasks_total", state="SUCCESS") >= before + more

    eventually(heard, GREEN, every=0.5)


def is_ready(app: Watched) -> bool:
    return app.get("/-/ready").status == 200


def turns_red(app: Watched) -> None:
    eventually(lambda: not is_ready(app), RED, what="red")
    assert app.value("celery_broker_up") == 0


def turns_green(app: Watched) -> None:
    eventually(lambda: is_ready(app), GREEN, what="green")
    assert app.value("celery_broker_up") == 1


@pytest.fixture(params=[RedisServer, pytest.param(RabbitServer, marks=pytest.mark.long)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with request.param(tmp_path / "server") as started:
        yield started


@pytest.fixture
def proxy(server: Any) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def app(running: Start, server: Any, proxy: Proxy, tmp_path: Path) -> Watched:
    """An exporter behind the proxy; the tests publish beside it."""
    url = server.url.replace(f":{server.port}", f":{proxy.port}")
    exporter = Watched(tmp_path / "exporter", server, url=url)
    running(exporter).connected()
    return exporter


@pytest.mark.parametrize("fault", ["black_hole", "orphan", "refuse"])
def test_a_connection_that_is_lost(app: Watched, proxy: Proxy, fault: str) -> None:
    """Swallowed, half-open or refused: noticed, and mended when the way is free again."""
    with watched(app):
        getattr(proxy, fault)()
        if fault == "orphan":  # new connections pass, so it may be back before anybody looked
            reconnects = app.total("celery_exporter_reconnects_total")
            eventually(lambda: app.total("celery_exporter_reconnects_total") > reconnects, RED)
        else:
            turns_red(app)
            proxy.pass_on()
        turns_green(app)


@pytest.mark.parametrize("fault", ["cut", "half_close"])
def test_a_connection_that_is_ended(app: Watched, proxy: Proxy, fault: str) -> None:
    """It is opened again at once, and counted."""
    with watched(app):
        getattr(proxy, fault)()
        eventually(lambda: app.total("celery_exporter_reconnects_total") >= 1, RED)
        turns_green(app)


def test_a_slow_way(app: Watched, proxy: Proxy) -> None:
    """Half a second each way is no fault: it stays ready, and events are counted."""
    with watched(app):
        proxy.delay(0.5)
        counted(app, 3)
        assert is_ready(app)
        assert app.total("celery_exporter_reconnects_total") == 0
        proxy.pass_on()


def test_redis_cuts_off_a_subscriber_that_is_too_slow(running: Start, tmp_path: Path) -> None:
    """Its output-buffer limit ends the subscription: reconnected, counted."""
    with RedisServer(tmp_path / "server") as server:
        app = Watched(tmp_path / "exporter", server)
        running(app).connected()
        redis = server.client()
        redis.config_set("client-output-buffer-limit", "pubsub 1mb 1mb 1")
        with watched(app):
            psutil.Process(app.pid).suspend()
            for _ in range(400):
                redis.publish("/0.celeryev/worker.heartbeat", b"x" * 100_000)
            psutil.Process(app.pid).resume()
            eventually(lambda: app.total("celery_exporter_reconnects_total") >= 1, RED)
            turns_green(app)


def test_rabbitmq_takes_the_event_queue_away(running: Start, tmp_path: Path) -> None:
    """The consumer is cancelled by the broker: subscribed again."""
    with RabbitServer(tmp_path / "server") as server:
        app = Watched(tmp_path / "exporter", server, "--event-queue-durable")
        running(app).connected()
        with watched(app):
            with kombu.Connection(server.url) as connection:
                connection.default_channel.queue_delete("celeryev.celery-exporter")
            eventually(lambda: app.total("celery_exporter_reconnects_total") >= 1, RED)
            turns_green(app)


@pytest.mark.long
def test_amqp_heartbeats_are_sent_under_steady_traffic(running: Start, tmp_path: Path) -> None:
    """With a heartbeat of 2 s RabbitMQ ends a silent client within 6 s, however much it sends to it."""
    with RabbitServer(tmp_path / "server") as server:
        app = Watched(tmp_path / "exporter", server, "--broker-transport-option", "heartbeat=2")
        running(app).connected()
        with watched(app):
            begin = time.monotonic()
            while time.monotonic() < begin + 15:
                publish_events(server.url, *one_task(next(numbers)))
            assert app.total("celery_exporter_reconnects_total") == 0
