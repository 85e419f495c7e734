"""A file that outlasts the process: one line that says what it is, then the state in msgpack.

    celery-exporter state <version> <SHA-256 of the rest>

It is written beside its place and moved there, so there is always a whole one. One that cannot be read is
never written over but moved aside, for somebody may want to know what it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from itertools import count
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Of the format. An older or newer one is not read: what a field means may have changed.
VERSION = 1
#: Bytes; a state of a million tasks is a third of it.
MAX_SIZE = 2**30
#: Bytes whose reading takes long enough to say so.
MUCH = 20 * 2**20

_TITLE = b"celery-exporter state"
_LONGEST_TITLE = 200


class StateFileError(Exception):
    """The file cannot be read or written; the text is one line."""


class StateFile(Generic[T]):
    """Keeps one value of a type that msgspec knows. `errors` counts what went wrong, by operation."""

    def __init__(self, path: Path, type_: type[T]) -> None:
        self.errors = {"read": 0, "write": 0}
        self._path = Path(os.path.realpath(path))  # a link stays one
        self._decoder = msgspec.msgpack.Decoder(type_)
        self._taken: str | None = None  # why nothing may be written there

    def load(self) -> T | None:
        """Return what was saved, or None; what is wrong with the file is logged and counted, not raised."""
        try:
            return self._read()
        except StateFileError as error:
            self.refuse(str(error))
            return None

    def refuse(self, why: str) -> None:
        """Say and count that what it holds is not used, and put it aside."""
        self.errors["read"] += 1
        log.error("state file %s: %s; sums begin at 0. %s", self._path, why, self._put_aside())

    def save(self, state: T) -> None:
        """Write it; raise StateFileError."""
        try:
            self._write(_encoded(state))
        except StateFileError:
            self.errors["write"] += 1
            raise

    def _read(self) -> T | None:
        try:
            status = self._path.stat()
            if not stat.S_ISREG(status.st_mode):
                self._taken = "it is no regular file"
                raise StateFileError(self._taken)
            if status.st_size > MAX_SIZE:
                raise StateFileError(f"it has {status.st_size} bytes, more than any state")
            if status.st_size > MUCH:
                log.info("reading %d MB from %s", status.st_size // 2**20, self._path)
            with self._path.open("rb") as file:
                head = file.readline(_LONGEST_TITLE)
                body = file.read() if head.startswith(_TITLE) else b""  # which may be anybody's gigabyte
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateFileError(f"cannot be read: {error.strerror}") from None
        return self._decoded(head.rstrip(b"\n"), body)

    def _decoded(self, head: bytes, body: bytes) -> T:
        if head.rsplit(b" ", 2)[0] != _TITLE:
            raise StateFileError("it is no state file of celery-exporter")
        _, version, checksum = head.rsplit(b" ", 2)
        if version != b"%d" % VERSION:
            raise StateFileError(
                f"it is of version {version.decode(errors='replace')!r}, this one reads {VERSION}"
            )
        if checksum != _checksum(body):
            raise StateFileError("it is damaged: its checksum does not fit")
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise StateFileError(f"it does not hold a state: {error}") from None

    def _put_aside(self) -> str:
        """Move the file out of the way; return what was done, for people."""
        if self._taken is not None:
            return "Nothing will be saved."
        names = (Path(f"{self._path}.unread-{number}") for number in count(1))
        aside = next(name for name in names if not os.path.lexists(name))
        try:
            self._path.rename(aside)
        except OSError as error:
            self._taken = f"there is a file that could not be read, nor moved: {error.strerror}"
            return f"It could not be moved aside ({error.strerror}), so nothing will be saved."
        return f"It was moved to {aside}."

    def _write(self, body: bytes) -> None:
        if self._taken is not None:
            raise StateFileError(f"cannot write {self._path}: {self._taken}")
        beside = self._path.with_name(self._path.name + ".new")
        try:
            _clear(beside)
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(b"%s %d %s\n" % (_TITLE, VERSION, _checksum(body)))
                file.write(body)
                file.flush()
                os.fsync(descriptor)
            beside.replace(self._path)
        except OSError as error:
            raise StateFileError(f"cannot write {self._path}: {error.strerror}") from None


def _clear(beside: Path) -> None:
    """Remove what a process left that ended while it wrote; anything else stays, and is an error."""
    try:
        status = beside.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise StateFileError(f"cannot write {beside}: something is there that is no file")
    with beside.open("rb") as file:
        if not _TITLE.startswith(file.read(len(_TITLE))):
            raise StateFileError(f"cannot write {beside}: there is a file that is not ours")
    beside.unlink()


def _encoded(state: object) -> bytes:
    try:
        return msgspec.msgpack.encode(state)
    except (msgspec.MsgspecError, OverflowError, TypeError) as error:
        raise StateFileError(f"this state cannot be written, please report it: {error}") from None


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
