"""Events off a Redis subscription. kombu connects and subscribes, so each of its options holds; what comes is
read here, in large reads, without an object of kombu's or redis-py's for each message, and without kombu's
trust in the envelope.

The envelope is that of kombu/transport/virtual/base.py (prepare_message): JSON, with the body in base64.
"""

from __future__ import annotations

import time
from typing import Any

import hiredis
import msgspec
from msgspec import Struct, field

from celery_exporter.broker.connection import ANSWER_TIMEOUT, BrokerError, Source, receive
from celery_exporter.broker.consumers.kombu_consumer import BATCH, BATCH_BYTES, BatchFull, KombuConsumer
from celery_exporter.broker.message import UNREADABLE, Message

#: Seconds without a message after which a ping is sent.
PING_INTERVAL = 2.0
#: Seconds of one look for the answer to a subscription.
POLL = 0.1
#: Bytes that the parser gets at a time, of a large read: after each kilobyte it moves all that is left to the
#: front of its buffer (redisReaderGetReply in hiredis/read.c).
FEED = 2**14


class _Properties(Struct):
    body_encoding: str | None = None
    delivery_tag: str | None = None


class _Headers(Struct):
    compression: str | None = None


class _Around(Struct, rename="kebab", kw_only=True):
    headers: _Headers = field(default_factory=_Headers)
    content_type: str | None = None
    content_encoding: str | None = None
    properties: _Properties = field(default_factory=_Properties, name="properties")


class _Envelope(_Around, rename="kebab"):
    body: str


class _InBase64(_Around, rename="kebab"):
    body: bytes  # which msgspec reads from base64


_decode = msgspec.json.Decoder(_Envelope).decode
_decode_base64 = msgspec.json.Decoder(_InBase64).decode


class RedisConsumer(KombuConsumer):
    """Reads events from Redis. See `EventConsumer`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._parser, self._read_bytes, self._fed = (
            hiredis.Reader(),
            b"",
            0,
        )  # how much of them it has got
        self._alive = False  # did anything come since the last look
        self._pinged = 0.0
        self._subscribed = False

    def _subscribe(self) -> None:
        super()._subscribe()
        self._connection.transport.cycle.on_poll_start()  # with which kombu subscribes, at its first read
        self._channel = self._connection.default_channel
        self._redis = self._channel.subclient.connection
        # redis-py has read the answers to its own questions, and the rest is ours: our own parser has
        # each message of a large read without an object of redis-py's for it.
        self._socket = self._redis._sock  # noqa: SLF001
        self._parser, self._read_bytes, self._fed = hiredis.Reader(), b"", 0
        self._prove = self._prove_alive
        self._is_doubled = bool(getattr(self._channel, "_fanout_compat_active", False))

    def _settle(self) -> list[Message]:
        """Wait until Redis has confirmed: until then we are deaf."""
        self._subscribed, early = False, []
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while not self._subscribed:
            if time.monotonic() > deadline:
                raise BrokerError(f"no answer to PSUBSCRIBE for {ANSWER_TIMEOUT:.0f} s")
            early += self._read(POLL)
        return early

    def _drain(self, timeout: float) -> None:
        """Take what has come; raise TimeoutError when nothing does."""
        if self._take_parsed():  # a batch that was full leaves messages in the parser
            return
        if self._fed >= len(self._read_bytes):
            self._read_bytes, self._fed = b"", 0  # which need not be kept while nothing comes
            self._read_bytes = receive(self._socket, timeout)
            self._alive = True
        self._parser.feed(self._read_bytes, self._fed, min(FEED, len(self._read_bytes) - self._fed))
        self._fed += FEED
        self._take_parsed()

    def _take_parsed(self) -> bool:
        """Take each whole answer in the parser, one batch at most; tell whether there was any."""
        get, taken = self._parser.gets, False
        try:
            while (frame := get()) is not False:
                taken = True
                kind = frame[0] if isinstance(frame, list) and frame else None
                if kind == b"pmessage":
                    self._take_envelope(frame[-1])
                elif kind == b"psubscribe":
                    self._subscribed = True
                elif isinstance(frame, hiredis.ReplyError):
                    raise BrokerError(f"Redis says {frame}")
        except (hiredis.HiredisError, TypeError) as error:  # TypeError: a map with a list for a key
            raise BrokerError(f"Redis sent what is no Redis protocol: {error}") from None
        return taken

    def _take_envelope(self, data: Any) -> None:
        try:
            envelope, body = _opened(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError):
            payload = UNREADABLE  # taken off the wire, so any number may come
        else:
            if self._is_doubled and self._comes_twice(envelope):
                return
            said = envelope.content_type, envelope.content_encoding, envelope.headers.compression
            payload = Message(body, *said)
        self._batch.append(payload)
        self._bytes += len(payload.body)
        if len(self._batch) >= BATCH or self._bytes >= BATCH_BYTES:
            raise BatchFull

    def _comes_twice(self, envelope: _Around) -> bool:
        """Tell whether it was read before: with sentinel_fanout_compat each comes on two topics."""
        message = {"properties": {"delivery_tag": envelope.properties.delivery_tag}}
        duplicate = self._channel._is_duplicate_fanout_message(message, "")  # noqa: SLF001  kombu's own memory of it
        return bool(duplicate)

    def _prove_alive(self) -> bool:
        """PING on the subscription itself; True when anything came since the last look."""
        alive, self._alive = self._alive, False
        now = time.monotonic()
        if not alive and now > self._pinged + PING_INTERVAL:
            self._pinged = now
            self._redis.send_command("PING", check_health=False)
        return alive


def _opened(data: Any) -> tuple[_Around, bytes]:
    """Return an envelope and the body in it, which kombu puts there in base64."""
    try:
        envelope = _decode_base64(data)
        if envelope.properties.body_encoding == "base64":
            return envelope, envelope.body
    except msgspec.ValidationError:  # no base64
        pass
    plain = _decode(data)
    if plain.properties.body_encoding == "base64":
        raise msgspec.ValidationError("the body is not in base64")
    return plain, plain.body.encode()
