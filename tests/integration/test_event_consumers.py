"""What each reader promises (see `EventConsumer`), on each broker that it reads."""

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

#: Messages that a broker has ready before the first of them is read: several batches.
MANY = 3 * BATCH_MESSAGES + 7


@pytest.fixture
def way(broker):
    """Return a proxy before the broker."""
    with Proxy(urlsplit(broker.url).port) as proxy:
        yield proxy


#: Brokers, and the ways of reading each.
ALL = [(broker, way) for broker in ("redis", "rabbitmq") for way in ("auto", "kombu")]
each = pytest.mark.parametrize(("broker", "reader"), ALL, indirect=True)
#: On Redis kombu waits for ever for the rest of a message: for which Redis has a reader of its own.
but_kombu_on_redis = pytest.mark.parametrize(
    ("broker", "reader"), [pair for pair in ALL if pair != ("redis", "kombu")], indirect=True
)


@pytest.fixture
def reader(request, broker, way):
    """Return a reader of the broker, open, whose way can be cut."""
    url = broker.url.replace(str(urlsplit(broker.url).port), str(way.port))
    made = consumer_for(ConfigSource(broker_config(url, event_consumer=request.param)))
    fastest = {"redis": RedisConsumer, "rabbitmq": AmqpConsumer}[broker.kind]
    assert type(made) is (KombuConsumer if request.param == "kombu" else fastest)
    made.open()
    yield made
    made.close()


def read_until(reader: EventConsumer, count: int) -> list[Event]:
    """Return the events of so many messages, as they come."""
    found: list[Event] = []

    def came() -> bool:
        batch = reader.read(0.1)
        assert len(batch) <= BATCH_MESSAGES
        for payload in batch:
            assert payload is not UNREADABLE
            found.extend(events_of(payload, {CONTENT_TYPES["json"]}))
        return len(found) >= count

    eventually(came, 20, every=0)
    return found


def uuids(events: list[Event]) -> list[str | None]:
    return [event.uuid for event in events]


@each
def test_each_message_comes_once_and_in_its_order(reader, broker):
    for number in range(30):
        publish_events(broker.url, task_events(number)[0])
    assert uuids(read_until(reader, 30)) == [f"task-{number}" for number in range(30)]
    assert reader.read(0.3) == []


@each
def test_what_is_more_than_a_batch_comes_with_the_next_ones(reader, broker):
    publish_many(broker.url, MANY)
    assert uuids(read_until(reader, MANY)) == [f"task-{number}" for number in range(MANY)]


@each
def test_a_large_message_is_whole(reader, broker):
    event = {**task_events(1)[0], "args": "x" * 3_000_000}
    publish_events(broker.url, event, task_events(2)[0])
    assert uuids(read_until(reader, 2)) == ["task-1", "task-2"]


@each
def test_it_waits_no_longer_than_it_was_told(reader):
    reader.read(0.1)
    with TimeSpan() as span:
        assert reader.read(0.5) == []
    assert span.elapsed_seconds > 0.3
    assert span.seconds < 2


@each
def test_a_living_subscription_proves_it_though_nobody_says_anything(reader):
    opened = reader.last_alive

    def proved() -> bool:
        reader.read(0.1)
        return reader.last_alive > opened + 1

    eventually(proved, 10)


@each
def test_the_end_of_the_connection_is_an_error_and_another_can_be_opened(reader, broker, way):
    publish_events(broker.url, task_events(1)[0])
    read_until(reader, 1)
    way.cut()

    def ended() -> bool:
        try:
            reader.read(0.1)
        except BrokerError:
            return True
        return False

    eventually(ended, 10)
    reader.close()
    reader.close()
    way.forward()
    reader.open()
    publish_events(broker.url, task_events(2)[0])
    assert uuids(read_until(reader, 1)) == ["task-2"]


@but_kombu_on_redis
def test_half_a_message_of_the_connection_before_is_forgotten(reader, broker, way):
    way.stall(100)
    publish_event_bytes(broker.url, b"[" + b" " * 5_000 + b"]")
    reader.read(0.3)
    reader.close()
    way.forward()
    reader.open()
    publish_events(broker.url, task_events(2)[0])
    assert uuids(read_until(reader, 1)) == ["task-2"]


def test_what_was_read_of_the_connection_before_and_not_returned_is_forgotten(redis_broker):
    """A read that has more than a batch leaves some for the next one, which may be on another connection."""
    reader = consumer_for(ConfigSource(broker_config(redis_broker.url)))
    reader.open()
    try:
        publish_many(redis_broker.url, 3 * BATCH_MESSAGES)
        assert len(reader.read(5)) == BATCH_MESSAGES
        reader.close()
        reader.open()
        publish_events(redis_broker.url, task_events(9_999)[0])
        assert uuids(read_until(reader, 1)) == ["task-9999"]
    finally:
        reader.close()


def publish_many(url: str, count: int) -> None:
    """Publish a message for each of so many events, over one connection."""
    with kombu.Connection(url) as connection:
        producer = connection.Producer(exchange=get_exchange(connection))
        for number in range(count):
            body = json.dumps(task_events(number)[0]).encode()
            how = {
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "delivery_mode": "transient",
            }
            producer.publish(body, routing_key="task.sent", **how)
