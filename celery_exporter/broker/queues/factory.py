"""What queues hold, one file a broker kind; `queue_reader_for` chooses.

A queue that cannot be read is an `Absence` in the answer, never 0, and costs no other queue its number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import kombu

from celery_exporter.broker.connection import has_fanout
from celery_exporter.core.queues import Absence
from celery_exporter.core.snapshot import QueueStats


class QueueReader(Protocol):
    """Measures queues over a connection of its own."""

    #: Whether each question costs a round trip, and each one about a queue that is not there an error.
    costly: bool

    def read(
        self, queues: Iterable[str], *, requested: Collection[str], consumed: Collection[str]
    ) -> Mapping[str, QueueStats | Absence]:
        """Return what these queues hold, or why that is not known; of those that were not reached, nothing.

        A `requested` queue that the broker does not have is empty: whoever scales from zero waits for it.
        A queue that a worker has `consumed` exists, also where the broker does not know empty ones.
        """

    def unacked(self) -> int | None:
        """Return how many messages workers hold unacknowledged, of all queues."""


def queue_reader_for(connection: kombu.Connection) -> QueueReader:
    """Return the measure for the kind of broker that an open connection leads to."""
    driver = connection.transport.driver_type
    if driver == "redis":
        from celery_exporter.broker.queues.redis_queues import RedisDepths  # noqa: PLC0415  only where it is used

        return RedisDepths(connection)
    if not has_fanout(connection.transport):
        from celery_exporter.broker.queues.virtual_queues import VirtualDepths  # noqa: PLC0415

        return VirtualDepths(connection)
    from celery_exporter.broker.queues.passive_declare import DeclaredDepths  # noqa: PLC0415

    return DeclaredDepths(connection, counts_consumers=driver == "amqp")
