"""Consumes events through kombu: slower than the other consumers, but for every transport."""

from __future__ import annotations

from typing import Any

from celery_exporter.broker.connection import BrokerError
from celery_exporter.broker.consumers.base import BaseConsumer, BatchFull, new_queue_name
from celery_exporter.broker.message import UNREADABLE, Message, from_kombu

#: Time of the first read, in which most of kombu's virtual transports subscribe.
SETTLE_SECONDS = 0.1


class KombuConsumer(BaseConsumer):
    """Consumes events from any transport of kombu. See `EventConsumer`."""

    def _subscribe(self) -> None:
        exclusive = self._connection.transport.driver_type == "amqp"
        if exclusive:
            # RabbitMQ 4.3 refuses a queue that is neither durable nor exclusive. A new name each time: the
            # queue of a dead connection stays locked until RabbitMQ notices.
            self._queue_name = new_queue_name()
        # Not through kombu's Consumer, which would decompress a body to any size.
        self._declare_queue(exclusive=exclusive).consume(self._queue_name, self._on_message, no_ack=True)

    def _settle(self) -> list[Message]:
        return self._read(SETTLE_SECONDS)

    def _check_alive(self) -> bool:
        return True  # kombu has no probe for every transport; a dead connection raises by itself

    def _drain(self, timeout: float) -> None:
        try:
            if self._has_unread_reply():
                self._connection.default_channel.handlers["LISTEN"]()
                return
            self._connection.drain_events(timeout=timeout)
        except (KeyError, TypeError, AttributeError, UnicodeError):
            # kombu's virtual transports expect every envelope to be one of their own.
            self._add(UNREADABLE)

    def _has_unread_reply(self) -> bool:
        """Return whether redis-py has read more than fitted into the last batch, which no poll reports."""
        subscription = self._connection.default_channel.__dict__.get("subclient")
        connection = subscription and subscription.connection
        return bool(connection and connection.can_read(timeout=0))

    def _on_message(self, message: Any) -> None:
        self._add(from_kombu(message))

    def _add(self, message: Message) -> None:
        try:
            super()._add(message)
        except BatchFull:
            # UNREADABLE stands for an error of the transport, which may not have taken a message.
            if all(message is UNREADABLE for message in self._batch):
                raise BrokerError("kombu cannot read any message") from None
            raise
