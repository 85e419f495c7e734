"""How soon a subscription that ended is opened again, and how its messages become events of the cluster."""

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


class CutOff:
    """A subscription that is cut off at the second read; `brings` something at the first one, or is empty."""

    mark = None

    def __init__(self, *, brings: bool) -> None:
        self.last_alive = 0.0
        self.opened = self._read = 0
        self._brings = brings

    def open(self) -> None:
        self.opened += 1
        self._read = 0

    def read(self, _timeout: float) -> list[Message]:
        self._read += 1
        if self._read > 1:
            raise BrokerError("cut off")
        return [Message(json.dumps(HEARTBEAT).encode(), "application/json", "utf-8", None)] * self._brings

    def close(self) -> None:
        pass

    def is_waiting(self) -> bool:
        return False


def subscription(consumer: CutOff, retry_interval: str = "60") -> EventSubscription:
    config = monitor_config("redis://127.0.0.1:1/0", retry_interval=retry_interval)
    state = ClusterState(new_cluster(config), config)
    return EventSubscription(config.broker, consumer, state, lambda: "redis://", lambda: False)


@pytest.fixture
def opened():
    """Start a subscription in a thread, which waits a minute at most between two attempts."""
    stopping, threads = threading.Event(), []

    def start(consumer: CutOff) -> CutOff:
        threads.append(threading.Thread(target=subscription(consumer).run, args=[stopping]))
        threads[-1].start()
        return consumer

    yield start
    stopping.set()
    for thread in threads:
        thread.join(60)


def test_after_a_cut_that_followed_events_it_is_back_at_once(opened):
    """Doubling the wait each time, it would take five minutes."""
    consumer = opened(CutOff(brings=True))
    eventually(lambda: consumer.opened > 12, 60)


def test_after_a_cut_that_followed_nothing_it_waits_longer_each_time(opened):
    """It misses no events by that, and spares a broker that refuses it."""
    quick, slow = opened(CutOff(brings=True)), opened(CutOff(brings=False))
    eventually(lambda: quick.opened > 60, 60)
    assert slow.opened < 12


def test_messages_become_events_and_unreadable_ones_are_counted():
    events = subscription(CutOff(brings=True))
    events.apply([Message(json.dumps(HEARTBEAT).encode(), "application/json", "utf-8", None), Message(b"{")])
    assert events._state.cluster.workers["w@h"].up
    assert {reason: count for reason, count in events.malformed.items() if count} == {"undecodable": 1}
    assert (events.last_event or 0) > 0
    assert (events.event_lag or 0) > 0
