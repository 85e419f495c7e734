"""Bytes of an AMQP connection → frames, many from one large read.

A frame (AMQP 0-9-1, 2.3.5): type (1 byte), channel (2), size of the payload (4), the payload, and 0xCE.
"""

from __future__ import annotations

from struct import Struct

from celery_exporter.broker.connection import BrokerError

Frame = tuple[int, int, bytes]  # type, channel, payload

_unpack_header = Struct(">BHI").unpack_from
_HEADER_BYTES, _FRAME_END = 7, 0xCE


class Frames:
    """Splits bytes, however they were read, into frames with payloads of up to `limit` bytes."""

    def __init__(self, limit: int, data: bytes = b"") -> None:
        self._limit = limit
        self._data = data
        self._position = 0

    def feed(self, data: bytes) -> None:
        """Add bytes from the connection."""
        self._data = self._data[self._position :] + data
        self._position = 0

    def next(self) -> Frame | None:
        """Return the next complete frame, None if there is none. Raises BrokerError for an invalid one."""
        data, start = self._data, self._position + _HEADER_BYTES
        if len(data) < start:
            return None
        kind, channel, size = _unpack_header(data, self._position)
        end = start + size
        if size > self._limit:
            raise BrokerError(f"RabbitMQ sent a frame of {size} bytes; the limit agreed on is {self._limit}")
        if len(data) <= end:
            return None
        if data[end] != _FRAME_END:
            raise BrokerError("RabbitMQ sent a frame without its end marker")
        self._position = end + 1
        return kind, channel, data[start:end]
