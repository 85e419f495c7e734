"""The broker absent, gone, frozen, cut: `/metrics` answers from memory, and hearing comes back by itself."""

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

PATIENCE = 45.0  # for a broken connection to be noticed or mended: heartbeats, pings and back-off with a cap


@pytest.fixture(params=[RedisServer, RabbitServer])
def own_server(request, tmp_path):
    """Return a broker of this test's own, not started."""
    server = request.param(tmp_path / "server")
    yield server
    server.__exit__(None, None, None)


def successes(app):
    return app.total("celery_tasks_total", state="SUCCESS")


def statuses(app):
    """Return what the four pages say that are asked when a broker is in trouble."""
    return tuple(app.get(path).status for path in ("/metrics", "/-/healthy", "/-/ready", "/health"))


WELL, DEAF = (200, 200, 200, 200), (200, 200, 503, 503)


def test_absent_at_start_then_there_then_gone_then_back(running, tmp_path, own_server):
    """One exporter lives through all of it; what it counted stays, what happens next is counted."""
    app = running(Exporter(tmp_path / "exporter", own_server.url))
    assert app.value("celery_broker_up") == 0
    assert statuses(app) == DEAF

    def work(node, done):
        with (
            Worker(tmp_path / node, own_server.url, node, pool="solo") as worker,
            make_client(own_server.url) as client,
        ):
            for _ in range(5):
                client.send_task("tasks.succeed", queue="celery")
            until_equal(lambda: successes(app), done, 20)
            worker.stop()  # in good order: what it has not acknowledged would be run again by the next one

    with own_server:
        app.connected(PATIENCE)
        assert statuses(app) == WELL
        before = app.total("celery_exporter_reconnects_total")
        work("first@box", 5)

        own_server.stop()
        until_equal(lambda: app.value("celery_broker_up"), 0, PATIENCE)
        until_equal(lambda: statuses(app), DEAF)
        assert successes(app) == 5
        assert app.value("celery_worker_up", worker="first@box") is not None

        own_server.start().wait_ready()
        app.connected(PATIENCE)
        assert statuses(app) == WELL
        assert app.total("celery_exporter_reconnects_total") > before
        assert successes(app) == 5
        work("second@box", 10)


def test_a_frozen_broker_slows_nothing_and_is_noticed(running, tmp_path, own_server):
    """SIGSTOP leaves connections open and silent: scrapes stay fast, `celery_broker_up` falls, then rises.

    And an exporter ends in time: right after the freeze, when it started into it, and when it has noticed.
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
        for each in running(app, first, second):
            each.connected()
        publish_events(own_server.url, *task_events(1))
        until_equal(lambda: successes(app), 1)
        own_server.pause()
        try:
            first.stop_cleanly(signal.SIGTERM)
            running(late)
            stays(lambda: scrape_time() < 1.0, 2)
            assert late.value("celery_broker_up") == 0
            late.stop_cleanly(signal.SIGINT)
            until_equal(lambda: app.value("celery_broker_up"), 0, PATIENCE)
            until_equal(lambda: statuses(app), DEAF, PATIENCE)
            assert scrape_time() < 1.0
            until_equal(lambda: app.value("celery_queue_length"), None, PATIENCE)  # absent, not as it was
            second.stop_cleanly(signal.SIGTERM)
        finally:
            own_server.resume()
        app.connected(PATIENCE)
        numbers = count(2)

        def heard():
            publish_events(own_server.url, *task_events(next(numbers)))
            return successes(app) > 1

        eventually(heard, PATIENCE, every=0.5)


def test_redis_cutting_off_a_subscriber_is_survived(running, tmp_path, redis_broker):
    """Redis drops a subscriber that lags (here: on command): it subscribes again and counts on."""
    app = running(Exporter(tmp_path / "exporter", redis_broker.url)).connected()
    publish_events(redis_broker.url, *task_events(1))
    until_equal(lambda: successes(app), 1)
    assert redis_broker.server.client().execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
    eventually(lambda: app.total("celery_exporter_reconnects_total") >= 1, PATIENCE)
    app.connected(PATIENCE)
    publish_events(redis_broker.url, *task_events(2))
    until_equal(lambda: successes(app), 2)
