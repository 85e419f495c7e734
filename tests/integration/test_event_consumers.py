"""The contract of event consumers (see `EventConsumer`), for each consumer on each broker."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import kombu
import pytest
from celery.events.event import get_exchange
from harness.configs import broker_config
from harness.events import publish_event_bytes, publish_events, task_events
from harness.proxy import Proxy
from harness.time_spans import TimeSpan
from harness.waiting import eventually

from celery_exporter.broker.codecs import CONTENT_TYPES
from celery_exporter.broker.connection import BrokerError
from celery_exporter.broker.consumers.amqp_consumer import AmqpConsumer
from celery_exporter.broker.consumers.base import BATCH_MESSAGES, EventConsumer
from celery_exporter.broker.consumers.factory import consumer_for
from celery_exporter.broker.consumers.kombu_consumer import KombuConsumer
from celery_exporter.broker.consumers.redis_consumer import RedisConsumer
from celery_exporter.broker.message import UNREADABLE, events_of
from celery_exporter.broker.source import ConfigSource
from celery_exporter.core.events import Event

#: Messages in several batches, published before the first read.
SEVERAL_BATCHES = 3 * BATCH_MESSAGES + 7


@pytest.fixture
def proxy(broker):
    """Return a proxy to the broker."""
    with Proxy(urlsplit(broker.url).port) as proxy:
        yield proxy


#: Brokers, and values of --event-consumer.
CONSUMERS = [(broker, option) for broker in ("redis", "rabbitmq") for option in ("auto", "kombu")]
on_each_consumer = pytest.mark.parametrize(("broker", "consumer"), CONSUMERS, indirect=True)
#: On Redis, kombu waits indefinitely for the rest of a message. RedisConsumer does not.
on_each_but_kombu_on_redis = pytest.mark.parametrize(
    ("broker", "consumer"), [pair for pair in CONSUMERS if pair != ("redis", "kombu")], indirect=True
)


@pytest.fixture
def consumer(request, broker, proxy):
    """Return an open consumer that is connected through the proxy."""
    url = broker.url.replace(str(urlsplit(broker.url).port), str(proxy.port))
    consumer = consumer_for(ConfigSource(broker_config(url, event_consumer=request.param)))
    fastest = {"redis": RedisConsumer, "rabbitmq": AmqpConsumer}[broker.kind]
    assert type(consumer) is (KombuConsumer if request.param == "kombu" else fastest)
    consumer.open()
    yield consumer
    consumer.close()


def read_events(consumer: EventConsumer, count: int) -> list[Event]:
    """Read messages until they have this many events, and return these."""
    events: list[Event] = []

    def is_complete() -> bool:
        batch = consumer.read(0.1)
        assert len(batch) <= BATCH_MESSAGES
        for message in batch:
            assert message is not UNREADABLE
            events.extend(events_of(message, {CONTENT_TYPES["json"]}))
        return len(events) >= count

    eventually(is_complete, 20, every=0)
    return events


def uuids(events: list[Event]) -> list[str | None]:
    return [event.uuid for event in events]


@on_each_consumer
def test_messages_arrive_once_and_in_order(consumer, broker):
    for number in range(30):
        publish_events(broker.url, task_events(number)[0])
    assert uuids(read_events(consumer, 30)) == [f"task-{number}" for number in range(30)]
    assert consumer.read(0.3) == []


@on_each_consumer
def test_messages_beyond_a_batch_arrive_with_the_next_reads(consumer, broker):
    publish_many(broker.url, SEVERAL_BATCHES)
    assert uuids(read_events(consumer, SEVERAL_BATCHES)) == [
        f"task-{number}" for number in range(SEVERAL_BATCHES)
    ]


@on_each_consumer
def test_a_large_message_is_complete(consumer, broker):
    event = {**task_events(1)[0], "args": "x" * 3_000_000}
    publish_events(broker.url, event, task_events(2)[0])
    assert uuids(read_events(consumer, 2)) == ["task-1", "task-2"]


@on_each_consumer
def test_read_returns_after_its_timeout(consumer):
    consumer.read(0.1)
    with TimeSpan() as span:
        assert consumer.read(0.5) == []
    assert span.elapsed_seconds > 0.3
    assert span.seconds < 2


@on_each_consumer
def test_last_alive_advances_on_an_idle_subscription(consumer):
    opened = consumer.last_alive

    def has_advanced() -> bool:
        consumer.read(0.1)
        return consumer.last_alive > opened + 1

    eventually(has_advanced, 10)


@on_each_consumer
def test_a_closed_connection_raises_and_the_consumer_can_be_reopened(consumer, broker, proxy):
    publish_events(broker.url, task_events(1)[0])
    read_events(consumer, 1)
    proxy.cut()

    def raises() -> bool:
        try:
            consumer.read(0.1)
        except BrokerError:
            return True
        return False

    eventually(raises, 10)
    consumer.close()
    consumer.close()
    proxy.forward()
    consumer.open()
    publish_events(broker.url, task_events(2)[0])
    assert uuids(read_events(consumer, 1)) == ["task-2"]


@on_each_but_kombu_on_redis
def test_an_incomplete_message_of_the_previous_connection_is_dropped(consumer, broker, proxy):
    proxy.stall(100)
    publish_event_bytes(broker.url, b"[" + b" " * 5_000 + b"]")
    consumer.read(0.3)
    consumer.close()
    proxy.forward()
    consumer.open()
    publish_events(broker.url, task_events(2)[0])
    assert uuids(read_events(consumer, 1)) == ["task-2"]


def test_messages_buffered_from_the_previous_connection_are_dropped(redis_broker):
    """A read of more than a batch buffers the rest, and the next read may be on another connection."""
    consumer = consumer_for(ConfigSource(broker_config(redis_broker.url)))
    consumer.open()
    try:
        publish_many(redis_broker.url, 3 * BATCH_MESSAGES)
        assert len(consumer.read(5)) == BATCH_MESSAGES
        consumer.close()
        consumer.open()
        publish_events(redis_broker.url, task_events(9_999)[0])
        assert uuids(read_events(consumer, 1)) == ["task-9999"]
    finally:
        consumer.close()


def publish_many(url: str, count: int) -> None:
    """Publish this many messages with one event each, over one connection."""
    with kombu.Connection(url) as connection:
        producer = connection.Producer(exchange=get_exchange(connection))
        for number in range(count):
            body = json.dumps(task_events(number)[0]).encode()
            options = {
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "delivery_mode": "transient",
            }
            producer.publish(body, routing_key="task.sent", **options)
