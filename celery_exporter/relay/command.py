"""The command `relay`: consumes all events, and publishes them to the queues of the shards."""

from __future__ import annotations

import logging
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
from celery_exporter.broker.consumers.amqp_consumer import (
    DURABLE_QUEUE_ARGUMENTS,
    PREFETCH,
    AmqpConsumer,
    declare,
)
from celery_exporter.broker.consumers.base import BATCH_MESSAGES
from celery_exporter.broker.message import Message
from celery_exporter.broker.source import ConfigSource
from celery_exporter.relay.publisher import ShardPublisher
from celery_exporter.relay.split import Part, split
from celery_exporter.runtime.backoff import back_off

log = logging.getLogger(__name__)

#: Longest wait before `ended` is called again, and time between two lines of progress.
POLL_SECONDS, PROGRESS_SECONDS = 0.25, 60.0
#: Time in which messages gather that are published together.
GATHER_SECONDS = 0.05


def relay(source: BrokerConfig, target: BrokerConfig, count: int, *, ended: Callable[[], bool]) -> None:
    """Relay events to the queues of `count` shards until `ended`.

    Waits for a broker that cannot be reached. Raises UnusableURLError for a URL that is not of RabbitMQ.
    """
    # One name for any number of shards: a relay with another number continues where the last one ended.
    source = replace(source, event_queue_durable=False, event_queue=f"{source.event_exchange}.relay")
    for config in (source, target):
        check(replace(config, event_queue=source.event_queue))
    events, shards = ConfigSource(source), ConfigSource(target)
    consumer = AmqpConsumer(events, acks=Acknowledgements(PREFETCH))
    publisher = ShardPublisher(shards, count)
    log.info("declares the queue %s on %s", source.event_queue, events.masked_url())
    queues = ", ".join(publisher.queues.values())
    log.info(
        "declares the exchange %s and the queues %s on %s", publisher.exchange, queues, shards.masked_url()
    )
    progress, outage = _Progress(), _Outage("cannot publish to", "publishes again to", shards)
    with closing(consumer), closing(publisher):
        for messages in _batches(consumer, events, ended):
            parts = split(messages, count)
            if not _is_published(publisher, parts, target.retry_interval, ended, outage):
                break  # without an acknowledgement: the next process receives these messages again
            if consumer.mark is not None:
                consumer.release(consumer.mark)
            progress.add(consumer, len(messages), len(parts))
            if len(messages) < BATCH_MESSAGES:
                _wait(GATHER_SECONDS, ended)
    progress.log_relayed()
    log.info("stopped")


class _Progress:
    """Logs whether this relay is active, and once a minute what it relayed, if anything."""

    def __init__(self) -> None:
        self._role = ""
        self._begin = time.monotonic()
        self._messages = self._parts = 0  # since then

    def add(self, consumer: AmqpConsumer, messages: int, parts: int) -> None:
        """Take note of what was relayed, and of whether RabbitMQ sends events to this consumer."""
        role = "active: this" if consumer.is_active else "standby: another"
        if role != self._role and (consumer.is_active or consumer.is_standby):
            self._role = role
            log.info("%s relay receives the events", role)
        self._messages, self._parts = self._messages + messages, self._parts + parts
        if time.monotonic() > self._begin + PROGRESS_SECONDS:
            self.log_relayed()

    def log_relayed(self) -> None:
        """Log what was relayed since the last call."""
        now = time.monotonic()
        if self._messages:
            log.info(
                "relayed %d messages with events as %d messages to shards in %.0f s",
                *(self._messages, self._parts, now - self._begin),
            )
        self._begin, self._messages, self._parts = now, 0, 0


class _Outage:
    """Logs the first error of an outage, further ones with another text, and its end."""

    def __init__(self, failure: str, end: str, source: ConfigSource) -> None:
        self._failure, self._end, self._source = failure, end, source
        self._logged = ""

    def note(self, error: str) -> None:
        """Take note of an error, or of a success if it is empty."""
        if error and error != self._logged:
            log.warning("%s %s: %s", self._failure, self._source.masked_url(), error)
        elif self._logged and not error:
            log.info("%s %s", self._end, self._source.masked_url())
        self._logged = error


def _batches(
    consumer: AmqpConsumer, source: ConfigSource, ended: Callable[[], bool]
) -> Iterator[list[Message]]:
    """Yield batches of messages until `ended`; reconnect as often as needed."""
    outage = _Outage("no events from", "subscribed again on", source)
    longest = source.current().retry_interval
    waits = back_off(longest)
    while not ended():
        try:
            _declare_queue(source.current())
            consumer.open()
            while not ended():
                messages = consumer.read(POLL_SECONDS)
                outage.note("")
                waits = back_off(longest)
                yield messages
        except BrokerError as error:
            outage.note(str(error))
            consumer.close()
            _wait(next(waits), ended)


def _declare_queue(config: BrokerConfig) -> None:
    """Declare the queue that keeps all events while no relay runs. Raises BrokerError."""
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
            queue = Queue(
                config.event_queue,
                Exchange(config.event_exchange, "topic"),
                routing_key="#",
                durable=True,
                # One relay at a time: two that share the messages would change the order of events.
                queue_arguments=DURABLE_QUEUE_ARGUMENTS,
            )
            declare(queue(connection.default_channel))
    finally:
        close_quietly(connection)


def _is_published(
    publisher: ShardPublisher,
    parts: Sequence[Part],
    longest_wait: float,
    ended: Callable[[], bool],
    outage: _Outage,
) -> bool:
    """Publish, as often as needed; return False if `ended` came first."""
    for wait in back_off(longest_wait):
        try:
            publisher.publish(parts)
        except BrokerError as error:
            outage.note(str(error))
        else:
            outage.note("")
            return True
        _wait(wait, ended)
        if ended():
            break
    return False


def _wait(seconds: float, ended: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not ended():
        time.sleep(min(left, POLL_SECONDS))
