"""Events through kombu's consumer: not the fastest way, but one for every transport there is."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

import kombu
from kombu import Exchange, Queue

from celery_exporter.broker.connection import BrokerError, connect, hang_up, open_, translated
from celery_exporter.broker.payload import BROKEN, Payload
from celery_exporter.settings import Settings

#: Seconds without a sign of life after which a subscription counts as dead. A living one shows some at
#: least every 3 s: the answer to our ping, or a heartbeat.
SILENCE = 10.0
#: Seconds between two signs of life that we ask for, or send.
TICK = 1.0
#: Messages returned by one read: some milliseconds of work, so that the lock is not held for longer.
BATCH = 200
#: Messages that a durable queue holds for an exporter that is away, some gigabytes at most; the oldest go.
DURABLE_LENGTH = 1_000_000
#: Exchanges that kombu makes fan-out on these transports (celery/events/event.py, get_exchange).
_FANOUT = frozenset({"redis", "gcpubsub"})


class Full(Exception):  # noqa: N818  not an error: the way out of a drain that would go on while messages come
    """The batch is complete."""


class KombuReader:
    """Reads events from any transport of kombu's. See `Reader`."""

    def __init__(self, settings: Settings) -> None:
        self.proven = 0.0
        self._settings = settings
        self._connection: kombu.Connection = connect(settings)
        self._received = -1  # bytes, on AMQP
        # One name for the life of the process: Redis keeps the binding of a queue that was not closed.
        durable = settings.event_queue_durable
        self._queue_name = "celeryev.celery-exporter" if durable else f"celeryev.{uuid.uuid4()}"
        self._batch: list[Payload] = []
        self._ticked = 0.0
        self._prove: Callable[[], bool] = lambda: True

    def open(self) -> None:
        """Connect and subscribe; raise BrokerError."""
        self._connection = connect(self._settings)
        with translated(self._connection):
            open_(self._connection)
            driver = self._connection.transport.driver_type
            channel = self._connection.default_channel
            queue = self._queue(driver)(channel)
            queue.declare()
            # Not through kombu's Consumer, which would inflate a compressed body of any size.
            queue.consume(self._queue_name, self._take, no_ack=True)
        self._prove = self._prove_amqp if driver == "amqp" else lambda: True
        self.proven = time.monotonic()

    def read(self, timeout: float) -> list[Payload]:
        """Return messages; raise BrokerError."""
        self._batch = []
        with translated(self._connection):
            self._tick()
            try:
                self._drain(timeout)
                while True:
                    self._drain(0)
            except (socket.timeout, Full):  # noqa: UP041  another class on Python 3.10
                pass
        if self._batch:
            self.proven = time.monotonic()
        return self._batch

    def _drain(self, timeout: float) -> None:
        try:
            self._connection.drain_events(timeout=timeout)
        except (KeyError, TypeError, AttributeError, UnicodeError):
            # kombu's virtual transports trust the envelope round a message to be one of theirs.
            self._add(BROKEN)

    def close(self) -> None:
        """Unsubscribe and hang up; a broker that is gone makes no difference."""
        hang_up(self._connection)

    def _queue(self, driver: str) -> Queue:
        exchange = Exchange(self._settings.event_exchange, "fanout" if driver in _FANOUT else "topic")
        durable = self._settings.event_queue_durable and driver == "amqp"
        # Exclusive: RabbitMQ 4.3 refuses a queue that is neither durable nor exclusive.
        return Queue(
            self._queue_name,
            exchange,
            routing_key="#",
            durable=durable,
            exclusive=driver == "amqp" and not durable,
            auto_delete=not durable,
            max_length=DURABLE_LENGTH if durable else None,
        )

    def _take(self, message: Any) -> None:
        """Take a message of py-amqp's, or of kombu's where its transport is a virtual one."""
        body = message.body
        properties = message.properties
        headers = properties.get("application_headers") or {}  # on AMQP; the others have inflated it
        self._add(
            Payload(
                body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body or b""),
                getattr(message, "content_type", None),
                getattr(message, "content_encoding", None),
                headers.get("compression"),
            )
        )

    def _add(self, payload: Payload) -> None:
        self._batch.append(payload)
        if len(self._batch) < BATCH:
            return
        if all(each is BROKEN for each in self._batch):  # a transport that fails without taking a message
            raise BrokerError("nothing but messages that kombu cannot read")
        raise Full

    def _tick(self) -> None:
        """Ask for a sign of life, and give one, under traffic as well as in silence."""
        now = time.monotonic()
        if now < self._ticked + TICK:
            return
        self._ticked = now
        if self._prove():
            self.proven = now
        if now > self.proven + SILENCE:
            raise BrokerError(f"no sign of life on the event subscription for {SILENCE:.0f} s")

    def _prove_amqp(self) -> bool:
        """Send a heartbeat when one is due; True when bytes have come since the last look."""
        connection = self._connection.connection
        before, self._received = self._received, connection.bytes_recv
        self._connection.heartbeat_check(rate=2)
        return bool(before != self._received)
