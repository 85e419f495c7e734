"""Queues on AMQP and on kombu's other transports: a passive declaration answers with the length."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import kombu
from amqp import spec

from celery_exporter.broker.connection import broker_errors
from celery_exporter.core.queues import MAX_PROBES, Absence
from celery_exporter.core.snapshot import QueueStats

#: What AMQP answers about a queue that is not there, and kombu's virtual transports, as a text.
NOT_FOUND = "404"
#: Bytes that a name has at most on AMQP, and what RabbitMQ says of it.
LONGEST = 255


class DeclaredDepths:
    """See `QueueReader`. AMQP counts consumers; kombu's virtual transports answer 0, which says nothing.

    RabbitMQ logs each error, so a round ends after as many of them.
    """

    costly = True

    def __init__(self, connection: kombu.Connection, *, counts_consumers: bool) -> None:
        self._connection = connection
        self._counts_consumers = counts_consumers
        self._channel: Any = None

    def read(
        self,
        queues: Iterable[str],
        *,
        requested: Collection[str],
        consumed: Collection[str],  # noqa: ARG002  the broker knows it
    ) -> Mapping[str, QueueStats | Absence]:
        """Return what the queues hold; an exclusive one is unreadable."""
        answers: dict[str, QueueStats | Absence] = {}
        errors = 0
        with broker_errors(self._connection):
            for queue in queues:
                if errors >= MAX_PROBES:
                    break
                answer = self._declare(queue)
                errors += isinstance(answer, Absence) and queue not in requested
                if answer is Absence.MISSING and queue in requested:
                    answer = QueueStats(0, 0 if self._counts_consumers else None)
                answers[queue] = answer
        return answers

    def unacked(self) -> int | None:
        """Return None: only RabbitMQ's management API knows."""
        return None

    def _declare(self, queue: str) -> QueueStats | Absence:
        if not self._is_askable(queue):
            return Absence.UNREADABLE  # a sender of events said it; there is none
        # An error (404 no such queue, 405 exclusive) closes its channel; py-amqp has opened it again by then.
        if self._channel is None:
            self._channel = self._connection.channel()
        try:
            declared = self._channel.queue_declare(queue, passive=True)
        except self._connection.channel_errors as error:
            not_found = str(getattr(error, "reply_code", None)) == NOT_FOUND
            return Absence.MISSING if not_found else Absence.UNREADABLE
        except UnicodeDecodeError:
            # RabbitMQ cuts its words to size, be it in the middle of a letter, and py-amqp stumbles over it.
            channel, self._channel = self._channel, None
            channel.send_method(spec.Channel.CloseOk)
            channel.collect()
            return Absence.UNREADABLE
        return QueueStats(declared.message_count, declared.consumer_count if self._counts_consumers else None)

    def _is_askable(self, queue: str) -> bool:
        """Tell whether no more than a channel is at stake.

        RabbitMQ 4.3 cuts its words to letters, not bytes: it ends the connection over those that do not fit.
        """
        refusal = f"NOT_FOUND - no queue '{queue}' in vhost '{self._connection.virtual_host}'"
        return len((queue if refusal.isascii() else refusal).encode()) <= LONGEST
