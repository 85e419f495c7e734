"""Check of the durable queue of --event-queue or --event-queue-durable. It consumes nothing."""

from __future__ import annotations

from struct import error as StructError  # noqa: N812
from typing import Any

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import BrokerError, broker_errors, close_quietly, connect, open_
from celery_exporter.broker.consumers.amqp_consumer import DURABLE_QUEUE_ARGUMENTS
from celery_exporter.doctor.problems import (
    EVENT_QUEUE_DENIED,
    EVENT_QUEUE_DIFFERS,
    EVENT_QUEUE_MISSING,
    EVENT_QUEUE_REFUSED,
    EVENT_QUEUE_UNUSED,
)
from celery_exporter.doctor.remedies import broker_address, delete_queues_command, refusal
from celery_exporter.quoting import printable
from celery_exporter.status.finding import Finding, count

#: What RabbitMQ answers to a user without permissions.
ACCESS_REFUSED = "access to queue "


def check_event_queue(config: BrokerConfig, queue: str) -> Finding:
    """Return whether the exporter could consume its queue, who does, and how many messages wait."""
    name = printable(queue)
    try:
        messages, consumers = _declare(config, queue)
    except BrokerError as error:
        return _refused(config, queue, str(error))
    waiting = count(messages, "message")
    if not consumers:
        option = "--event-queue-durable" if config.event_queue is None else f"--event-queue {name}"
        return EVENT_QUEUE_UNUSED.finding(queue=name, messages=waiting, option=option)
    return EVENT_QUEUE_UNUSED.ok(f"queue {name}: {count(consumers, 'consumer')}, {waiting} waiting")


def _refused(config: BrokerConfig, queue: str, error: str) -> Finding:
    """Return the finding for what RabbitMQ answers instead."""
    name, broker = printable(queue), broker_address(config)
    if "(404)" in error and config.event_queue is None:
        return EVENT_QUEUE_MISSING.ok(f"queue {name} does not exist yet; the exporter declares it")
    if "(404)" in error:
        return EVENT_QUEUE_MISSING.finding(queue=name, shards=config.shard.count if config.shard else "N")
    if "PRECONDITION_FAILED" in error:
        command = delete_queues_command(config, broker, [queue])
        return EVENT_QUEUE_DIFFERS.finding(queue=name, error=error, delete_command=command)
    if ACCESS_REFUSED in error:
        command = refusal(config, error).remedy(broker)
        return EVENT_QUEUE_DENIED.finding(queue=name, error=error, permit_command=command)
    return EVENT_QUEUE_REFUSED.finding(queue=name, error=error)


def _declare(config: BrokerConfig, name: str) -> tuple[int, int]:
    """Return how many messages wait and how many consumers there are; raise BrokerError.

    A queue that exists is declared again as the exporter does, which fails if it has other arguments, and
    changes nothing. (It would create one that is deleted in between; a passive declaration does not compare
    arguments.) An exporter that is given a queue does not declare it.
    """
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
            channel: Any = connection.default_channel
            declared = channel.queue_declare(name, passive=True)
            if config.event_queue is None:
                arguments = DURABLE_QUEUE_ARGUMENTS
                channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
            return declared.message_count, declared.consumer_count
    except StructError:
        raise BrokerError("a queue cannot have this name") from None
    finally:
        close_quietly(connection)
