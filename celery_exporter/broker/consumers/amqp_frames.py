"""Bytes off an AMQP connection → frames, many of them out of one large read.

A frame (AMQP 0-9-1, 2.3.5): type (1 byte), channel (2), length of the payload (4), the payload, and 0xCE.
"""

from __future__ import annotations

from struct import Struct

from celery_exporter.broker.connection import BrokerError

Frame = tuple[int, int, bytes]  # type, channel, payload

_head = Struct(">BHI").unpack_from
_HEAD, _END = 7, 0xCE


class Frames:
    """Takes bytes as they come, and gives whole frames, of `limit` bytes at most."""

    def __init__(self, limit: int, data: bytes = b"") -> None:
        self._limit = limit
        self._data = data
        self._position = 0

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self._data = self._data[self._position :] + data
        self._position = 0

    def next(self) -> Frame | None:
        """Return the next frame, if it is whole; raise BrokerError for what is none."""
        data, start = self._data, self._position + _HEAD
        if len(data) < start:
            return None
        kind, channel, size = _head(data, self._position)
        end = start + size
        if size > self._limit:
            raise BrokerError(f"RabbitMQ sent a frame of {size} bytes, where {self._limit} were agreed")
        if len(data) <= end:
            return None
        if data[end] != _END:
            raise BrokerError("RabbitMQ sent a frame that does not end where it should")
        self._position = end + 1
        return kind, channel, data[start:end]
