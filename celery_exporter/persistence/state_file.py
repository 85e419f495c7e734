"""A file that outlasts the process: one line that says what it is, then records, each written after the last.

    celery-exporter state <version>
    <length> <CRC-32 of that> <CRC-32 of the content> <content>   … numbers of 4 bytes, little-endian

A process that is killed while it writes leaves a part of a record at the end: nobody was told of that, so it
is cut off. Anything else that does not fit is damage. Such a file is never written over but moved aside, for
somebody may want to know what it was. A file that is no state file is not touched. A lock (flock) keeps a
second process from it. Should it be removed or moved while it is in use, it is rewritten.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import BinaryIO

log = logging.getLogger(__name__)

#: Of the format. An older or newer one is not read: what a field means may have changed.
VERSION = 3
#: Bytes; a state of a million tasks is a third of it.
MAX_SIZE = 2**30
#: Bytes whose reading takes long enough to say so.
MUCH = 20 * 2**20
#: Bytes that may be added before a file is long, at least; or as many as it had.
LONG = 8 * 2**20

#: Files that were moved aside and are kept; the oldest makes room.
MOST_ASIDE = 9

_TITLE = b"celery-exporter state"
_HEAD = b"%s %d\n" % (_TITLE, VERSION)
_LONGEST_HEAD = 200
_MOST_NOTHING = 2**20
_frame = Struct("<III")
_length = Struct("<I").pack


class StateFileError(Exception):
    """The file cannot be read or written; the text is one line."""


class UnavailableError(StateFileError):
    """The file cannot be had now: another process has it, or the system could not open it."""


class UnusablePathError(StateFileError):
    """The path is of something else than a state file, or of nothing that one can be in."""


class StateFile:
    """Keeps records of bytes. `errors` counts what went wrong, by operation; used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.errors = {"read": 0, "write": 0}
        self._path = Path(os.path.realpath(path))  # a link stays one
        self._descriptor: int | None = None  # of the file that is at the path, and locked by us
        self._is_sound = False  # it holds all that was written, and ends with a whole record
        self._size = self._size_at_first = 0  # bytes of whole records
        self._said = ""  # of what went wrong last
        self._taken: str | None = None  # why nothing may be written there

    def load(self, take: Callable[[bytes], None]) -> bool:
        """Give each record of the file to `take`; tell whether there were any.

        Raise UnavailableError or UnusablePathError, and leave alone what is there.

        What else is wrong with the file, or what `take` raises, is logged and counted, and the file moved
        aside: what `take` was given before is then of no use.
        """
        try:
            return self._read(take)
        except (UnavailableError, UnusablePathError):
            self.close()
            raise
        except StateFileError as error:
            self.refuse(str(error))
        except Exception as error:  # noqa: BLE001  whole, but no exporter wrote it
            self.refuse(f"it holds a state that cannot be used ({error!r})")
        return False

    def refuse(self, why: str) -> None:
        """Say and count that what it holds is not used, and put it aside."""
        self.errors["read"] += 1
        log.error("state file %s: %s; sums begin at 0. %s", self._path, why, self._put_aside())

    def put_aside(self, why: str) -> bool:
        """Move away what is older than what was shown, so that no later process goes on from there.

        Tell whether it is away; where not even that is possible it is tried again, and said once.
        """
        if not self._is_in_place():  # but another one, or none
            return True
        aside, failed = self._next_aside(), ""
        try:
            self._path.rename(aside)
        except OSError as error:
            failed = f"it could not be moved aside: {error.strerror}"
        self._say(f"{why}; {failed or f'it was moved to {aside}'}")
        if not failed:
            self.close()
            self._size = 0
        return not failed

    @property
    def is_sound(self) -> bool:
        """Tell whether all that is at the path was written by us, and takes a further record."""
        return self._is_sound and self._is_in_place() and self._is_whole()

    @property
    def is_long(self) -> bool:
        """Tell whether it should be written anew, without what is outdated."""
        return self._size > max(2 * self._size_at_first, self._size_at_first + LONG)

    def append(self, record: bytes) -> None:
        """Add a record to those of `rewrite`, and see it on the disk; raise StateFileError."""
        assert self._descriptor is not None, "rewrite comes first"  # noqa: S101
        self._is_sound = False
        try:
            self._size = self._write(self._descriptor, self._size, [record])
        except StateFileError:
            self.errors["write"] += 1
            with suppress(OSError):  # a full disk has room again for a new file
                os.ftruncate(self._descriptor, self._size)
            raise
        self._is_sound = True

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Write the file anew: beside its place, and then moved there; raise StateFileError."""
        self._is_sound = False
        try:
            self._rewrite(records)
        except StateFileError:
            self.errors["write"] += 1
            raise
        self._is_sound = True

    def close(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    # -- reading -----------------------------------------------------------------------------------------

    def _read(self, take: Callable[[bytes], None]) -> bool:
        number = 0
        try:
            self._descriptor = self._open()
        except FileNotFoundError:
            raise UnusablePathError(f"there is no folder {self._path.parent}") from None
        except (NotADirectoryError, IsADirectoryError, PermissionError) as error:
            raise UnusablePathError(f"cannot open {self._path}: {error.strerror}") from None
        except OSError as error:
            raise UnavailableError(f"cannot open {self._path}: {error.strerror}") from None
        try:
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size:
                    self._check_head(file.readline(_LONGEST_HEAD))
                if size > MAX_SIZE:
                    raise StateFileError(f"it has {size} bytes, more than any state")
                if size > MUCH:
                    log.info("reading %d MB from %s", size // 2**20, self._path)
                for number, record in enumerate(_records(file, size), 1):  # noqa: B007
                    take(record)
                if not number and size > len(_HEAD):  # it was written whole, and moved here then
                    raise StateFileError("it is damaged: it ends within its first record")
        except OSError as error:
            raise StateFileError(f"cannot be read: {error.strerror}") from None
        return number > 0

    def _open(self) -> int:
        """Return a descriptor of the file at the path, which is locked, and empty if there was none."""
        while True:
            if not self._path.exists():
                os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600))
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise UnusablePathError(f"{self._path} is no regular file")
            descriptor = os.open(self._path, os.O_RDONLY)
            self._lock(descriptor)
            if _is_at(self._path, descriptor):
                return descriptor
            os.close(descriptor)  # whoever had it has moved another one there

    def _say(self, what: str) -> None:
        """Log it, once."""
        if what != self._said:
            log.error("state file %s: %s", self._path, what)
        self._said = what

    def _is_whole(self) -> bool:
        """Tell whether nobody wrote to it, or cut it, but us."""
        return self._descriptor is not None and os.fstat(self._descriptor).st_size == self._size

    def _is_in_place(self) -> bool:
        return self._descriptor is not None and _is_at(self._path, self._descriptor)

    def _check_head(self, head: bytes) -> None:
        if _HEAD.startswith(head.rstrip(b"\0")) and head != _HEAD:
            raise StateFileError("it is damaged: its first line is not whole")
        if not head.startswith(_TITLE):
            raise UnusablePathError(f"{self._path} is no state file of celery-exporter, so it is left alone")
        if head != _HEAD:
            found = head[len(_TITLE) :].split()[:1]
            said = found[0].decode(errors="replace") if found else ""
            raise StateFileError(f"it is of version {said!r}, this one reads {VERSION}")

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UnavailableError(
                f"the state file {self._path} is in use by another exporter: give each one of its own"
            ) from None
        except OSError as error:  # a file system without locks
            log.warning("cannot lock %s: %s", self._path, error.strerror)

    def _put_aside(self) -> str:
        """Move the file out of the way; return what was done, for people."""
        self.close()
        if self._taken is not None:
            return "Nothing will be saved."
        aside = self._next_aside()
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return "It is gone."
        except OSError as error:
            self._taken = f"there is a file that could not be read, nor moved: {error.strerror}"
            return f"It could not be moved aside ({error.strerror}), so nothing will be saved."
        return f"It was moved to {aside}."

    def _next_aside(self) -> Path:
        names = [Path(f"{self._path}.unread-{number}") for number in range(1, MOST_ASIDE + 1)]
        free = (name for name in names if not os.path.lexists(name))
        files = (name for name in names if name.is_file() and not name.is_symlink())
        return next(free, None) or min(files, key=lambda name: name.stat().st_mtime, default=names[-1])

    # -- writing -----------------------------------------------------------------------------------------

    def _rewrite(self, records: Iterable[bytes]) -> None:
        if self._taken is not None:
            raise StateFileError(f"cannot write {self._path}: {self._taken}")
        beside = self._path.with_name(self._path.name + ".new")
        was_lost = self._size > 0 and not self._is_in_place()
        try:
            if not self._is_in_place():
                self._reopen()
            _clear(beside)
            new = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                self._lock(new)
                _write_all(new, _HEAD)
                size = self._write(new, len(_HEAD), records)
                beside.replace(self._path)
            except BaseException:
                os.close(new)
                with suppress(OSError):
                    beside.unlink()
                raise
            self.close()
            self._descriptor, self._size, self._size_at_first = new, size, size
            _sync_folder(self._path.parent)
        except OSError as error:
            raise StateFileError(f"cannot write {self._path}: {error.strerror}") from None
        self._said = ""
        if was_lost:
            log.error("state file %s: it was removed or moved, and was rewritten", self._path)

    def _reopen(self) -> None:
        """Have the file at the path again, which is another one than ours, or none.

        A state of before that nobody uses is moved aside; anything else that is there stays.
        """
        self.close()
        found = self._open()
        with os.fdopen(os.dup(found), "rb") as file:
            head = file.read(len(_TITLE))
        if head == _TITLE:
            aside = self._next_aside()
            self._path.rename(aside)
            log.error("state file %s: another state was put there; it was moved to %s", self._path, aside)
            os.close(found)
            found = self._open()
        elif head:
            os.close(found)
            raise StateFileError(
                f"cannot write {self._path}: a file that is no state file was put there; move it away"
            )
        self._descriptor = found

    def _write(self, descriptor: int, size: int, records: Iterable[bytes]) -> int:
        """Add records to a file of this size; return its size then."""
        try:
            for record in records:
                frame = _frame.pack(len(record), zlib.crc32(_length(len(record))), zlib.crc32(record))
                _write_all(descriptor, frame + record)
                size += _frame.size + len(record)
            os.fdatasync(descriptor)
        except OSError as error:
            raise StateFileError(f"cannot write {self._path}: {error.strerror}") from None
        return size


def _records(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the content of each record, but for one that was not written to its end."""
    position = len(_HEAD)
    while len(frame := file.read(_frame.size)) == _frame.size:
        length, of_length, of_content = _frame.unpack(frame)
        if zlib.crc32(_length(length)) != of_length:
            _check_nothing(frame + file.read(_MOST_NOTHING))
            return
        position += _frame.size + length
        record = file.read(length) if position <= size else b""
        if len(record) < length:
            return
        if zlib.crc32(record) != of_content:
            _check_nothing(file.read(_MOST_NOTHING))
            return
        yield record


def _check_nothing(rest: bytes) -> None:
    """Raise StateFileError unless it is zeros: what the disk had not written when the power failed."""
    if any(rest):
        raise StateFileError("it is damaged: a checksum does not fit")


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        there, ours = path.stat(), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
