"""The event subscription: reads messages, applies their events, and subscribes again after an error."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress

from celery_exporter.broker.codecs import CONTENT_TYPES
from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import BrokerError
from celery_exporter.broker.consumers.base import EventConsumer
from celery_exporter.broker.message import Message, events_of
from celery_exporter.core.events import REASONS, REFUSED, Event, Malformed
from celery_exporter.core.records import MeasuredRecord, Record
from celery_exporter.core.snapshot import OutageView
from celery_exporter.monitor.cluster_state import ClusterState
from celery_exporter.runtime.backoff import back_off
from celery_exporter.status.problems import ASK_DOCTOR

log = logging.getLogger(__name__)

#: Seconds that one read waits for messages: how late an expiry, and a stop, can be.
READ_SECONDS = 0.25
#: Events applied under one hold of the lock: some 5 ms, which a scrape may have to wait.
CHUNK_EVENTS = 1_000
#: The reason under which events are counted that raised in the core, which would be a fault of ours.
NOT_APPLIED = "not_applied"
#: Seconds without a sign of life on the subscription after which the exporter is not ready, and after which
#: RabbitMQ gives the events of a durable queue to another one: it has missed two heartbeats.
READY_MAX_SILENCE_SECONDS = 12.0
#: Seconds before the next attempt after a subscription that brought messages and was cut.
RECONNECT_SECONDS = 0.05
#: Seconds after which a subscription that ends counts as a good one, and the waits start over.
STABLE_SECONDS = 10.0


class EventSubscription:
    """Keeps one subscription open, and applies its events.

    `run` is a thread. Any thread reads the rest.

    `broker_url` returns the URL without secrets, for the log. `is_blocked` returns whether RabbitMQ blocks
    publishers: then no worker can send a heartbeat, and the listening clock stands still. `schema` is the
    type of events. `on_records` gets the records of transitions, without the lock; it must not wait.
    """

    def __init__(  # noqa: PLR0913  where events come from, and where they go
        self,
        config: BrokerConfig,
        consumer: EventConsumer,
        state: ClusterState,
        broker_url: Callable[[], str],
        is_blocked: Callable[[], bool],
        *,
        schema: type[Event] = Event,
        on_records: Callable[[list[Record | MeasuredRecord]], None] | None = None,
    ) -> None:
        self.is_open = False
        self.opened = 0  # times
        self.opened_at: float | None = None  # epoch seconds, of the last time
        self.malformed: Counter[str] = Counter(dict.fromkeys((*REASONS, NOT_APPLIED), 0))
        self.event_lag: float | None = None  # seconds from the newest event's timestamp to its arrival
        self.last_event: float | None = None  # epoch seconds
        self.last_refused: float | None = None  # epoch seconds, of an event in a serializer not accepted
        #: Up to where the messages of a durable queue were applied. Read it with `reading` held.
        self.mark: tuple[int, int] | None = None
        self._config = config
        self._consumer = consumer
        self._state = state
        self._broker_url = broker_url
        self._is_blocked = is_blocked
        self._schema = schema
        self._on_records = on_records
        self._accept = {CONTENT_TYPES[name] for name in config.accept_content}
        self._duplicates = 0  # of earlier processes
        self._is_standby = False
        self._has_read = False  # since it was opened
        self._takeovers = 0  # that the cluster knows of
        self._closed_since = time.time()  # epoch seconds; while it is not open
        self._error = ""  # that closed it, or of the last attempt to open it

    def restore(
        self, malformed: Mapping[str, int], opened: int, unconfirmed: list[int], duplicates: int
    ) -> None:
        """Continue the counts of the state file; expect `unconfirmed` messages of a durable queue again."""
        self.malformed.update(malformed)
        self.opened = opened
        self._duplicates = duplicates
        self._consumer.expect_again(unconfirmed)

    def is_ready(self) -> bool:
        """Return whether the subscription is open and showed a sign of life recently."""
        return self.is_open and not self._is_silent()

    def _is_silent(self) -> bool:
        return time.monotonic() - self._consumer.last_alive >= READY_MAX_SILENCE_SECONDS

    def active(self) -> bool | None:
        """Return whether the broker sends the events of a durable queue here; None without such a queue.

        In a short outage: whether it did before. Later, another exporter can have taken over.
        """
        return self._consumer.is_active and not self._is_silent()

    def duplicates(self) -> int:
        """Return how many messages of a durable queue were dropped, with those of the state file."""
        return self._duplicates + self._consumer.duplicates

    def outage(self) -> OutageView | None:
        """Return since when and why the subscription is not ready; None if it is."""
        if self.is_ready():
            return None
        if self.is_open:
            return OutageView(self._last_alive(), "no sign of life on the event subscription")
        return OutageView(self._closed_since, self._error)

    def _last_alive(self) -> float:
        """Return when the broker showed the last sign of life, in epoch seconds."""
        return time.time() - (time.monotonic() - self._consumer.last_alive)

    def is_waiting(self) -> bool:
        """Return whether a durable queue holds messages back until the state file is written."""
        return self._consumer.is_waiting()

    def unconfirmed(self) -> list[int]:
        """Return the messages of a durable queue that were applied and that the broker may send again."""
        return self._consumer.unconfirmed(self.mark or (0, 0))

    def release(self, mark: tuple[int, int]) -> None:
        """Let a durable queue remove its messages up to a mark: what they changed is in the state file."""
        self._consumer.release(mark)

    # -- the thread --------------------------------------------------------------------------------------

    def run(
        self,
        stopping: threading.Event,
        save: Callable[[], None] | None = None,
        is_held_back: Callable[[], bool] = lambda: False,
    ) -> None:
        """Subscribe and apply events until `stopping` is set.

        `save` writes the state file before a subscription with a durable queue is closed. While
        `is_held_back`, its messages are released only by `release`.
        """
        waits = back_off(self._config.retry_interval)
        logged = ""
        while not stopping.is_set():
            start = time.monotonic()
            try:
                self._has_read = False
                self._consumer.open()
                self._note_opened()
                logged = ""
                self._read(stopping, is_held_back)
            except BrokerError as error:
                self._error = str(error)
                if logged != (logged := str(error)):  # once, not at every attempt
                    log.warning("no event subscription on %s: %s; %s", self._broker_url(), error, ASK_DOCTOR)
            except Exception as error:
                self._error = type(error).__name__  # its text may hold a secret
                if logged != (logged := repr(error)):
                    log.exception("event subscription failed, trying again")
            finally:
                if save is not None and self.mark is not None:
                    with suppress(Exception):  # then the messages come again; the job logs the reason
                        save()
                if self.is_open:
                    self._closed_since = self._last_alive()
                self.is_open = False
                self._consumer.close()
                self._pass_records_on(last=True)
            if self._has_read or time.monotonic() - start > STABLE_SECONDS:
                waits = back_off(self._config.retry_interval)
            # Redis disconnects a slow reader: each moment without a subscription loses more events.
            stopping.wait(RECONNECT_SECONDS if self._has_read else next(waits))

    def _note_opened(self) -> None:
        self.opened += 1
        self.opened_at = time.time()
        if self._config.durable_queue is None:
            with self._state.lock:
                self._state.cluster.expected.interrupt()
                self._state.cluster.registry.interrupt()
        log.info("listening to events on %s", self._broker_url())

    def _read(self, stopping: threading.Event, is_held_back: Callable[[], bool]) -> None:
        last = time.monotonic()
        self.is_open = True
        self._error = ""
        while not stopping.is_set():
            messages = self._consumer.read(READ_SECONDS)
            now = time.monotonic()
            self._note_active()
            if not self._is_blocked():  # on a standby, too: events that it has deferred become due
                self._state.advance(now - last)
            last = now
            self._has_read = self._has_read or bool(messages)
            self.apply(messages)
            if self.mark is not None and not is_held_back():
                self._consumer.release(self.mark)

    def _note_active(self) -> None:
        """Take note of whether another exporter receives the events of the durable queue."""
        is_standby = self.active() is False
        if is_standby and not self._is_standby:
            log.info("standby: another exporter receives the events")
        self._is_standby = is_standby
        if self._takeovers != self._consumer.takeovers:  # expect new events of all workers
            log.info("active: this exporter receives the events from now on")
            self._takeovers = self._consumer.takeovers
            with self._state.lock:
                self._state.cluster.registry.resume(self._state.now())

    # -- messages ------------------------------------------------------------------------------------------

    def apply(self, messages: list[Message]) -> None:
        """Decode messages, apply their events, and let time pass."""
        events: list[Event | Malformed] = []
        with self._state.reading:
            for message in messages:  # not all at once: one may hold events of 100 MB
                events += events_of(message, self._accept, self._schema)
                if len(events) >= CHUNK_EVENTS:
                    self.apply_events(events)
                    events = []
            self.apply_events(events)
            with self._state.lock:
                cluster, now = self._state.cluster, self._state.now()
                cluster.expire(now)
                if self._receives_events():
                    cluster.watch_expected(now)
                self.mark = self._consumer.mark
        self._pass_records_on()

    def _receives_events(self) -> bool:
        """Return whether an event that is sent now arrives here."""
        return self.is_ready() and not self._is_standby and not self._is_blocked()

    def _pass_records_on(self, *, last: bool = False) -> None:
        """Pass records to the sinks, after the `last` event also those that wait for one."""
        if self._on_records is None:
            return
        with self._state.lock:
            records = self._state.cluster.take_records(last=last)
        if records:
            self._on_records(records)

    def apply_events(self, events: list[Event | Malformed]) -> None:
        """Apply events, `CHUNK_EVENTS` under one hold of the lock."""
        for start in range(0, len(events), CHUNK_EVENTS):
            with self._state.lock:
                self._apply_chunk(events[start : start + CHUNK_EVENTS])

    def _apply_chunk(self, events: list[Event | Malformed]) -> None:
        now = self._state.now()
        apply = self._state.apply
        for event in events:
            if isinstance(event, Event):
                try:
                    apply(event, now)
                except Exception:  # noqa: BLE001  a fault of ours costs this event, not the subscription
                    self._count_not_applied()
            else:
                self.malformed[event.reason] += self._state.counts(event)
                if event.reason == REFUSED:
                    self.last_refused = now.wall
        newest = next(
            (event for event in reversed(events) if isinstance(event, Event) and event.hostname), None
        )
        if newest is not None:
            self.last_event, self.event_lag = now.wall, now.wall - newest.timestamp

    def _count_not_applied(self) -> None:
        self.malformed[NOT_APPLIED] += 1
        if self.malformed[NOT_APPLIED] == 1:  # the first one is enough; a flood must not fill the disk
            log.error("cannot apply an event, please report this", exc_info=True)  # noqa: LOG014  in a handler
