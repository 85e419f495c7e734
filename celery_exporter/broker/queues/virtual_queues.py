"""Queue lengths on kombu's transports without fan-out (SQL, SQS …), where reading may create a queue.

Most of these transports cannot check whether a queue exists, and kombu/transport/virtual/base.py then
declares it. So a queue is read only where its existence can be checked; elsewhere its length is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import kombu
from kombu.transport import virtual

from celery_exporter.broker.connection import broker_errors
from celery_exporter.core.queues import Absence
from celery_exporter.core.snapshot import QueueStats


def _is_row(channel: Any, queue: str) -> bool:
    """Return whether SQL has a row for the queue (kombu/transport/sqlalchemy)."""
    rows = channel.session.query(channel.queue_cls).filter(channel.queue_cls.name == queue)
    exists = rows.first() is not None
    channel.session.rollback()  # so that the next query does not see the same snapshot again
    return exists


def _is_on_sqs(channel: Any, queue: str) -> bool:
    """Return whether SQS has the queue, as kombu does before it creates one (kombu/transport/SQS)."""
    try:
        channel._resolve_queue_url(queue)  # noqa: SLF001  every public method creates the queue
    except Exception as error:
        if "QueueException" in type(error).__name__:
            return False
        raise
    return True


#: Driver type → how to check whether a queue exists. Others: the transport's own check, if it has one.
_CHECKS: Mapping[str, Callable[[Any, str], bool | None]] = {
    "sql": _is_row,
    "sqs": _is_on_sqs,
    "memory": lambda *_: None,  # the memory of this process, which has no queue of a worker
}


class VirtualQueueReader:
    """See `QueueReader`."""

    costly = True

    def __init__(self, connection: kombu.Connection) -> None:
        self._connection = connection
        self._exists = _CHECKS.get(connection.transport.driver_type, _has_queue)

    def read(
        self,
        queues: Iterable[str],
        *,
        requested: Collection[str],
        consumed: Collection[str],  # noqa: ARG002  the transport stores empty queues, too
    ) -> Mapping[str, QueueStats | Absence]:
        """Return the contents of the queues; one whose existence cannot be checked is unreadable."""
        stats: dict[str, QueueStats | Absence] = {}
        with broker_errors(self._connection):
            channel = self._connection.default_channel
            for queue in queues:
                exists = self._exists(channel, queue)
                if exists is None:
                    stats[queue] = Absence.UNREADABLE
                elif exists:
                    stats[queue] = QueueStats(channel._size(queue))  # noqa: SLF001  kombu has no public method
                else:
                    stats[queue] = QueueStats(0) if queue in requested else Absence.MISSING
        return stats

    def unacked(self) -> int | None:
        """Return None: these transports do not report it."""
        return None


def _has_queue(channel: Any, queue: str) -> bool | None:
    if type(channel)._has_queue is virtual.Channel._has_queue:  # noqa: SLF001  it always returns True
        return None
    return bool(channel._has_queue(queue))  # noqa: SLF001
