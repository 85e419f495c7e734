"""When a lost subscription is opened again, and how its messages become events of the cluster."""

from __future__ import annotations

import json
import threading

import pytest
from harness.configs import monitor_config
from harness.waiting import eventually

from celery_exporter.broker.connection import BrokerError
from celery_exporter.broker.message import Message
from celery_exporter.monitor.cluster_state import ClusterState, new_cluster
from celery_exporter.monitor.event_subscription import EventSubscription

HEARTBEAT = {"type": "worker-heartbeat", "hostname": "w@h", "timestamp": 1.7e9, "freq": 2.0}


class FailingConsumer:
    """A consumer that fails at the second read; the first one returns messages if `has_messages`."""

    mark = None

    def __init__(self, *, has_messages: bool) -> None:
        self.last_alive = 0.0
        self.opened = self._read = 0
        self._has_messages = has_messages

    def open(self) -> None:
        self.opened += 1
        self._read = 0

    def read(self, _timeout: float) -> list[Message]:
        self._read += 1
        if self._read > 1:
            raise BrokerError("connection lost")
        return [
            Message(json.dumps(HEARTBEAT).encode(), "application/json", "utf-8", None)
        ] * self._has_messages

    def close(self) -> None:
        pass

    def is_waiting(self) -> bool:
        return False


def subscription(consumer: FailingConsumer, retry_interval: str = "60") -> EventSubscription:
    config = monitor_config("redis://127.0.0.1:1/0", retry_interval=retry_interval)
    state = ClusterState(new_cluster(config), config)
    return EventSubscription(config.broker, consumer, state, lambda: "redis://", lambda: False)


@pytest.fixture
def opened():
    """Start a subscription in a thread, which waits a minute at most between two attempts."""
    stopping, threads = threading.Event(), []

    def start(consumer: FailingConsumer) -> FailingConsumer:
        threads.append(threading.Thread(target=subscription(consumer).run, args=[stopping]))
        threads[-1].start()
        return consumer

    yield start
    stopping.set()
    for thread in threads:
        thread.join(60)


def test_a_subscription_that_failed_after_events_is_opened_again_at_once(opened):
    """With a wait that doubles each time, this would take five minutes."""
    consumer = opened(FailingConsumer(has_messages=True))
    eventually(lambda: consumer.opened > 12, 60)


def test_a_subscription_that_failed_without_events_waits_longer_each_time(opened):
    """It misses no events meanwhile, and causes less load on a broker that refuses it."""
    quick, slow = opened(FailingConsumer(has_messages=True)), opened(FailingConsumer(has_messages=False))
    eventually(lambda: quick.opened > 60, 60)
    assert slow.opened < 12


def test_messages_become_events_and_unreadable_ones_are_counted():
    events = subscription(FailingConsumer(has_messages=True))
    events.apply([Message(json.dumps(HEARTBEAT).encode(), "application/json", "utf-8", None), Message(b"{")])
    assert events._state.cluster.workers["w@h"].up
    assert {reason: count for reason, count in events.malformed.items() if count} == {"undecodable": 1}
    assert (events.last_event or 0) > 0
    assert (events.event_lag or 0) > 0
