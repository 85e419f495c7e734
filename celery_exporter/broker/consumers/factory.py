"""Event subscriptions, one file a way of reading. What each of them promises is `EventConsumer`."""

from __future__ import annotations

from typing import Protocol

from celery_exporter.broker.connection import Source, is_amqp, is_redis
from celery_exporter.broker.consumers.kombu_consumer import KombuConsumer
from celery_exporter.broker.message import Message


class EventConsumer(Protocol):
    """A subscription to the event exchange, used by one thread.

    `open` subscribes anew and may be called again after `close`. `read` waits `timeout` seconds for
    the first message at most, then returns what has come, a bounded number; it keeps the connection
    alive meanwhile, under traffic too. `open` and `read` raise BrokerError when the broker is gone, or
    silent for longer than a living one is. `proven` is when the subscription last proved to be alive, by
    the monotonic clock. `close` never raises.

    A durable queue forgets a message when it is told to. `mark` is up to where messages were read, and
    `release`, from any thread, tells up to where they have been used, which the next read passes on. Those
    that were used and of which the queue may not know are `unconfirmed`, by their digests; a later
    process that is told of them drops them if they come again (`expect_again`). `is_waiting` tells whether so
    many wait to be released that this is urgent. Without such a queue `mark` is None.
    """

    proven: float
    mark: tuple[int, int] | None

    def open(self) -> None:
        """Subscribe."""

    def read(self, timeout: float) -> list[Message]:
        """Return messages."""

    def close(self) -> None:
        """Unsubscribe and hang up."""

    def release(self, mark: tuple[int, int]) -> None:
        """Take messages up to this mark for used."""

    def unconfirmed(self, mark: tuple[int, int]) -> list[int]:
        """Return what was used up to this mark, and may come again."""

    def expect_again(self, digests: list[int]) -> None:
        """Drop these messages if they come again."""

    def is_waiting(self) -> bool:
        """Tell whether many messages wait to be released."""


def consumer_for(source: Source, *, saves_state: bool = False) -> EventConsumer:
    """Return the reader for the broker that the settings name; it is not open yet."""
    config = source.current()
    if config.event_consumer == "kombu":
        return KombuConsumer(source)
    if is_redis(config):
        from celery_exporter.broker.consumers.redis_consumer import RedisConsumer  # noqa: PLC0415  only where it is used

        return RedisConsumer(source)
    if is_amqp(config):
        from celery_exporter.broker.consumers.amqp_consumer import AmqpConsumer  # noqa: PLC0415  only where it is used

        return AmqpConsumer(source, saves_state=saves_state)
    return KombuConsumer(source)
