"""Chooses the fastest event consumer for a broker."""

from __future__ import annotations

from celery_exporter.broker.connection import Source, is_amqp, is_redis
from celery_exporter.broker.consumers.base import EventConsumer
from celery_exporter.broker.consumers.kombu_consumer import KombuConsumer


def consumer_for(source: Source, *, saves_state: bool = False) -> EventConsumer:
    """Return a consumer, not open yet, for the broker that `source` names.

    `saves_state`: messages are released when a state file has them, about once a second, not after each read.
    """
    config = source.current()
    if config.event_consumer == "kombu":
        return KombuConsumer(source)
    # Imported where they are used: the memory for the driver of another broker is saved.
    if is_redis(config):
        from celery_exporter.broker.consumers.redis_consumer import RedisConsumer  # noqa: PLC0415

        return RedisConsumer(source)
    if is_amqp(config):
        from celery_exporter.broker.consumers.amqp_consumer import AmqpConsumer  # noqa: PLC0415

        return AmqpConsumer(source, saves_state=saves_state)
    return KombuConsumer(source)
