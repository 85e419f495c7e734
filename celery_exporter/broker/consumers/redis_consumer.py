"""Consumes events from a Redis subscription.

kombu connects and subscribes, so all of its options apply. Messages are read here, many in one read, without
an object of kombu or redis-py for each, and without kombu's assumption that envelopes are valid. An envelope
is that of kombu/transport/virtual/base.py (prepare_message): JSON, with the body in base64.
"""

from __future__ import annotations

import time
from typing import Any

import hiredis
import msgspec
from msgspec import Struct, field

from celery_exporter.broker.connection import REPLY_TIMEOUT_SECONDS, BrokerError, Source, receive
from celery_exporter.broker.consumers.base import BATCH_BYTES, BATCH_MESSAGES, BaseConsumer, BatchFull
from celery_exporter.broker.message import UNREADABLE, Message

#: Silence after which a PING is sent.
PING_INTERVAL_SECONDS = 2.0
#: Time of one wait for the reply to PSUBSCRIBE.
SETTLE_SECONDS = 0.1
#: How much of a large read the parser gets at a time: after each kilobyte it moves the rest to the front of
#: its buffer (redisReaderGetReply in hiredis/read.c).
FEED_BYTES = 2**14


class _Properties(Struct):
    body_encoding: str | None = None
    delivery_tag: str | None = None


class _Headers(Struct):
    compression: str | None = None


class _Envelope(Struct, rename="kebab", kw_only=True):
    headers: _Headers = field(default_factory=_Headers)
    content_type: str | None = None
    content_encoding: str | None = None
    properties: _Properties = field(default_factory=_Properties, name="properties")


class _TextEnvelope(_Envelope, rename="kebab"):
    body: str


class _Base64Envelope(_Envelope, rename="kebab"):
    body: bytes  # which msgspec decodes from base64


_decode_text = msgspec.json.Decoder(_TextEnvelope).decode
_decode_base64 = msgspec.json.Decoder(_Base64Envelope).decode


class RedisConsumer(BaseConsumer):
    """Consumes events from Redis. See `EventConsumer`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        # Of the open connection: kombu's channel, redis-py's connection, and its socket.
        self._channel: Any = None
        self._redis: Any = None
        self._socket: Any = None
        self._has_duplicates = False  # sentinel_fanout_compat: each message arrives on two topics
        self._subscribed = False
        self._parser, self._unparsed, self._fed_bytes = (
            hiredis.Reader(),
            b"",
            0,
        )  # fed: how much of `_unparsed`
        self._received = False  # anything since the last check
        self._pinged = 0.0

    def _subscribe(self) -> None:
        # kombu wants a callback. It is never called, because the socket is read here.
        self._declare_queue(exclusive=False).consume(self._queue_name, _ignore, no_ack=True)
        self._connection.transport.cycle.on_poll_start()  # in which kombu sends PSUBSCRIBE
        self._channel = self._connection.default_channel
        self._redis = self._channel.subclient.connection
        # redis-py has read the replies to its own commands; every later byte belongs to the subscription.
        self._socket = self._redis._sock  # noqa: SLF001
        self._parser, self._unparsed, self._fed_bytes = hiredis.Reader(), b"", 0
        self._has_duplicates = bool(getattr(self._channel, "_fanout_compat_active", False))
        self._subscribed = False

    def _settle(self) -> list[Message]:
        early: list[Message] = []
        deadline = time.monotonic() + REPLY_TIMEOUT_SECONDS
        while not self._subscribed:
            if time.monotonic() > deadline:
                raise BrokerError(f"no reply to PSUBSCRIBE for {REPLY_TIMEOUT_SECONDS:.0f} s")
            early += self._read(SETTLE_SECONDS)
        return early

    def _check_alive(self) -> bool:
        received, self._received = self._received, False
        now = time.monotonic()
        if not received and now > self._pinged + PING_INTERVAL_SECONDS:
            self._pinged = now
            self._redis.send_command("PING", check_health=False)
        return received

    def _drain(self, timeout: float) -> None:
        if self._parse():  # a full batch leaves messages in the parser
            return
        if self._fed_bytes >= len(self._unparsed):
            self._unparsed, self._fed_bytes = b"", 0  # frees memory while the socket is silent
            self._unparsed = receive(self._socket, timeout)
            self._received = True
        self._parser.feed(
            self._unparsed, self._fed_bytes, min(FEED_BYTES, len(self._unparsed) - self._fed_bytes)
        )
        self._fed_bytes += FEED_BYTES
        self._parse()

    def _parse(self) -> bool:
        """Take the complete replies in the parser, up to one batch; return whether there were any."""
        gets, has_replies = self._parser.gets, False
        try:
            while (reply := gets()) is not False:
                has_replies = True
                kind = reply[0] if isinstance(reply, list) and reply else None
                if kind == b"pmessage":
                    self._on_envelope(reply[-1])
                elif kind == b"psubscribe":
                    self._subscribed = True
                elif isinstance(reply, hiredis.ReplyError):
                    raise BrokerError(f"Redis replied with an error: {reply}")
        except (hiredis.HiredisError, TypeError) as error:  # TypeError: a map with a list as a key
            raise BrokerError(f"Redis sent invalid protocol data: {error}") from None
        return has_replies

    def _on_envelope(self, data: Any) -> None:
        try:
            envelope, body = _open_envelope(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError):
            message = UNREADABLE
        else:
            if self._has_duplicates and self._is_duplicate(envelope):
                return
            message = Message(
                body, envelope.content_type, envelope.content_encoding, envelope.headers.compression
            )
        # As `_add`, without the call: it is 2 % of the CPU time of a message.
        self._batch.append(message)
        self._batch_bytes += len(message.body)
        if len(self._batch) >= BATCH_MESSAGES or self._batch_bytes >= BATCH_BYTES:
            raise BatchFull

    def _is_duplicate(self, envelope: _Envelope) -> bool:
        """Return whether the message has arrived on the other topic already."""
        message = {"properties": {"delivery_tag": envelope.properties.delivery_tag}}
        return bool(self._channel._is_duplicate_fanout_message(message, ""))  # noqa: SLF001  kombu has no other


def _ignore(_: object) -> None:
    pass


def _open_envelope(data: Any) -> tuple[_Envelope, bytes]:
    """Return an envelope and its body; kombu encodes a body in base64, other senders may not."""
    try:
        envelope = _decode_base64(data)
        if envelope.properties.body_encoding == "base64":
            return envelope, envelope.body
    except msgspec.ValidationError:  # the body is not base64
        pass
    text_envelope = _decode_text(data)
    if text_envelope.properties.body_encoding == "base64":
        raise msgspec.ValidationError("the body is not in base64")
    return text_envelope, text_envelope.body.encode()
