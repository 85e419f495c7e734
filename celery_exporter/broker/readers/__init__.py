"""Event subscriptions, one file a way of reading. What each of them promises is `Reader`."""

from __future__ import annotations

from typing import Protocol

from celery_exporter.broker.connection import Source, is_amqp, is_redis
from celery_exporter.broker.payload import Payload
from celery_exporter.broker.readers.kombu import KombuReader


class Reader(Protocol):
    """A subscription to the event exchange, used by one thread.

    `open` subscribes anew and may be called again after `close`. `read` waits `timeout` seconds for
    the first message at most, then returns what has come, a bounded number; it keeps the connection
    alive meanwhile, under traffic too. `open` and `read` raise BrokerError when the broker is gone, or
    silent for longer than a living one is. `proven` is when the subscription last proved to be alive, by
    the monotonic clock. `close` never raises.
    """

    proven: float

    def open(self) -> None:
        """Subscribe."""

    def read(self, timeout: float) -> list[Payload]:
        """Return messages."""

    def close(self) -> None:
        """Unsubscribe and hang up."""


def reader_for(source: Source) -> Reader:
    """Return the reader for the broker that the settings name; it is not open yet."""
    settings = source.current()
    if settings.reader == "kombu":
        return KombuReader(source)
    if is_redis(settings):
        from celery_exporter.broker.readers.redis import RedisReader  # noqa: PLC0415  only where it is used

        return RedisReader(source)
    if is_amqp(settings):
        from celery_exporter.broker.readers.amqp import AmqpReader  # noqa: PLC0415  only where it is used

        return AmqpReader(source)
    return KombuReader(source)
