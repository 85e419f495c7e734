"""The file format of a recorded event stream: raw messages and their times.

The file is gzip of one line that names the format, and records. A record is its length (4 bytes, big-endian)
and a msgpack array: seconds since the start of the recording, content type, content encoding, compression,
body. The file is flushed once a second, so a crash loses the last second only.
"""

from __future__ import annotations

import gzip
import itertools
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from celery_exporter.broker.codecs import MAX_BODY
from celery_exporter.broker.message import Message

FORMAT = b"celery-exporter events 1\n"
FLUSH_INTERVAL_SECONDS = 1.0
#: Longest text beside a message on AMQP.
MAX_PROPERTY_BYTES = 255
#: Size of a record beside its body, at most.
MAX_OVERHEAD_BYTES = 1_000
_LENGTH = struct.Struct(">I")


class NotARecordingError(Exception):
    """The file is not a recording, or cannot be read at all. The text is one line."""


class Record(NamedTuple):
    """A message, and when it arrived: seconds since the start of the recording."""

    at: float
    message: Message


class _Line(msgspec.Struct, array_like=True):
    at: Annotated[float, Meta(ge=0, lt=1e11)]
    content_type: str | None
    content_encoding: str | None
    compression: str | None
    body: bytes


def valid_property(value: object) -> str | None:
    """Return a property of a message, None if it is not a short printable text: senders write any value."""
    is_valid = isinstance(value, str) and value.isprintable() and len(value.encode()) <= MAX_PROPERTY_BYTES
    return value if isinstance(value, str) and is_valid else None


class RecordingWriter:
    """Writes a new file that only its owner can read, because it has arguments of tasks.

    Raises OSError, with the path, on creation and in each method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        raw = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        # Without a name: gzip would write it into the file.
        self._file = gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6)
        self._raw = raw
        self._file.write(FORMAT)
        self._file.flush()
        self._flushed = time.monotonic()
        self.messages = 0
        self.too_large = 0

    def write(self, record: Record) -> None:
        """Add a message. One that exceeds the limit of the exporter is counted in `too_large` instead."""
        message = record.message
        if len(message.body) > MAX_BODY:
            self.too_large += 1
            return
        line = _Line(
            record.at,
            valid_property(message.content_type),
            valid_property(message.content_encoding),
            valid_property(message.compression),
            message.body,
        )
        data = msgspec.msgpack.encode(line)
        with self._errors_with_path():
            self._file.write(_LENGTH.pack(len(data)) + data)
        self.messages += 1

    def flush(self) -> None:
        """Flush the file, if the last flush is a second ago."""
        if time.monotonic() - self._flushed > FLUSH_INTERVAL_SECONDS:
            self._flushed = time.monotonic()
            with self._errors_with_path():
                self._file.flush()

    def close(self) -> None:
        """Complete the file."""
        with self._errors_with_path(), self._raw:
            self._file.close()

    @contextmanager
    def _errors_with_path(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None


class RecordingReader:
    """Iterates over the records of a file, up to the first damage, which `damage` then describes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damage: str | None = None
        self.messages = 0
        self._is_recording = False

    def __iter__(self) -> Iterator[Record]:
        """Yield the records. Raises NotARecordingError for another kind of file."""
        try:
            with gzip.open(self._path) as file:
                yield from self._records(file)
        except (EOFError, OSError, zlib.error) as error:
            if not self._is_recording:
                raise NotARecordingError(f"{self._path}: cannot be read: {error}") from None
            self._stop(str(error))

    def _records(self, file: gzip.GzipFile) -> Iterator[Record]:
        if file.read(len(FORMAT)) != FORMAT:
            raise NotARecordingError(f"{self._path}: is not a recording of celery-exporter")
        self._is_recording = True
        while head := file.read(_LENGTH.size):
            if len(head) < _LENGTH.size:
                return self._stop("it ends within a record")
            (size,) = _LENGTH.unpack(head)
            if size > MAX_BODY + MAX_OVERHEAD_BYTES:
                return self._stop(f"a record of {size} bytes")
            data = file.read(size)
            if len(data) < size:
                return self._stop("it ends within a record")
            try:
                line = msgspec.msgpack.decode(data, type=_Line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                return self._stop(str(error))
            self.messages += 1
            message = Message(line.body, line.content_type, line.content_encoding, line.compression)
            yield Record(line.at, message)
        return None

    def _stop(self, reason: str) -> None:
        self.damage = f"{self._path} is damaged after message {self.messages:,}: {reason}"


def paced(records: Iterator[Record], speed: float | None) -> Iterator[tuple[float, Record]]:
    """Yield (seconds after which a record is due, record), at `speed` times the recorded speed.

    `speed` None: each record is due at once.
    """
    first = next(records, None)
    if first is not None:
        for record in itertools.chain([first], records):
            yield (0.0 if speed is None else (record.at - first.at) / speed), record
