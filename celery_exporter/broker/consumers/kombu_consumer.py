"""Events through kombu's consumer: not the fastest way, but one for every transport there is."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import kombu
from kombu import Queue

from celery_exporter.broker.connection import (
    BrokerError,
    Source,
    broker_errors,
    close_quietly,
    connect,
    event_exchange,
    open_,
)
from celery_exporter.broker.message import UNREADABLE, Message, from_kombu

#: Seconds without a sign of life after which a subscription counts as dead. A living one shows some at
#: least every 3 s: the answer to our ping, or a heartbeat.
SILENCE = 10.0
#: Seconds between two signs of life that we ask for, or send.
TICK = 1.0
#: Seconds in which kombu's virtual transports have subscribed, usually.
SETTLE = 0.1
#: Messages returned by one read: some milliseconds of work, so that the lock is not held for longer.
BATCH = 200
#: Bytes after which it returns fewer. A batch of the largest real events is a hundredth of it.
BATCH_BYTES = 16 * 2**20


class BatchFull(Exception):  # noqa: N818  not an error: the way out of a drain that would go on while messages come
    """The batch is complete."""


class KombuConsumer:
    """Reads events from any transport of kombu's. See `EventConsumer`."""

    def __init__(self, source: Source) -> None:
        self.proven = 0.0
        self.mark: tuple[int, int] | None = None
        self._source = source
        self._config = source.current()  # of the connection that is open
        self._connection: kombu.Connection = connect(self._config)
        # One name for the life of the process: Redis keeps the binding of a queue that was not closed.
        self._queue_name = f"celeryev.{uuid.uuid4()}"
        self._batch: list[Message] = []
        self._bytes = 0
        self._early: list[Message] = []  # what came right after the subscription, for the first read
        self._ticked = 0.0
        self._failure: BrokerError | None = None  # raised by the read after the one that met it
        self._prove: Callable[[], bool] = lambda: True

    def open(self) -> None:
        """Connect and subscribe; raise BrokerError."""
        self._failure = None
        self._config = self._source.current()
        self._connection = connect(self._config)
        with broker_errors(self._connection):
            open_(self._connection)
            self._subscribe()
        self.proven = time.monotonic()
        self._early = self._settle()

    def _settle(self) -> list[Message]:
        """Read once, with which virtual transports subscribe; return what has come, for the first read."""
        return self._read(SETTLE)

    def _subscribe(self) -> None:
        exchange = event_exchange(self._config, self._connection)
        exclusive = self._connection.transport.driver_type == "amqp"
        if exclusive:
            # RabbitMQ 4.3 refuses a queue that is neither durable nor exclusive. A new name each time: the
            # queue of a connection that RabbitMQ does not know to be dead is locked.
            self._queue_name = f"celeryev.{uuid.uuid4()}"
        queue = Queue(
            self._queue_name, exchange, routing_key="#", durable=False, exclusive=exclusive, auto_delete=True
        )
        bound = queue(self._connection.default_channel)
        bound.declare()
        # Not through kombu's Consumer, which would inflate a compressed body of any size.
        bound.consume(self._queue_name, self._take, no_ack=True)

    def read(self, timeout: float) -> list[Message]:
        """Return messages; raise BrokerError."""
        early, self._early = self._early, []
        return early or self._read(timeout)

    def _read(self, timeout: float) -> list[Message]:
        if self._failure is not None:
            raise self._failure
        self._batch, self._bytes = [], 0
        try:
            with broker_errors(self._connection):
                self._tick()
                self._drain_all(timeout)
        except BrokerError as error:
            if not self._batch:
                raise
            self._failure = error  # what came before it is not lost for it
        if self._batch:
            self.proven = time.monotonic()
        return self._batch

    def _drain_all(self, timeout: float) -> None:
        try:
            self._drain(timeout)
            while True:
                self._drain(0)
        except (TimeoutError, BatchFull):
            pass

    def _drain(self, timeout: float) -> None:
        try:
            if self._is_left_over():
                self._connection.default_channel.handlers["LISTEN"]()
                return
            self._connection.drain_events(timeout=timeout)
        except (KeyError, TypeError, AttributeError, UnicodeError):
            # kombu's virtual transports trust the envelope round a message to be one of theirs.
            self._add(UNREADABLE)

    def _is_left_over(self) -> bool:
        """Tell whether redis-py has read more than fitted into the last batch: of that no poll tells."""
        subscription = self._connection.default_channel.__dict__.get("subclient")
        connection = subscription and subscription.connection
        return bool(connection and connection.can_read(timeout=0))

    def close(self) -> None:
        """Unsubscribe and hang up; a broker that is gone makes no difference."""
        close_quietly(self._connection)

    def release(self, mark: tuple[int, int]) -> None:
        """Do nothing: the broker has forgotten them."""

    def unconfirmed(self, mark: tuple[int, int]) -> list[int]:  # noqa: ARG002
        """Return nothing."""
        return []

    def expect_again(self, digests: list[int]) -> None:
        """Do nothing: none does."""

    def is_waiting(self) -> bool:
        """Tell that none waits."""
        return False

    def _take(self, message: Any) -> None:
        self._add(from_kombu(message))

    def _add(self, payload: Message) -> None:
        self._keep(payload)
        if not self._is_full():
            return
        if all(each is UNREADABLE for each in self._batch):  # a transport that fails without taking a message
            raise BrokerError("nothing but messages that kombu cannot read")
        raise BatchFull

    def _keep(self, payload: Message) -> None:
        self._batch.append(payload)
        self._bytes += len(payload.body)

    def _is_full(self) -> bool:
        return len(self._batch) >= BATCH or self._bytes >= BATCH_BYTES

    def _tick(self) -> None:
        """Ask for a sign of life, and give one, under traffic as well as in silence."""
        now = time.monotonic()
        if now < self._ticked + TICK:
            return
        self._ticked = now
        if self._source.leads_elsewhere(self._config):
            raise BrokerError("the broker URL names another broker now")
        if self._prove():
            self.proven = now
        if now > self.proven + SILENCE:
            raise BrokerError(f"no sign of life on the event subscription for {SILENCE:.0f} s")
