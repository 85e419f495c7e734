"""The brokers, and how a tape gets into them: bytes that were made before, written to one socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Protocol

import amqp
import redis
from kombu.utils.url import url_to_parts

from benchmarks.tape import EXCHANGE, Tape

#: Messages written in one go; 0.2 MB of single events, 1 MB of tens.
CHUNK = 200
#: Bytes that may wait in Redis for a subscriber, where 8 MB for a minute, or 32 MB, get it cut off.
BACKLOG = 2 * 2**20


class VoidError(Exception):
    """The run measured nothing; the text says why."""


class Broker(Protocol):
    """A broker with one subscriber at a time: the contender."""

    name: str
    wire: str
    url: str

    def is_heard(self) -> bool:
        """Tell whether somebody is subscribed to events."""

    def send(self, messages: list[bytes]) -> None:
        """Publish messages, and return when the broker has them, or the kernel has."""

    def backlog(self) -> int:
        """Return how many bytes wait in the broker, as far as it tells."""

    def settle(self) -> None:
        """Return when the broker has taken all that was sent."""


def replay(broker: Broker, messages: list[bytes]) -> None:
    """Publish messages as fast as broker and subscriber take them."""
    for start in range(0, len(messages), CHUNK):
        broker.send(messages[start : start + CHUNK])
        while broker.backlog() > BACKLOG:
            time.sleep(0.002)
    broker.settle()


def due(tape: Tape, rate: float, seconds: float) -> Iterator[tuple[list[bytes], int]]:
    """Yield what is due of the tape, over and over, at so many events a second, with how many they are.

    Whoever cannot send so fast gets all that is due, later.
    """
    position = sent = 0
    start = time.monotonic()
    while (now := time.monotonic() - start) < seconds:
        batch: list[bytes] = []
        before = sent
        while sent < rate * now and len(batch) < CHUNK:
            batch.append(tape.messages[position])
            sent += tape.sizes[position]
            position = (position + 1) % len(tape.messages)
        yield batch, sent - before
        if len(batch) < CHUNK:
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

    def is_heard(self) -> bool:
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
        self._channel = self._connection.channel(1)  # the one on the tape
        self._channel.exchange_declare(EXCHANGE, "topic", durable=True, auto_delete=False)
        self._asking = self._connection.channel(2)
        self._asking.events["basic_return"].add(self._on_return)
        self._returned = False

    def _on_return(self, *_: object) -> None:
        self._returned = True

    def is_heard(self) -> bool:
        """Publish what has to come back when there is no queue for it."""
        self._returned = False
        body = '{"type": "bench-probe", "hostname": "bench", "timestamp": 1.75e9, "utcoffset": 0, "clock": 1}'
        message = amqp.Message(body, content_type="application/json", content_encoding="utf-8")
        self._asking.basic_publish(message, EXCHANGE, "bench.probe", mandatory=True)
        return not self._returned

    def send(self, messages: list[bytes]) -> None:
        self._connection.transport.sock.sendall(b"".join(messages))

    def backlog(self) -> int:
        return 0  # it keeps what the subscriber has not taken, and slows us down by itself

    def settle(self) -> None:
        self._channel.exchange_declare(EXCHANGE, "topic", passive=True)  # a channel is served in order
