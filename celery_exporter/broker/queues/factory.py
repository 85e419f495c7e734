"""What every queue reader promises, and which one a broker gets.

A queue that cannot be read is an `Absence` in the result, never 0, and does not affect the other queues.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import kombu

from celery_exporter.broker.connection import has_fanout
from celery_exporter.core.queues import Absence
from celery_exporter.core.snapshot import QueueStats


class QueueReader(Protocol):
    """Reads the lengths of queues."""

    #: Whether each queue costs a round trip, and a missing one an error on the broker.
    costly: bool

    def read(
        self, queues: Iterable[str], *, requested: Collection[str], consumed: Collection[str]
    ) -> Mapping[str, QueueStats | Absence]:
        """Return the contents of these queues, or why they are unknown; a queue that was skipped is missing.

        A `requested` queue that does not exist counts as empty, so that autoscalers can scale from zero. A
        queue that a worker has `consumed` exists, even if the broker does not store empty queues.
        """

    def unacked(self) -> int | None:
        """Return the number of unacknowledged messages of all queues, None if it is unknown."""


def queue_reader_for(connection: kombu.Connection) -> QueueReader:
    """Return the reader for the broker of an open connection."""
    driver = connection.transport.driver_type
    if driver == "redis":
        from celery_exporter.broker.queues.redis_queues import RedisQueueReader  # noqa: PLC0415  only where it is used

        return RedisQueueReader(connection)
    if not has_fanout(connection.transport):
        from celery_exporter.broker.queues.virtual_queues import VirtualQueueReader  # noqa: PLC0415

        return VirtualQueueReader(connection)
    from celery_exporter.broker.queues.passive_declare import PassiveDeclareReader  # noqa: PLC0415

    return PassiveDeclareReader(connection, counts_consumers=driver == "amqp")
