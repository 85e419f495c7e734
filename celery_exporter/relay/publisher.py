"""Publishes the parts of messages to the queues of the shards, and waits until RabbitMQ has them.

    exchange celeryev.of-4 (direct)  → celeryev.0-of-4 (durable, single active consumer) → shard 0/4
                                     → celeryev.1-of-4 …

Not the exchange type `x-modulus-hash`: its hash is that of Erlang, so a relay could not tell which events of
a batch share a queue, and the queues of `--shard` would have other tasks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kombu import Connection, Exchange, Queue

from celery_exporter.broker.codecs import JSON
from celery_exporter.broker.connection import (
    BrokerError,
    Source,
    broker_errors,
    close_quietly,
    connect,
    open_,
)
from celery_exporter.broker.consumers.amqp_consumer import DURABLE_QUEUE_ARGUMENTS, declare
from celery_exporter.relay.split import EVERY_SHARD, Part

#: Seconds until RabbitMQ must have confirmed a batch. It confirms none while it blocks publishers.
CONFIRM_SECONDS = 10.0
#: Timeout of a read of what RabbitMQ may have sent.
POLL_SECONDS = 0.001
TRANSIENT = 1  # as Celery publishes events


class ShardPublisher:
    """A connection to the broker with the queues of the shards, opened at the first use. For one thread."""

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        event_exchange = source.current().event_exchange
        self._exchange = Exchange(f"{event_exchange}.of-{count}", "direct", durable=True)
        self.exchange = self._exchange.name
        self.queues = {str(index): f"{event_exchange}.{index}-of-{count}" for index in range(count)}
        self._connection: Connection = connect(source.current())
        self._channel: Any = None  # None: it is not open
        self._published = 0  # delivery tag of the newest message on this channel
        self._unconfirmed: set[int] = set()
        self._refused = ""

    def publish(self, parts: Sequence[Part]) -> None:
        """Publish messages, and return when RabbitMQ has all of them. Raises BrokerError.

        After an error it is unknown which of them RabbitMQ has. Without parts, keeps the connection alive.
        """
        try:
            if self._channel is None:
                self._open()
            with broker_errors(self._connection):
                for part in parts:
                    self._publish(part)
                self._await_confirms()
                if not parts:
                    self._keep_alive()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection. Raises nothing."""
        self._channel = None
        close_quietly(self._connection)

    def _open(self) -> None:
        """Connect, and declare the exchange and the queues."""
        self._connection = connect(self._source.current())
        with broker_errors(self._connection):
            open_(self._connection)
            channel = self._connection.default_channel
            for shard, name in self.queues.items():
                queue = Queue(
                    name, self._exchange, shard, durable=True, queue_arguments=DURABLE_QUEUE_ARGUMENTS
                )(channel)
                declare(queue)
                queue.bind_to(self._exchange, EVERY_SHARD)
            channel.confirm_select()
            channel.events["basic_ack"].add(self._on_ack)
            channel.events["basic_nack"].add(self._on_nack)
            channel.events["basic_return"].add(self._on_return)
        self._channel, self._published, self._unconfirmed, self._refused = channel, 0, set(), ""

    def _keep_alive(self) -> None:
        """Send a heartbeat if one is due, and read those of RabbitMQ."""
        self._connection.heartbeat_check()
        with suppress(TimeoutError):
            self._connection.drain_events(timeout=POLL_SECONDS)

    def _publish(self, part: Part) -> None:
        message = part.message
        prepared = self._channel.prepare_message(
            message.body,
            content_type=message.content_type or JSON,
            content_encoding=message.content_encoding or "utf-8",
            headers={"compression": message.compression} if message.compression else {},
            properties={"delivery_mode": TRANSIENT},
        )
        self._published += 1
        self._unconfirmed.add(self._published)
        # Mandatory: RabbitMQ also confirms what it could put into no queue.
        self._channel.basic_publish(prepared, self._exchange.name, part.shard, mandatory=True)

    def _await_confirms(self) -> None:
        deadline = time.monotonic() + CONFIRM_SECONDS
        while self._unconfirmed and not self._refused:
            left = deadline - time.monotonic()
            if left <= 0:
                raise BrokerError(f"RabbitMQ has not confirmed messages for {CONFIRM_SECONDS:.0f} s")
            with suppress(TimeoutError):
                self._connection.drain_events(timeout=left)
        if self._refused:
            raise BrokerError(self._refused)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        if multiple:
            self._unconfirmed = {other for other in self._unconfirmed if other > tag}
        else:
            self._unconfirmed.discard(tag)

    def _on_nack(self, *_: object) -> None:
        self._refused = "RabbitMQ could not take a message"

    def _on_return(self, _error: object, _exchange: str, shard: str, _message: object) -> None:
        self._refused = f"the queue of shard {shard} is gone"
