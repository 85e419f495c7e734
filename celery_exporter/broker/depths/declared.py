"""Queues on AMQP and on kombu's other transports: a passive declaration answers with the length."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import kombu
from amqp import spec

from celery_exporter.broker.connection import translated
from celery_exporter.core.snapshot import Depth

#: Bytes that a name has at most on AMQP, and what RabbitMQ says of it.
LONGEST = 255


class DeclaredDepths:
    """See `Depths`. AMQP counts consumers; kombu's virtual transports answer 0, which says nothing."""

    def __init__(self, connection: kombu.Connection, *, counts_consumers: bool) -> None:
        self._connection = connection
        self._counts_consumers = counts_consumers
        self._channel: Any = None

    def read(self, queues: Iterable[str], named: Collection[str]) -> dict[str, Depth]:  # noqa: ARG002  it asks
        """Return what the queues hold; one that does not exist or is exclusive is missing."""
        found = {}
        with translated(self._connection):
            for queue in queues:
                declared = self._declare(queue)
                if declared is not None:
                    consumers = declared.consumer_count if self._counts_consumers else None
                    found[queue] = Depth(declared.message_count, consumers)
        return found

    def unacked(self) -> int | None:
        """Return None: only RabbitMQ's management API knows."""
        return None

    def _declare(self, queue: str) -> Any:
        if not self._is_askable(queue):
            return None  # a sender of events said it; there is none
        # An error (404 no such queue, 405 exclusive) closes its channel; py-amqp has opened it again by then.
        if self._channel is None:
            self._channel = self._connection.channel()
        try:
            return self._channel.queue_declare(queue, passive=True)
        except self._connection.channel_errors:
            return None
        except UnicodeDecodeError:
            # RabbitMQ cuts its words to size, be it in the middle of a letter, and py-amqp stumbles over it.
            channel, self._channel = self._channel, None
            channel.send_method(spec.Channel.CloseOk)
            channel.collect()
            return None

    def _is_askable(self, queue: str) -> bool:
        """Tell whether no more than a channel is at stake.

        RabbitMQ 4.3 cuts its words to letters, not bytes: it ends the connection over those that do not fit.
        """
        refusal = f"NOT_FOUND - no queue '{queue}' in vhost '{self._connection.virtual_host}'"
        return len((queue if refusal.isascii() else refusal).encode()) <= LONGEST
