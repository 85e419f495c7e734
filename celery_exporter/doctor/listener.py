"""Listen for a while with the exporter's own monitor, and inspect the configuration of workers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Struct

from celery_exporter.broker.codecs import JSON
from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import BrokerError, CachedConnection
from celery_exporter.broker.consumers.base import EventConsumer
from celery_exporter.broker.consumers.factory import consumer_for
from celery_exporter.broker.inspect import Configuration, WorkerInspector
from celery_exporter.broker.message import Message
from celery_exporter.broker.source import ConfigSource
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.status.checks import is_decided
from celery_exporter.status.facts import can_receive_events, has_discovered, workers_up
from celery_exporter.status.recent import Growth

#: Time between two snapshots, and between two lines of progress.
SNAPSHOT_INTERVAL_SECONDS, PROGRESS_INTERVAL_SECONDS = 0.1, 2.0
#: Time for the monitor's threads to end.
STOP_TIMEOUT_SECONDS = 1.3
#: Different content types that are remembered, and the length of each: a sender chooses both.
MAX_CONTENT_TYPES, MAX_CONTENT_TYPE_LENGTH = 10, 100


class ListenResult(Struct, frozen=True):
    """What was received, and what workers replied."""

    snapshot: Snapshot
    growth: Growth
    content_types: dict[str, int]  # → number of messages
    first_event_seconds: float | None  # after the subscription
    configurations: list[tuple[str, Configuration]]  # each reply, by node name; one name may occur twice
    busy: frozenset[str] = frozenset()  # workers that processed tasks meanwhile
    stopped_early: bool = False  # by the user


class RecordingConsumer:
    """An `EventConsumer` that counts content types, and measures the time until the first message."""

    def __init__(self, consumer: EventConsumer) -> None:
        self._consumer = consumer
        self.last_alive = 0.0
        # The doctor takes nothing off a durable queue.
        self.mark: tuple[int, int] | None = None
        self.is_active: bool | None = None
        self.takeovers, self.duplicates = 0, 0
        self.release = consumer.release
        self.unconfirmed = consumer.unconfirmed
        self.expect_again = consumer.expect_again
        self.is_waiting = consumer.is_waiting
        self.standby_queue = consumer.standby_queue
        self._opened: float | None = None
        self.first_event_seconds: float | None = None
        self.content_types: Counter[str] = Counter()

    def open(self) -> None:
        """Subscribe; raise BrokerError."""
        self._consumer.open()
        self.last_alive = self._consumer.last_alive
        self._opened = self._opened or time.monotonic()

    def read(self, timeout: float) -> list[Message]:
        """Return messages, waiting for at most `timeout` seconds; raise BrokerError."""
        messages = self._consumer.read(timeout)
        self.last_alive = self._consumer.last_alive
        if messages and self.first_event_seconds is None and self._opened is not None:
            self.first_event_seconds = time.monotonic() - self._opened
        for message in messages:
            self._count(message.content_type or JSON)
        return messages

    def _count(self, content_type: Any) -> None:
        if isinstance(content_type, str):
            name = content_type[:MAX_CONTENT_TYPE_LENGTH]
            if name in self.content_types or len(self.content_types) < MAX_CONTENT_TYPES:
                self.content_types[name] += 1

    def close(self) -> None:
        """Unsubscribe and disconnect."""
        self._consumer.close()


def listen(
    config: MonitorConfig, seconds: float, say: Callable[[str], None], is_stopped: Callable[[], bool]
) -> ListenResult:
    """Listen for so many seconds; fewer if everything is decided, or the user stops it."""
    consumer = RecordingConsumer(consumer_for(ConfigSource(config.broker)))
    monitor = Monitor(config, consumer=consumer)
    end = time.monotonic() + seconds
    monitor.start()
    try:
        configurations = _inspect(config.broker, say)
        last_progress = 0.0
        first_processed: dict[str, int] = {}
        while True:
            snapshot = monitor.snapshot()
            growth = monitor.growth(snapshot)
            for worker in snapshot.workers:
                if worker.heartbeat is not None:
                    first_processed.setdefault(worker.name, worker.processed_total)
            now = time.monotonic()
            stopped_early = is_stopped()
            if stopped_early or now > end or _is_complete(snapshot, growth):
                return ListenResult(
                    snapshot,
                    growth,
                    dict(consumer.content_types),
                    consumer.first_event_seconds,
                    configurations,
                    _busy(snapshot, first_processed),
                    stopped_early,
                )
            if now > last_progress + PROGRESS_INTERVAL_SECONDS:
                last_progress = now
                say(_progress(snapshot, end - now))
            time.sleep(SNAPSHOT_INTERVAL_SECONDS)
    finally:
        monitor.stop()
        monitor.join(time.monotonic() + STOP_TIMEOUT_SECONDS)


def _busy(snapshot: Snapshot, first_processed: dict[str, int]) -> frozenset[str]:
    """Return the workers that have processed more tasks than by their first heartbeat."""
    return frozenset(
        worker.name
        for worker in snapshot.workers
        if worker.processed_total > first_processed.get(worker.name, worker.processed_total)
    )


def _inspect(config: BrokerConfig, say: Callable[[str], None]) -> list[tuple[str, Configuration]]:
    inspector_class = partial(
        WorkerInspector, control_exchange=config.control_exchange, accept=config.accept_content
    )
    connection = CachedConnection(ConfigSource(config), inspector_class)
    try:
        with connection.use() as inspector:
            return inspector.configurations()
    except BrokerError as error:
        say(f"workers could not be inspected: {error}")
        return []
    finally:
        connection.close()


def _is_complete(snapshot: Snapshot, growth: Growth) -> bool:
    """Return whether each check is decided, and whether each worker sends task events."""
    if snapshot.exporter.broker_up and not can_receive_events(snapshot):
        return is_decided(snapshot, growth)
    up = workers_up(snapshot)
    if not has_discovered(snapshot) or not up or any(worker.events is None for worker in up):
        return False
    return is_decided(snapshot, growth)


def _progress(snapshot: Snapshot, seconds_left: float) -> str:
    up = len(workers_up(snapshot))
    events = sum(snapshot.events.values())
    return f"listening for {seconds_left:.0f} s more: events {events:,}, workers {up}"
