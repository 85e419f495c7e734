"""A recorded event stream in a file: raw messages with their times, for bug reports, tests and benchmarks.

The file is gzip of a line that names the format, and records, each of its length (4 bytes, big-endian) and a
msgpack array: seconds since the recording began, content type, content encoding, compression, body. It is
flushed once a second, so what was recorded a second before a crash can be read.
"""

from __future__ import annotations

import gzip
import itertools
import os
import re
import struct
import time
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, NamedTuple
from uuid import UUID, uuid4, uuid5

import msgspec
from msgspec import Meta, structs

from celery_exporter.broker.codecs import JSON, MAX_BODY
from celery_exporter.broker.message import Message, events_of
from celery_exporter.core.events import (
    TASK_TYPES,
    WORKER_TYPES,
    Event,
    exception_class,
    unregistered_name,
    unwrap,
)

FORMAT = b"celery-exporter events 1\n"
#: Seconds between two flushes.
FLUSH = 1.0
#: Bytes of a text beside a message, on AMQP.
LONGEST = 255
_OF_CELERY = frozenset(TASK_TYPES + WORKER_TYPES)
_LENGTH = struct.Struct(">I")


class NotATapeError(Exception):
    """The file is none of ours, or cannot be read at all; the text is one line for people."""


class Record(NamedTuple):
    """A message, and when it came: seconds since the recording began."""

    at: float
    payload: Message


class _Line(msgspec.Struct, array_like=True):
    at: Annotated[float, Meta(ge=0, lt=1e11)]
    content_type: str | None
    content_encoding: str | None
    compression: str | None
    body: bytes


def short(value: object) -> str | None:
    """Return what stands beside a message, if it is a text that can: senders write what they like."""
    fits = isinstance(value, str) and value.isprintable() and len(value.encode()) <= LONGEST
    return value if isinstance(value, str) and fits else None


class Writer:
    """Writes a new file, its owner's alone, for tasks' arguments are in it; an OSError tells its path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        under = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        # Its name is nobody's business: gzip would write it into the file.
        self._file = gzip.GzipFile(filename="", fileobj=under, mode="wb", compresslevel=6)
        self._under = under
        self._file.write(FORMAT)
        self._file.flush()
        self._flushed = time.monotonic()
        self.messages = 0
        self.too_large = 0

    def write(self, record: Record) -> None:
        """Add a message, or count it as `too_large`: no exporter reads it either."""
        said = record.payload
        if len(said.body) > MAX_BODY:
            self.too_large += 1
            return
        line = _Line(
            record.at,
            short(said.content_type),
            short(said.content_encoding),
            short(said.compression),
            said.body,
        )
        data = msgspec.msgpack.encode(line)
        with self._of_its_path():
            self._file.write(_LENGTH.pack(len(data)) + data)
        self.messages += 1

    def keep(self) -> None:
        """Have what was written outlast this process, if it is a second since that was last done."""
        if time.monotonic() - self._flushed > FLUSH:
            self._flushed = time.monotonic()
            with self._of_its_path():
                self._file.flush()

    def close(self) -> None:
        """End the file."""
        with self._of_its_path(), self._under:
            self._file.close()

    @contextmanager
    def _of_its_path(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None


class RecordingReader:
    """Reads a file. Where it is damaged it ends, and `broken` says where and why."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.broken: str | None = None
        self.messages = 0
        self._is_one = False

    def __iter__(self) -> Iterator[Record]:
        """Yield the messages that can be read; raise NotATapeError for a file that is none of ours."""
        try:
            with gzip.open(self._path) as file:
                yield from self._records(file)
        except (EOFError, OSError, zlib.error) as error:
            if not self._is_one:
                raise NotATapeError(f"{self._path}: cannot be read: {error}") from None
            self._break(str(error))

    def _records(self, file: gzip.GzipFile) -> Iterator[Record]:
        if file.read(len(FORMAT)) != FORMAT:
            raise NotATapeError(f"{self._path}: is not a recording of celery-exporter")
        self._is_one = True
        while head := file.read(_LENGTH.size):
            if len(head) < _LENGTH.size:
                return self._break("it ends within a record")
            (size,) = _LENGTH.unpack(head)
            if size > MAX_BODY + 1_000:
                return self._break(f"a record of {size} bytes")
            data = file.read(size)
            if len(data) < size:
                return self._break("it ends within a record")
            try:
                line = msgspec.msgpack.decode(data, type=_Line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                return self._break(str(error))
            self.messages += 1
            said = line.content_type, line.content_encoding, line.compression
            yield Record(line.at, Message(line.body, *said))
        return None

    def _break(self, why: str) -> None:
        self.broken = f"{self._path} is damaged after message {self.messages:,}: {why}"


class Scrubber:
    """Makes messages that can be shown to anybody: names are replaced, each by the same one.

    So are types of events that an application chose, and ids but those that Celery makes up (uuid4). What
    nobody here reads (args, kwargs, results, tracebacks) is left out; of an exception its class stays.
    """

    def __init__(self, accept: Collection[str]) -> None:
        self._accept = accept
        self._names: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._salt = uuid4()  # nobody can find out an id by trying

    def scrub(self, payload: Message) -> Message | None:
        """Return the message without what is nobody's business; None if nothing of it can be read."""
        events = [self._event(one) for one in events_of(payload, self._accept) if isinstance(one, Event)]
        return Message(msgspec.json.encode(events), JSON, "utf-8") if events else None

    def _event(self, event: Event) -> dict[str, object]:
        unwrap(event)  # the class of a wrapped exception is in the traceback
        shown = {name: value for name, value in structs.asdict(event).items() if value is not None}
        shown.pop("traceback", None)
        if event.type not in _OF_CELERY:
            shown["type"] = self._name("type", event.type)
        for field, usual in _SOFTWARE.items():
            if event.type not in WORKER_TYPES or not usual.fullmatch(str(shown.get(field))):
                shown.pop(field, None)
        for field in ("eta", "expires"):
            if not _is_time(getattr(event, field)):
                shown.pop(field, None)
        if event.uuid is not None and not _says_nothing(event.uuid):
            shown["uuid"] = str(uuid5(self._salt, event.uuid))
        for field, kind in (("name", "task"), ("queue", "queue")):
            if field in shown:
                shown[field] = self._name(kind, shown[field])
        shown |= self._route(event)
        process, at, host = event.hostname.partition("@")
        shown["hostname"] = self._name("node", process) + (at and at + self._name("host", host))
        if "exception" in shown:
            unknown = unregistered_name(event.exception)
            what = repr(self._name("task", unknown)) if unknown else ""
            shown["exception"] = f"{exception_class(event.exception) or 'Exception'}({what})"
        return shown

    def _route(self, event: Event) -> dict[str, str]:
        """Return exchange and routing key under the names of queues, with which the core compares them."""
        route = {}
        if event.exchange:
            delays = _DELAY_EXCHANGE.fullmatch(event.exchange)
            route["exchange"] = delays[1] if delays else self._name("queue", event.exchange)
        if event.routing_key:
            bits = _DELAY_BITS.match(event.routing_key)
            start = bits[0] if bits else ""
            route["routing_key"] = start + self._name("queue", event.routing_key.removeprefix(start))
        return route

    def _name(self, kind: str, name: str) -> str:
        names = self._names[kind]
        return names.setdefault(name, f"{kind}-{len(names) + 1}")


#: What a worker says of its software and system where no application changed that.
_SOFTWARE = {
    "sw_ident": re.compile("py-celery"),
    "sw_ver": re.compile(r"\d+(\.\d+){0,3}((a|b|rc|\.dev|\.post)\d+)?", re.ASCII),
    "sw_sys": re.compile("Linux|Darwin|Windows|FreeBSD|OpenBSD|NetBSD|SunOS|AIX|Java"),
}
#: Celery's own names in native delayed delivery, which say nothing of an application; see core/routing.py.
_DELAY_EXCHANGE = re.compile(r"(?:.+_)?(celery_delayed_\d{1,2})")
_DELAY_BITS = re.compile(r"(?:[01]\.){28}")


def _says_nothing(id_: str) -> bool:
    """Tell whether an id is by chance, as Celery's are; others have a time, a host or a name in them."""
    try:
        return UUID(id_).version == 4 and str(UUID(id_)) == id_
    except ValueError:
        return False


def _is_time(eta: str | None) -> bool:
    try:
        return eta is not None and bool(datetime.fromisoformat(eta))
    except ValueError:
        return False


def paced(records: Iterator[Record], speed: float | None) -> Iterator[tuple[float, Record]]:
    """Yield each record with the seconds after which it is due, at `speed` times its own; None is at once."""
    first, rest = next(records, None), records
    if first is not None:
        for record in itertools.chain([first], rest):
            yield (0.0 if speed is None else (record.at - first.at) / speed), record
