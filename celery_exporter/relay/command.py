"""The command `relay`: consumes all events, and publishes them to the queues of the shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from kombu import Exchange, Queue
from msgspec.structs import replace

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import (
    BrokerError,
    broker_errors,
    check,
    close_quietly,
    connect,
    open_,
)
from celery_exporter.broker.consumers.acknowledgements import Acknowledgements
from celery_exporter.broker.consumers.amqp_consumer import DURABLE_QUEUE_ARGUMENTS, PREFETCH, AmqpConsumer
from celery_exporter.broker.consumers.base import BATCH_MESSAGES
from celery_exporter.broker.message import Message
from celery_exporter.broker.source import ConfigSource
from celery_exporter.broker.url import masked
from celery_exporter.relay.publisher import ShardPublisher
from celery_exporter.relay.split import Part, split
from celery_exporter.runtime.backoff import back_off

#: Longest wait before `ended` is called again, and time between two lines of progress.
POLL_SECONDS, PROGRESS_SECONDS = 0.25, 60.0
#: Time in which messages gather that are published together.
GATHER_SECONDS = 0.05


def relay(
    source: BrokerConfig,
    target: BrokerConfig,
    count: int,
    *,
    ended: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Relay events to the queues of `count` shards until `ended`; `say` prints progress.

    Waits for a broker that cannot be reached. Raises UnusableURLError for a URL that is not of RabbitMQ.
    """
    source = replace(
        source, event_queue_durable=False, event_queue=f"{source.event_exchange}.relay-of-{count}"
    )
    for config in (source, target):
        check(replace(config, event_queue=source.event_queue))
    consumer = AmqpConsumer(ConfigSource(source), acks=Acknowledgements(PREFETCH))
    publisher = ShardPublisher(ConfigSource(target), count)
    say(f"declares the queue {source.event_queue} on {masked(source.broker_url)}")
    say(f"declares the queues {', '.join(publisher.queues.values())} on {masked(target.broker_url)}")
    received = published = 0
    reported = time.monotonic()
    with closing(consumer), closing(publisher):
        for messages in _batches(consumer, source, ended, say):
            parts = split(messages, count)
            if not _is_published(publisher, parts, target, ended, say):
                return  # without an acknowledgement: the next process receives these messages again
            if consumer.mark is not None:
                consumer.release(consumer.mark)
            received, published = received + len(messages), published + len(parts)
            if len(messages) < BATCH_MESSAGES:
                _wait(GATHER_SECONDS, ended)
            if time.monotonic() > reported + PROGRESS_SECONDS:
                reported = time.monotonic()
                say(f"{received:,} messages received, {published:,} published")


def _batches(
    consumer: AmqpConsumer, config: BrokerConfig, ended: Callable[[], bool], say: Callable[[str], None]
) -> Iterator[list[Message]]:
    """Yield batches of messages until `ended`; reconnect as often as needed."""
    waits = back_off(config.retry_interval)
    while not ended():
        try:
            _declare_queue(ConfigSource(config).current())
            consumer.open()
            say(f"receiving events from {config.event_queue}")
            waits = back_off(config.retry_interval)
            while not ended():
                yield consumer.read(POLL_SECONDS)
        except BrokerError as error:  # noqa: PERF203  rare
            say(f"no events from {masked(config.broker_url)}, connecting again: {error}")
            consumer.close()
            _wait(next(waits), ended)


def _declare_queue(config: BrokerConfig) -> None:
    """Declare the queue that keeps all events while no relay runs. Raises BrokerError."""
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
            Queue(
                config.event_queue,
                Exchange(config.event_exchange, "topic"),
                routing_key="#",
                durable=True,
                # One relay at a time: two that share the messages would change the order of events.
                queue_arguments=DURABLE_QUEUE_ARGUMENTS,
            )(connection.default_channel).declare()
    finally:
        close_quietly(connection)


def _is_published(
    publisher: ShardPublisher,
    parts: Sequence[Part],
    config: BrokerConfig,
    ended: Callable[[], bool],
    say: Callable[[str], None],
) -> bool:
    """Publish, as often as needed; return False if `ended` came first."""
    for wait in back_off(config.retry_interval):
        try:
            publisher.publish(parts)
        except BrokerError as error:
            say(f"cannot publish to {masked(config.broker_url)}, trying again: {error}")
        else:
            return True
        _wait(wait, ended)
        if ended():
            break
    return False


def _wait(seconds: float, ended: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not ended():
        time.sleep(min(left, POLL_SECONDS))
