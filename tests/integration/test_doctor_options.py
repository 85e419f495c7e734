"""`doctor` with the command line of an exporter: it checks its queue and its state file, and only reads."""

from __future__ import annotations

from typing import Any

import kombu
import pytest
from harness.configs import broker_config

from celery_exporter.broker.consumers.amqp_consumer import DURABLE_QUEUE_ARGUMENTS
from celery_exporter.doctor.connectivity import check_connectivity

DURABLE = "celeryev.celery-exporter"


@pytest.fixture
def channel(rabbit_broker):
    with kombu.Connection(rabbit_broker.url) as connection:
        yield connection.default_channel


def declare(channel: Any, name: str, messages: int = 0, **arguments: Any) -> None:
    """Declare a durable queue with messages."""
    channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
    for _ in range(messages):
        kombu.Producer(channel).publish("[]", routing_key=name)


def redelivered(channel: Any, name: str) -> list[bool]:
    """Take all messages of a queue; return whether each was delivered before."""
    messages = iter(lambda: channel.basic_get(name, no_ack=True), None)
    return [message.delivery_info["redelivered"] for message in messages]


@pytest.mark.parametrize("options", [{"event_queue_durable": "true"}, {"event_queue": DURABLE}])
def test_waiting_messages_stay_where_they_are(rabbit_broker, channel, options):
    """An exporter that does not run gets them all, and none of them as redelivered."""
    declare(channel, DURABLE, 3, **DURABLE_QUEUE_ARGUMENTS)
    list(check_connectivity(broker_config(rabbit_broker.url, **options), print))
    assert redelivered(channel, DURABLE) == [False] * 3
