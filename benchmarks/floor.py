"""The lower bound: subscribes, decodes each event into the exporter's `Event`, and counts.

Each Python program that uses events needs at least this: hiredis or AMQP frames, and msgspec. It validates
and stores nothing. It prints "ready" when it is subscribed, and "counted …" when it stops.
"""

from __future__ import annotations

import base64
import signal
import socket
import sys
from collections.abc import Iterator
from struct import Struct as Shape
from types import FrameType

import amqp
import hiredis
import msgspec
from kombu.utils.url import url_to_parts
from msgspec import Struct

from celery_exporter.core.events import Event

#: Bytes of one read, and of one chunk for the parser: the values of the exporter.
READ_BYTES, FEED_BYTES = 2**18, 2**14

_decode = msgspec.json.Decoder(Event | list[Event]).decode


class _Envelope(Struct):
    body: str


_open = msgspec.json.Decoder(_Envelope).decode
_head = Shape(">BHI").unpack_from


def on_redis(host: str, port: int) -> Iterator[bytes]:
    """Yield the body of each message."""
    wire = socket.create_connection((host, port))
    wire.sendall(hiredis.pack_command(("PSUBSCRIBE", "/0.celeryev/*")))
    parser = hiredis.Reader()
    while data := wire.recv(READ_BYTES):
        for start in range(0, len(data), FEED_BYTES):
            parser.feed(data[start : start + FEED_BYTES])
            while (reply := parser.gets()) is not False:
                if reply[0] == b"pmessage":
                    yield base64.b64decode(_open(reply[3]).body)
                else:
                    print("ready", flush=True)


def on_amqp(host: str, port: int, user: str, password: str, vhost: str) -> Iterator[bytes]:
    """Yield the body of each message. Each body fits into one frame."""
    connection = amqp.Connection(f"{host}:{port}", user, password, virtual_host=vhost)
    connection.connect()
    channel = connection.channel()
    channel.exchange_declare("celeryev", "topic", durable=True, auto_delete=False)
    queue = channel.queue_declare(exclusive=True).queue
    channel.queue_bind(queue, "celeryev", "#")
    channel.basic_consume(queue, no_ack=True)
    wire = connection.transport.sock
    wire.settimeout(None)
    print("ready", flush=True)
    rest = b""
    while data := wire.recv(READ_BYTES):
        data, position = rest + data, 0
        while len(data) >= position + 8:
            kind, _, size = _head(data, position)
            end = position + 8 + size
            if len(data) < end:
                break
            if kind == 3:
                yield data[position + 7 : end - 1]
            position = end
        rest = data[position:]


def count(bodies: Iterator[bytes]) -> None:
    """Decode and count events until SIGTERM."""

    def stop(_: int, __: FrameType | None) -> None:
        print(f"counted {counted}", flush=True)
        sys.exit()

    counted = 0
    signal.signal(signal.SIGTERM, stop)
    for body in bodies:
        events = _decode(body)
        counted += len(events) if type(events) is list else 1


def main() -> None:
    """Count the events of the broker in the first argument."""
    scheme, host, port, user, password, path, _ = url_to_parts(sys.argv[1])
    assert host
    assert port
    if scheme == "redis":
        count(on_redis(host, port))
    else:
        assert user
        assert password
        count(on_amqp(host, port, user, password, path or "/"))


if __name__ == "__main__":
    main()
