"""Queue lengths on AMQP and on kombu's other transports with fan-out, by passive declaration."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import kombu
from amqp import spec

from celery_exporter.broker.connection import broker_errors
from celery_exporter.core.queues import MAX_PROBES, Absence
from celery_exporter.core.snapshot import QueueStats

#: Reply code for a missing queue, of AMQP and of kombu's virtual transports, as a text.
NOT_FOUND = "404"
#: Longest short string of AMQP: a queue name, or the text of an error.
MAX_SHORT_STRING_BYTES = 255


class PassiveDeclareReader:
    """Reads queue lengths with passive declarations.

    AMQP counts consumers; kombu's virtual transports always reply 0, which is ignored.

    RabbitMQ logs each error, so one read ends after `MAX_PROBES` of them.
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
        consumed: Collection[str],  # noqa: ARG002  RabbitMQ stores empty queues, too
    ) -> Mapping[str, QueueStats | Absence]:
        """Return the contents of the queues; an exclusive one is unreadable."""
        stats: dict[str, QueueStats | Absence] = {}
        errors = 0
        with broker_errors(self._connection):
            for queue in queues:
                if errors >= MAX_PROBES:
                    break
                result = self._declare(queue)
                errors += isinstance(result, Absence) and queue not in requested
                if result is Absence.MISSING and queue in requested:
                    result = QueueStats(0, 0 if self._counts_consumers else None)
                stats[queue] = result
        return stats

    def unacked(self) -> int | None:
        """Return None: only RabbitMQ's management API reports it."""
        return None

    def _declare(self, queue: str) -> QueueStats | Absence:
        if not self._is_safe_name(queue):
            return Absence.UNREADABLE  # a name from an event; no such queue exists
        # An error (404 no such queue, 405 exclusive) closes the channel; py-amqp has reopened it by then.
        if self._channel is None:
            self._channel = self._connection.channel()
        try:
            declared = self._channel.queue_declare(queue, passive=True)
        except self._connection.channel_errors as error:
            not_found = str(getattr(error, "reply_code", None)) == NOT_FOUND
            return Absence.MISSING if not_found else Absence.UNREADABLE
        except UnicodeDecodeError:
            # RabbitMQ cuts a long error text, perhaps inside a character, which py-amqp cannot decode.
            channel, self._channel = self._channel, None
            channel.send_method(spec.Channel.CloseOk)
            channel.collect()
            return Absence.UNREADABLE
        return QueueStats(declared.message_count, declared.consumer_count if self._counts_consumers else None)

    def _is_safe_name(self, queue: str) -> bool:
        """Return whether an error about this queue closes no more than the channel.

        RabbitMQ 4.3 cuts an error text by characters, and closes the connection if its bytes are too many.
        """
        refusal = f"NOT_FOUND - no queue '{queue}' in vhost '{self._connection.virtual_host}'"
        return len((queue if refusal.isascii() else refusal).encode()) <= MAX_SHORT_STRING_BYTES
