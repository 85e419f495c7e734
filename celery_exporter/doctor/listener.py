"""A while of listening with the exporter's own monitor, and a question to the workers."""

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
from celery_exporter.status.checks import PATIENCE, can_hear, is_decided
from celery_exporter.status.recent import Growth

#: Seconds between two looks, and between two lines of progress.
LOOK, PROGRESS = 0.1, 2.0
#: Seconds for the monitor's threads to end.
FAREWELL = 1.3
#: Different content types that are remembered; they are as long as a sender likes.
MOST_TYPES = 10


class ListenResult(Struct, frozen=True):
    """What was learnt: by listening for so many seconds, and by asking."""

    snapshot: Snapshot
    growth: Growth
    content_types: dict[str, int]
    first_event: float | None  # seconds after the subscription
    configurations: list[tuple[str, Configuration]]  # each answer, by node name; one name may come twice
    cut: bool = False  # somebody ended it


class RecordingConsumer:
    """A reader that notes what kind of messages pass, and when the first one did. See `EventConsumer`."""

    def __init__(self, reader: EventConsumer) -> None:
        self._reader = reader
        self.last_alive = 0.0
        self.mark: tuple[int, int] | None = None  # the doctor takes nothing off a durable queue
        self.release = reader.release
        self.unconfirmed = reader.unconfirmed
        self.expect_again = reader.expect_again
        self.is_waiting = reader.is_waiting
        self._opened: float | None = None
        self.first: float | None = None
        self.content_types: Counter[str] = Counter()

    def open(self) -> None:
        """Subscribe."""
        self._reader.open()
        self.last_alive = self._reader.last_alive
        self._opened = self._opened or time.monotonic()

    def read(self, timeout: float) -> list[Message]:
        """Return messages."""
        payloads = self._reader.read(timeout)
        self.last_alive = self._reader.last_alive
        if payloads and self.first is None and self._opened is not None:
            self.first = time.monotonic() - self._opened
        for payload in payloads:
            kind: Any = payload.content_type or JSON
            if isinstance(kind, str) and (kind in self.content_types or len(self.content_types) < MOST_TYPES):
                self.content_types[kind[:100]] += 1
        return payloads

    def close(self) -> None:
        """Unsubscribe and hang up."""
        self._reader.close()


def listen(
    config: MonitorConfig, seconds: float, say: Callable[[str], None], ended: Callable[[], bool]
) -> ListenResult:
    """Listen for so many seconds, fewer if all that can be known is known by then, or if `ended`."""
    tap = RecordingConsumer(consumer_for(ConfigSource(config.broker)))
    monitor = Monitor(config, consumer=tap)
    end = time.monotonic() + seconds
    monitor.start()
    try:
        configurations = _ask(config.broker, say)
        said = 0.0
        while True:
            snapshot = monitor.snapshot(web_config_up_to_date=None)
            now = time.monotonic()
            cut = ended()
            if cut or now > end or _is_known(snapshot):
                growth, types = monitor.growth(snapshot), dict(tap.content_types)
                return ListenResult(snapshot, growth, types, tap.first, configurations, cut)
            if now > said + PROGRESS:
                said = now
                say(_progress(snapshot, end - now))
            time.sleep(LOOK)
    finally:
        monitor.stop()
        monitor.join(time.monotonic() + FAREWELL)


def _ask(config: BrokerConfig, say: Callable[[str], None]) -> list[tuple[str, Configuration]]:
    control = partial(WorkerInspector, control_exchange=config.control_exchange, accept=config.accept_content)
    inspector = CachedConnection(ConfigSource(config), control)
    try:
        with inspector.use() as asked:
            return asked.configurations()
    except BrokerError as error:
        say(f"workers could not be asked: {error}")
        return []
    finally:
        inspector.close()


def _is_known(snapshot: Snapshot) -> bool:
    """Tell whether more would bring nothing new: each check is decided, and each worker was heard to work."""
    if snapshot.exporter.broker_up and not can_hear(snapshot):
        return is_decided(snapshot)
    up = [worker for worker in snapshot.workers if worker.up]
    if snapshot.exporter.listening < PATIENCE or not up or any(worker.events is None for worker in up):
        return False
    return is_decided(snapshot)


def _progress(snapshot: Snapshot, left: float) -> str:
    up = sum(worker.up for worker in snapshot.workers)
    events = sum(snapshot.events.values())
    return f"listening for {left:.0f} s more: events {events:,}, workers {up}"
