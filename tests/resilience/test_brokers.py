"""A broker that is stopped, frozen or absent, or that disconnects a client."""

from __future__ import annotations

import signal
import time

import pytest
from harness.waiting import stays, until_equal

from resilience.availability_contract import Watched

in_full = pytest.mark.long


def test_restarted(own, served, watched):
    """The broker comes back on the same port, without state of the exporter."""

    def start():
        own.start().wait_ready()

    with watched(served()) as availability:
        availability.turns_red(own.stop)
        availability.turns_green(start)


@pytest.mark.parametrize("seconds", [0.0, pytest.param(60.0, marks=in_full)], ids=["", "a minute"])
def test_frozen(own, served, running, watched, seconds, tmp_path):
    """SIGSTOP: connections stay open, the kernel accepts new ones, and the broker does not respond."""
    app = served()
    other = running(Watched(tmp_path / "other", own.url)).connected()
    until_equal(lambda: app.value("celery_queue_length", queue_name="celery"), 0)
    with watched(app) as availability:
        try:
            begin = time.monotonic()
            availability.turns_red(own.pause)
            other.stop_cleanly()  # it is waiting for the response to a connection attempt
            stays(lambda: not app.is_ready(), max(2.0, begin + seconds - time.monotonic()))
            assert app.value("celery_exporter_collector_success", collector="queues") == 0
            assert not seconds or app.value("celery_queue_length", queue_name="celery") is None
        finally:
            availability.turns_green(own.resume)


def test_stops_in_time_with_a_frozen_broker(own, served, running, tmp_path):
    """Before the exporter has detected the fault, and if it has started during the fault."""
    app = served()
    own.pause()
    try:
        app.stop_cleanly(signal.SIGTERM)
        late = running(Watched(tmp_path / "late", own.url))
        stays(lambda: not late.is_ready(), 1)
        late.stop_cleanly(signal.SIGINT)
    finally:
        own.resume()


@pytest.mark.parametrize(
    "seconds", [3.0, pytest.param(30.0, marks=pytest.mark.long)], ids=["", "half a minute"]
)
def test_absent_at_start(own, running, watched, seconds, tmp_path):
    """The process is healthy, and not ready until the broker is up."""
    own.stop()
    try:
        app = running(Watched(tmp_path / "exporter", own.url))
        with watched(app, is_connected=False) as availability:
            stays(lambda: not app.is_ready(), seconds)
            assert app.value("celery_broker_up") == 0
            availability.turns_green(lambda: own.start().wait_ready())
    finally:
        if not own.alive():
            own.start().wait_ready()


def test_redis_cuts_off_a_subscriber_that_is_too_slow(redis_broker, running, watched, tmp_path):
    """The output-buffer limit closes the subscription: received events are used, and it is reopened."""
    app = running(Watched(tmp_path / "exporter", redis_broker.url)).connected()
    redis = redis_broker.server.client()
    limit = redis.config_get("client-output-buffer-limit")

    def overflow():
        app.pause()
        for _ in range(400):
            redis.publish("/0.celeryev/worker.heartbeat", b"x" * 100_000)
        app.resume()

    redis.config_set("client-output-buffer-limit", "pubsub 1mb 1mb 1")
    try:
        with watched(app) as availability:
            availability.resubscribes(overflow)
            assert app.total("celery_exporter_events_malformed_total") > 0
    finally:
        redis.config_set(*limit.popitem())


def test_redis_key_of_another_type(redis_broker, running, tmp_path):
    """With a queue named like kombu's hash, that number is unknown, and all lengths are known."""
    redis = redis_broker.server.client()
    redis.rpush("unacked", b"{}")
    redis.rpush("celery", b"{}", b"{}")
    app = running(Watched(tmp_path / "exporter", redis_broker.url)).connected()
    until_equal(lambda: app.value("celery_queue_length", queue_name="celery"), 2)
    assert app.value("celery_broker_unacked_messages") is None
