"""A broker that is down, stopped or frozen: `/metrics` is served from memory, and the exporter reconnects."""

import signal
from itertools import count

import pytest
from harness.events import publish_events, task_events
from harness.exporter import Exporter
from harness.servers import RabbitServer, RedisServer
from harness.time_spans import TimeSpan
from harness.waiting import eventually, stays, until_equal
from harness.workers import Worker
from harness.workers import client as make_client

#: For detecting a broken connection, or for reconnecting: heartbeats, pings and the longest back-off.
RECONNECT_SECONDS = 45.0


@pytest.fixture(params=[RedisServer, RabbitServer])
def own_server(request, tmp_path):
    """Return a broker for one test, which has not started."""
    server = request.param(tmp_path / "server")
    yield server
    server.__exit__(None, None, None)


def successes(app):
    return app.total("celery_tasks_total", state="SUCCESS")


def statuses(app):
    """Return the statuses of /metrics, liveness, readiness and /health."""
    return tuple(app.get(path).status for path in ("/metrics", "/-/healthy", "/-/ready", "/health"))


UP, DOWN = (200, 200, 200, 200), (200, 200, 503, 503)


def test_the_page_of_an_exporter_that_cannot_connect_shows_no_green_result(running, tmp_path, own_server):
    """Right after the start, when /-/ready is 503 already, and later."""
    app = running(Exporter(tmp_path / "exporter", own_server.url))
    page = app.get("/").text
    assert app.get("/-/ready").status == 503
    assert "No problems found" not in page
    assert "the exporter is starting, and the event subscription is not open yet" in page
    eventually(lambda: "start the broker, or correct host and port in --broker-url" in app.get("/").text, 20)
    eventually(lambda: "no event subscription on the broker for " in app.get("/").text, 20)


def test_a_broker_starts_after_the_exporter_and_restarts(running, tmp_path, own_server):
    """One exporter keeps its counts, and counts the tasks after each start of the broker."""
    app = running(Exporter(tmp_path / "exporter", own_server.url))
    assert app.value("celery_broker_up") == 0
    assert statuses(app) == DOWN

    def run_tasks(node, total):
        with (
            Worker(tmp_path / node, own_server.url, node, pool="solo") as worker,
            make_client(own_server.url) as client,
        ):
            for _ in range(5):
                client.send_task("tasks.succeed", queue="celery")
            until_equal(lambda: successes(app), total, 20)
            worker.stop()  # so that it acknowledges all messages, and the next worker runs none of them again

    with own_server:
        app.connected(RECONNECT_SECONDS)
        assert statuses(app) == UP
        before = app.total("celery_exporter_reconnects_total")
        run_tasks("first@box", 5)

        own_server.stop()
        until_equal(lambda: app.value("celery_broker_up"), 0, RECONNECT_SECONDS)
        until_equal(lambda: statuses(app), DOWN)
        assert successes(app) == 5
        assert app.value("celery_worker_up", worker="first@box") is not None

        own_server.start().wait_ready()
        app.connected(RECONNECT_SECONDS)
        assert statuses(app) == UP
        assert app.total("celery_exporter_reconnects_total") > before
        assert successes(app) == 5
        run_tasks("second@box", 10)


def test_a_frozen_broker_is_detected_and_delays_neither_scrapes_nor_shutdown(running, tmp_path, own_server):
    """SIGSTOP leaves connections open. `celery_broker_up` becomes 0, and 1 again after SIGCONT.

    Three exporters stop in time: right after the freeze, after a start during it, and after it is detected.
    """

    def scrape_time():
        with TimeSpan(app.pid) as span:
            assert app.get("/metrics").status == 200
        return span.seconds

    with own_server:
        app, first, second, late = (
            Exporter(tmp_path / name, own_server.url, "-Q", "celery")
            for name in ("exporter", "first", "second", "late")
        )
        for instance in running(app, first, second):
            instance.connected()
        publish_events(own_server.url, *task_events(1))
        until_equal(lambda: successes(app), 1)
        own_server.pause()
        try:
            first.stop_cleanly(signal.SIGTERM)
            running(late)
            stays(lambda: scrape_time() < 1.0, 2)
            assert late.value("celery_broker_up") == 0
            late.stop_cleanly(signal.SIGINT)
            until_equal(lambda: app.value("celery_broker_up"), 0, RECONNECT_SECONDS)
            until_equal(lambda: statuses(app), DOWN, RECONNECT_SECONDS)
            assert scrape_time() < 1.0
            # The length is absent instead of stale.
            until_equal(lambda: app.value("celery_queue_length"), None, RECONNECT_SECONDS)
            second.stop_cleanly(signal.SIGTERM)
        finally:
            own_server.resume()
        app.connected(RECONNECT_SECONDS)
        numbers = count(2)

        def is_counting():
            publish_events(own_server.url, *task_events(next(numbers)))
            return successes(app) > 1

        eventually(is_counting, RECONNECT_SECONDS, every=0.5)


def test_the_exporter_resubscribes_after_redis_disconnects_it(running, tmp_path, redis_broker):
    """Redis disconnects slow subscribers; here, on a command."""
    app = running(Exporter(tmp_path / "exporter", redis_broker.url)).connected()
    publish_events(redis_broker.url, *task_events(1))
    until_equal(lambda: successes(app), 1)
    assert redis_broker.server.client().execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
    eventually(lambda: app.total("celery_exporter_reconnects_total") >= 1, RECONNECT_SECONDS)
    app.connected(RECONNECT_SECONDS)
    publish_events(redis_broker.url, *task_events(2))
    until_equal(lambda: successes(app), 2)
