"""Queues on kombu's transports without fan-out (SQL, SQS …), where a passive declaration makes a queue.

kombu/transport/virtual/base.py declares what most of these transports cannot look for. So a queue is measured
only where it can be looked for first; on the others no length is known.
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
    """Tell whether SQL has a row for the queue (kombu/transport/sqlalchemy)."""
    rows = channel.session.query(channel.queue_cls).filter(channel.queue_cls.name == queue)
    found = rows.first() is not None
    channel.session.rollback()  # so that the next look does not see the same moment again
    return found


def _is_on_sqs(channel: Any, queue: str) -> bool:
    """Tell whether SQS has the queue: the look that kombu takes before it makes one (kombu/transport/SQS)."""
    try:
        channel._resolve_queue_url(queue)  # noqa: SLF001  there is no public way that makes nothing
    except Exception as error:
        if "QueueException" in type(error).__name__:
            return False
        raise
    return True


#: Driver type → what tells whether a queue is there. Others: the transport's own, if it has one.
_LOOKS: Mapping[str, Callable[[Any, str], bool | None]] = {
    "sql": _is_row,
    "sqs": _is_on_sqs,
    "memory": lambda *_: None,  # the memory of this process, in which no worker's queue can be
}


class VirtualDepths:
    """See `QueueReader`."""

    costly = True

    def __init__(self, connection: kombu.Connection) -> None:
        self._connection = connection
        self._exists = _LOOKS.get(connection.transport.driver_type, _has_queue)

    def read(
        self,
        queues: Iterable[str],
        *,
        requested: Collection[str],
        consumed: Collection[str],  # noqa: ARG002  the transport is asked
    ) -> Mapping[str, QueueStats | Absence]:
        """Return what the queues hold; where a transport cannot look for a queue it is unreadable."""
        answers: dict[str, QueueStats | Absence] = {}
        with broker_errors(self._connection):
            channel = self._connection.default_channel
            for queue in queues:
                exists = self._exists(channel, queue)
                if exists is None:
                    answers[queue] = Absence.UNREADABLE
                elif exists:
                    answers[queue] = QueueStats(channel._size(queue))  # noqa: SLF001  kombu's way to the length
                else:
                    answers[queue] = QueueStats(0) if queue in requested else Absence.MISSING
        return answers

    def unacked(self) -> int | None:
        """Return None: these transports do not tell."""
        return None


def _has_queue(channel: Any, queue: str) -> bool | None:
    if type(channel)._has_queue is virtual.Channel._has_queue:  # noqa: SLF001  it says yes to all
        return None
    return bool(channel._has_queue(queue))  # noqa: SLF001
