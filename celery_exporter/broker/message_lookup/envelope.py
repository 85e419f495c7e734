"""The id of the task in a message that lies on the broker, and its times. No body is deserialized but JSON.

The envelope is that of kombu/transport/virtual/base.py. Protocol 2 of Celery's messages has the id in a
header, protocol 1 in the body (celery/app/amqp.py, as_task_v1).
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct, field

from celery_exporter.broker.codecs import JSON
from celery_exporter.core.events import epoch

#: What a decoder raises for a message that is damaged or hostile.
_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError)


class Head(Struct, frozen=True):
    """The id of a task and its times in epoch seconds; None: the message has none."""

    id: str | None
    eta: float | None = None
    expires: float | None = None


# Fields may have any type: a wrong one must not hide the others.
class _Times(Struct):
    id: Any = None
    eta: Any = None
    expires: Any = None


class _Properties(Struct):
    correlation_id: Any = None
    body_encoding: Any = None


class _Envelope(Struct):
    headers: _Times = field(default_factory=_Times)
    properties: _Properties = field(default_factory=_Properties)
    content_type: Any = field(default=None, name="content-type")
    body: Raw = Raw(b"null")


_envelope = msgspec.json.Decoder(_Envelope).decode
_body = msgspec.json.Decoder(_Times).decode
_unacknowledged = msgspec.json.Decoder(list[Raw]).decode


def read_head(message: bytes | Raw) -> Head | None:
    """Return the id of the task in an envelope; None if it cannot be read."""
    try:
        envelope = _envelope(message)
        if envelope.headers.id is None:
            return _read_protocol_1(envelope)
        return _head(envelope.headers)
    except _UNREADABLE:
        return None


def read_unacknowledged_head(value: bytes) -> Head | None:
    """Return the same of a message that a worker holds (kombu.transport.redis.QoS.append)."""
    try:
        message = _unacknowledged(value)[0]  # [message, exchange, routing key]
    except (*_UNREADABLE, IndexError):
        return None
    return read_head(message)


def _read_protocol_1(envelope: _Envelope) -> Head | None:
    """Return the id in the body; else the correlation id, which Celery sets to the same."""
    try:
        return _head(_body(_body_of(envelope)))
    except _UNREADABLE:
        correlation_id = envelope.properties.correlation_id
        return Head(correlation_id) if isinstance(correlation_id, str) else None


def _body_of(envelope: _Envelope) -> bytes:
    if envelope.content_type != JSON:
        raise msgspec.ValidationError("another serializer")
    if envelope.properties.body_encoding == "base64":
        return msgspec.json.decode(envelope.body, type=bytes)
    return msgspec.json.decode(envelope.body, type=str).encode()


def _head(times: _Times) -> Head:
    return Head(times.id if isinstance(times.id, str) else None, _time(times.eta), _time(times.expires))


def _time(value: Any) -> float | None:
    return epoch(value) or None if isinstance(value, str) else None
