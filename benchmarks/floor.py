"""The floor: a process that subscribes, decodes each event into the exporter's `Event`, and counts. No more.

Nobody who uses events can do with less, in Python: hiredis, or bare frames, then msgspec. What comes is
believed, and nothing is remembered. It says "ready" when it hears, and "counted …" when it is ended.
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

#: Bytes of one read, and of what the parser gets at a time: the exporter's own.
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
            while (answer := parser.gets()) is not False:
                if answer[0] == b"pmessage":
                    yield base64.b64decode(_open(answer[3]).body)
                else:
                    print("ready", flush=True)


def on_amqp(host: str, port: int, user: str, password: str, vhost: str) -> Iterator[bytes]:
    """Yield the body of each message; they are shorter than a frame."""
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
    """Decode and count, until SIGTERM."""

    def leave(_: int, __: FrameType | None) -> None:
        print(f"counted {counted}", flush=True)
        sys.exit()

    counted = 0
    signal.signal(signal.SIGTERM, leave)
    for body in bodies:
        found = _decode(body)
        counted += len(found) if type(found) is list else 1


def main() -> None:
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
