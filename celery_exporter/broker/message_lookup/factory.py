"""Which message lookup a broker gets. A new kind of broker is a file, and a line here."""

from __future__ import annotations

from collections.abc import Sequence

import kombu

from celery_exporter.broker.message_lookup.base import MessageLookup
from celery_exporter.core.message_location import MessageLocation


def message_lookup_for(connection: kombu.Connection) -> MessageLookup:
    """Return the lookup for the broker of an open connection."""
    driver = connection.transport.driver_type
    if driver == "redis":
        from celery_exporter.broker.message_lookup.redis_lookup import RedisMessageLookup  # noqa: PLC0415  see queues

        return RedisMessageLookup(connection)
    if driver == "amqp":
        from celery_exporter.broker.message_lookup.amqp_lookup import AmqpMessageLookup  # noqa: PLC0415

        return AmqpMessageLookup(connection)
    return _NoLookup(driver)


class _NoLookup:
    """See `MessageLookup`. kombu's other transports have no way to read a message without taking it."""

    def __init__(self, driver: str) -> None:
        self._driver = driver

    def look_up(self, uuid: str, queues: Sequence[str], others: Sequence[str] = ()) -> MessageLocation:  # noqa: ARG002
        """Return that the place is unknown."""
        return MessageLocation(
            "unknown", reason=f"kombu's {self._driver} transport cannot read a message without taking it"
        )
