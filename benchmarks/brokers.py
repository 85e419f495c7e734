"""Publishes event streams on brokers: writes prepared bytes to a socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Protocol

import amqp
import redis
from kombu.utils.url import url_to_parts

from benchmarks.event_stream import EXCHANGE, EventStream

#: Messages in one write: 0.2 MB of single events, or 1 MB of tens.
CHUNK_MESSAGES = 200
#: Limit of the output buffer of a subscriber in Redis, which disconnects one with 8 MB for a minute, or with
#: 32 MB.
MAX_BACKLOG_BYTES = 2 * 2**20


class VoidError(Exception):
    """The run has no valid result; the message says why."""


class Broker(Protocol):
    """A broker with the contender as its only subscriber."""

    name: str
    wire: str
    url: str

    def has_subscriber(self) -> bool:
        """Return whether a process is subscribed to events."""

    def send(self, messages: list[bytes]) -> None:
        """Publish messages, and return when the broker or the kernel has received them."""

    def backlog(self) -> int:
        """Return the bytes that wait for the subscriber in the broker; 0 if that is unknown."""

    def settle(self) -> None:
        """Return when the broker has received all messages."""


def replay(broker: Broker, messages: list[bytes]) -> None:
    """Publish messages as fast as the broker and the subscriber accept them."""
    for start in range(0, len(messages), CHUNK_MESSAGES):
        broker.send(messages[start : start + CHUNK_MESSAGES])
        while broker.backlog() > MAX_BACKLOG_BYTES:
            time.sleep(0.002)
    broker.settle()


def due(event_stream: EventStream, rate: float, seconds: float) -> Iterator[tuple[list[bytes], int]]:
    """Yield the messages that are due at a rate in events per second, with the number of their events.

    The event stream repeats. Messages that the caller could not publish in time come later.
    """
    position = sent = 0
    start = time.monotonic()
    while (now := time.monotonic() - start) < seconds:
        batch: list[bytes] = []
        before = sent
        while sent < rate * now and len(batch) < CHUNK_MESSAGES:
            batch.append(event_stream.messages[position])
            sent += event_stream.sizes[position]
            position = (position + 1) % len(event_stream.messages)
        yield batch, sent - before
        if len(batch) < CHUNK_MESSAGES:
            time.sleep(0.002)


class Redis:
    """redis-server, and a connection that publishes."""

    name, wire = "Redis", "redis"

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = redis.Redis.from_url(url, socket_timeout=5)
        self.version = f"redis-server {self._client.info('server')['redis_version']}"
        _, host, port, *_ = url_to_parts(url)
        self._socket = socket.create_connection((host, port), timeout=5)

    def has_subscriber(self) -> bool:
        return bool(self._client.pubsub_numpat())

    def send(self, messages: list[bytes]) -> None:
        self._socket.sendall(b"".join(messages))
        answers = b""
        while answers.count(b"\n") < len(messages):
            answers += self._socket.recv(65_536)
        if answers != b":1\r\n" * len(messages):
            raise VoidError("there was not always exactly one subscriber")

    def backlog(self) -> int:
        return sum(int(client["omem"]) for client in self._client.client_list(_type="pubsub"))

    def settle(self) -> None:
        pass


class Rabbit:
    """rabbitmq-server, and a connection that publishes."""

    name, wire = "RabbitMQ", "amqp"

    def __init__(self, url: str) -> None:
        self.url = url
        _, host, port, user, password, vhost, _ = url_to_parts(url)
        self._connection = amqp.Connection(
            f"{host}:{port}", user, password, virtual_host=vhost, confirm_publish=True
        )
        self._connection.connect()
        self.version = f"rabbitmq-server {self._connection.server_properties['version']}"
        self._channel = self._connection.channel(1)  # the one on the event stream
        self._channel.exchange_declare(EXCHANGE, "topic", durable=True, auto_delete=False)
        self._probe_channel = self._connection.channel(2)
        self._probe_channel.events["basic_return"].add(self._on_return)
        self._returned = False

    def _on_return(self, *_: object) -> None:
        self._returned = True

    def has_subscriber(self) -> bool:
        """Publish a mandatory message, which the broker returns if no queue is bound."""
        self._returned = False
        body = '{"type": "bench-probe", "hostname": "bench", "timestamp": 1.75e9, "utcoffset": 0, "clock": 1}'
        message = amqp.Message(body, content_type="application/json", content_encoding="utf-8")
        self._probe_channel.basic_publish(message, EXCHANGE, "bench.probe", mandatory=True)
        return not self._returned

    def send(self, messages: list[bytes]) -> None:
        self._connection.transport.sock.sendall(b"".join(messages))

    def backlog(self) -> int:
        return 0  # unknown; RabbitMQ applies flow control itself

    def settle(self) -> None:
        self._channel.exchange_declare(
            EXCHANGE, "topic", passive=True
        )  # RabbitMQ processes a channel in order
