"""A broker that is stopped, frozen, absent, or at odds with one of its clients."""

from __future__ import annotations

import signal
import time

import pytest
from harness.waiting import stays, until_equal

from resilience.availability_contract import Watched

in_full = pytest.mark.long


def test_restarted(own, served, watched):
    """The same port again, and nothing left of what it knew of us."""

    def start():
        own.start().wait_ready()

    with watched(served()) as availability:
        availability.turns_red(own.stop)
        availability.turns_green(start)


@pytest.mark.parametrize("seconds", [0.0, pytest.param(60.0, marks=in_full)], ids=["", "a minute"])
def test_frozen(own, served, running, watched, seconds, tmp_path):
    """SIGSTOP: connections stay open, new ones are taken by the kernel, and nobody answers."""
    app = served()
    other = running(Watched(tmp_path / "other", own.url)).connected()
    until_equal(lambda: app.value("celery_queue_length", queue_name="celery"), 0)
    with watched(app) as availability:
        try:
            begin = time.monotonic()
            availability.turns_red(own.pause)
            other.stop_cleanly()  # which waits for an answer to its attempt to connect
            stays(lambda: not app.is_ready(), max(2.0, begin + seconds - time.monotonic()))
            assert app.value("celery_exporter_collector_success", collector="queues") == 0
            assert not seconds or app.value("celery_queue_length", queue_name="celery") is None
        finally:
            availability.turns_green(own.resume)


def test_ends_in_time_beside_a_frozen_broker(own, served, running, tmp_path):
    """Before it has noticed, and when it has started into it."""
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
    """A process that is well, and not ready until there is a broker."""
    own.stop()
    try:
        app = running(Watched(tmp_path / "exporter", own.url))
        with watched(app, deaf=True) as availability:
            stays(lambda: not app.is_ready(), seconds)
            assert app.value("celery_broker_up") == 0
            availability.turns_green(lambda: own.start().wait_ready())
    finally:
        if not own.alive():
            own.start().wait_ready()


def test_redis_cuts_off_a_subscriber_that_is_too_slow(redis_broker, running, watched, tmp_path):
    """Its output-buffer limit ends the subscription: what had come is used, and it is opened again."""
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
            availability.comes_back(overflow)
            assert app.total("celery_exporter_events_malformed_total") > 0
    finally:
        redis.config_set(*limit.popitem())


def test_redis_key_of_another_kind(redis_broker, running, tmp_path):
    """A queue that is called as kombu's hash costs that number, and no queue its length."""
    redis = redis_broker.server.client()
    redis.rpush("unacked", b"{}")
    redis.rpush("celery", b"{}", b"{}")
    app = running(Watched(tmp_path / "exporter", redis_broker.url)).connected()
    until_equal(lambda: app.value("celery_queue_length", queue_name="celery"), 2)
    assert app.value("celery_broker_unacked_messages") is None
