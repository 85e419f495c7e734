"""Which queue reader a broker gets. A new kind of broker is a file, and a line here."""

from __future__ import annotations

import kombu

from celery_exporter.broker.connection import has_fanout
from celery_exporter.broker.queues.base import QueueReader


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
