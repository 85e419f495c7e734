"""Parse AMQP frames split at any byte, with frames of other channels between them."""

from __future__ import annotations

import struct
from itertools import pairwise
from types import SimpleNamespace

import pytest
from harness.configs import broker_config

from celery_exporter.broker.connection import BrokerError
from celery_exporter.broker.consumers.amqp_consumer import AmqpConsumer
from celery_exporter.broker.consumers.amqp_frames import Frames
from celery_exporter.broker.message import Message
from celery_exporter.broker.source import ConfigSource

BODY = b'{"type":"task-sent","timestamp":1,"hostname":"h","uuid":"u"}'
MESSAGE = Message(BODY, "application/json", "utf-8")
LIMIT = 4_096


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


DELIVER = frame(
    1,
    1,
    struct.pack(">HH", 60, 60)
    + short(b"consumer")
    + struct.pack(">QB", 7, 0)
    + short(b"celeryev")
    + short(b"task.sent"),
)
HEADER = frame(
    2, 1, struct.pack(">HHQH", 60, 0, len(BODY), 0xC000) + short(b"application/json") + short(b"utf-8")
)
HEARTBEAT = frame(8, 0, b"")
ELSEWHERE = [frame(2, 2, b"x" * 20), frame(3, 2, b"another channel's")]


def consumer_after(*pieces: bytes) -> AmqpConsumer:
    """Return a consumer that has read these bytes, one piece after the other."""
    consumer = AmqpConsumer(ConfigSource(broker_config("amqp://127.0.0.1:1//")))
    consumer.others = []
    consumer._amqp, consumer._channel = SimpleNamespace(bytes_recv=0), SimpleNamespace(channel_id=1)
    consumer._handle_by_amqp, consumer._frames = consumer.others.append, Frames(LIMIT)
    for piece in pieces:
        consumer._frames.feed(piece)
        consumer._take_frames()
    return consumer


@pytest.mark.parametrize("size", [1, 2, 7, 8, 100, 10_000])
def test_messages_are_complete_for_any_size_of_the_pieces(size):
    stream = (DELIVER + HEADER + frame(3, 1, BODY) + HEARTBEAT) * 3
    consumer = consumer_after(*(stream[at : at + size] for at in range(0, len(stream), size)))
    assert consumer._batch == [MESSAGE] * 3
    assert consumer.others == [(8, 0, b"")] * 3


def test_a_message_may_be_split_at_every_byte():
    stream = DELIVER + HEADER + frame(3, 1, BODY)
    for at in range(len(stream) + 1):
        assert consumer_after(stream[:at], stream[at:])._batch == [MESSAGE], at


def test_frames_between_those_of_a_message_are_not_part_of_it():
    bodies = [frame(3, 1, BODY[start:end]) for start, end in pairwise((0, 5, 6, len(BODY)))]
    mixed = [DELIVER, HEARTBEAT, HEADER, *ELSEWHERE, bodies[0], *ELSEWHERE, bodies[1], HEARTBEAT, bodies[2]]
    consumer = consumer_after(b"".join(mixed))
    assert consumer._batch == [MESSAGE]
    assert [channel for _, channel, _ in consumer.others] == [0, 2, 2, 2, 2, 0]


def test_a_method_of_the_channel_is_passed_to_py_amqp():
    close = struct.pack(">HHH", 20, 40, 404) + short(b"gone") + struct.pack(">HH", 0, 0)
    assert consumer_after(frame(1, 1, close)).others == [(1, 1, close)]


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (struct.pack(">BHI", 3, 1, LIMIT + 1), "a frame of 4097 bytes; the limit agreed on is 4096"),
        (struct.pack(">BHI", 3, 1, 2**32 - 1), "a frame of 4294967295 bytes"),
        (frame(3, 1, b"abc")[:-1] + b"\0", "without its end marker"),
        (frame(1, 1, b"\0\x3c\0"), "cannot be read"),
        (frame(1, 1, b"\0\x3c\0\x3c"), "cannot be read"),
        (DELIVER + frame(2, 1, b"\0"), "cannot be read"),
    ],
)
def test_an_invalid_frame_ends_the_connection(stream, error):
    with pytest.raises(BrokerError, match=error):
        consumer_after(stream)
