"""How soon the exporter comes back when a subscription ends."""

from __future__ import annotations

import json

import pytest
from harness.configs import monitor_config
from harness.waiting import eventually

from celery_exporter.broker.connection import BrokerError
from celery_exporter.broker.message import Message
from celery_exporter.monitor.monitor import Monitor

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


@pytest.fixture
def watch():
    """Return how often it was opened, by a monitor that waits for a minute at most."""
    started = []

    def start(reader: CutOff) -> CutOff:
        config = monitor_config("redis://127.0.0.1:1/0", retry_interval="60")
        started.append(Monitor(config, consumer=reader))
        started[-1].start()
        return reader

    yield start
    for monitor in started:
        monitor.stop()


def test_after_a_cut_that_followed_events_it_is_back_at_once(watch):
    """Doubling the wait each time, it would take five minutes."""
    reader = watch(CutOff(brings=True))
    eventually(lambda: reader.opened > 12, 60)


def test_after_a_cut_that_followed_nothing_it_waits_longer_each_time(watch):
    """It misses no events by that, and spares a broker that refuses it."""
    quick, slow = watch(CutOff(brings=True)), watch(CutOff(brings=False))
    eventually(lambda: quick.opened > 60, 60)
    assert slow.opened < 12
