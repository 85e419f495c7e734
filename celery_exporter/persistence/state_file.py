"""The state file: a header line, followed by records that are appended one after the other.

    celery-exporter state <version>
    <length> <CRC-32 of the length> <CRC-32 of the content> <content>   … numbers: 4 bytes, little-endian

A process that is killed while it writes leaves an incomplete record at the end. That record is cut off, since
no page has shown its content. Any other mismatch is damage. A damaged file is moved aside, never overwritten,
so that the user can examine it. A file that is not a state file stays unchanged. A lock (flock) keeps other
processes out. A file that is removed or moved while it is in use is rewritten.
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

#: Version of the format. Other versions are rejected, since the meaning of a field may have changed.
VERSION = 5
#: Maximum size that is read. The state of a million tasks has a third of it.
MAX_FILE_BYTES = 2**30
#: Size from which on reading is logged, because it takes noticeable time.
LARGE_FILE_BYTES = 20 * 2**20
#: Minimum growth after which a file is rewritten. A larger file has to double.
COMPACTION_BYTES = 8 * 2**20

#: Files that were moved aside and are kept. The next one replaces the oldest.
MAX_ASIDE_FILES = 9

_MAGIC = b"celery-exporter state"
_HEADER = b"%s %d\n" % (_MAGIC, VERSION)
_MAX_HEADER_BYTES = 200
_MAX_PADDING_BYTES = 2**20
_frame = Struct("<III")
_length = Struct("<I").pack


class StateFileError(Exception):
    """The file cannot be read or written; the text is one line."""


class UnavailableError(StateFileError):
    """The file is not available now: another process has locked it, or the system cannot open it."""


class UnusablePathError(StateFileError):
    """The path is not that of a state file, or a state file cannot be created there."""


def first_record(path: Path) -> bytes | None:
    """Return the first record of the file at a path, None of a file that is empty or does not exist yet.

    Changes nothing, and takes no lock. Raises StateFileError if an exporter could not use the file.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise UnusablePathError(f"cannot open {path}: directory {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UnusablePathError(f"cannot write {path}: directory {path.parent} is not writable")
    if not path.exists():
        return None
    if not path.is_file():
        raise UnusablePathError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                _check_header(path, file.readline(_MAX_HEADER_BYTES))
            record = next(_records(file, size), None)
    except OSError as error:
        raise UnusablePathError(f"cannot open {path}: {error.strerror}") from None
    if record is None and size > len(_HEADER):
        raise StateFileError("it is damaged: it ends within its first record")
    return record


class StateFile:
    """A file of records, each of which is bytes. Used by one thread at a time.

    `errors` counts failures by operation, "read" or "write".
    """

    def __init__(self, path: Path) -> None:
        self.errors = {"read": 0, "write": 0}
        self._path = Path(os.path.realpath(path))  # so that a symbolic link stays one
        self._descriptor: int | None = None  # of the locked file at the path
        self._is_intact = False  # it has all that was written, and ends with a complete record
        self._size = self._compacted_size = 0  # bytes, now and after the last rewrite
        self._logged = ""  # the last error that was logged
        self._write_blocked: str | None = None  # why the path must not be written to

    def load(self, take: Callable[[bytes], None]) -> bool:
        """Call `take` with each record of the file; return whether there were any.

        Raises UnavailableError or UnusablePathError; the file then stays unchanged. All other errors, and
        any exception of `take`, are logged and counted, and the file is moved aside. The caller then discards
        the records that `take` received before.
        """
        try:
            return self._read(take)
        except (UnavailableError, UnusablePathError):
            self.close()
            raise
        except StateFileError as error:
            self.refuse(str(error))
        except Exception as error:  # noqa: BLE001  a valid file that this exporter did not write
            self.refuse(f"it holds a state that cannot be used ({error!r})")
        return False

    def refuse(self, why: str) -> None:
        """Log and count that the state is not used, and move the file aside. `why` begins with "it"."""
        self.errors["read"] += 1
        log.error("state file %s: %s. Counters start at 0. %s", self._path, why, self._move_unread_aside())

    def move_aside(self, why: str) -> bool:
        """Move the file aside, so that no later process restores an outdated state.

        Return whether it is no longer at the path. An error is logged once, and the caller tries again later.
        """
        if not self._is_in_place():
            return True
        aside, failure = self._next_aside(), ""
        try:
            self._path.rename(aside)
        except OSError as error:
            failure = f"it could not be moved aside: {error.strerror}"
        self._log_once(f"{why}; {failure or f'it was moved to {aside}'}")
        if not failure:
            self.close()
            self._size = 0
        return not failure

    @property
    def is_intact(self) -> bool:
        """Return whether a record can be appended: the file has all that was written, and nothing else."""
        return self._is_intact and self._is_in_place() and self._is_unchanged()

    @property
    def needs_compaction(self) -> bool:
        """Return whether a rewrite without outdated records would make the file much smaller."""
        return self._size > max(2 * self._compacted_size, self._compacted_size + COMPACTION_BYTES)

    def append(self, record: bytes) -> None:
        """Append a record and sync the file; raise StateFileError. Requires a `rewrite` before."""
        assert self._descriptor is not None, "rewrite comes first"  # noqa: S101
        self._is_intact = False
        try:
            self._size = self._write(self._descriptor, self._size, [record])
        except StateFileError:
            self.errors["write"] += 1
            with suppress(OSError):  # frees space on a full disk for a new file
                os.ftruncate(self._descriptor, self._size)
            raise
        self._is_intact = True

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Write a new file and move it to the path; raise StateFileError."""
        self._is_intact = False
        try:
            self._rewrite(records)
        except StateFileError:
            self.errors["write"] += 1
            raise
        self._is_intact = True

    def close(self) -> None:
        """Close the file, which releases its lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    # -- reading -----------------------------------------------------------------------------------------

    def _read(self, take: Callable[[bytes], None]) -> bool:
        number = 0
        try:
            self._descriptor = self._open()
        except FileNotFoundError:
            raise UnusablePathError(
                f"cannot open {self._path}: directory {self._path.parent} does not exist"
            ) from None
        except (NotADirectoryError, IsADirectoryError, PermissionError) as error:
            raise UnusablePathError(f"cannot open {self._path}: {error.strerror}") from None
        except OSError as error:
            raise UnavailableError(f"cannot open {self._path}: {error.strerror}") from None
        try:
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size:
                    _check_header(self._path, file.readline(_MAX_HEADER_BYTES))
                if size > MAX_FILE_BYTES:
                    raise StateFileError(f"it has {size} bytes, more than the limit of {MAX_FILE_BYTES}")
                if size > LARGE_FILE_BYTES:
                    log.info("reading %d MB from %s", size // 2**20, self._path)
                for number, record in enumerate(_records(file, size), 1):  # noqa: B007
                    take(record)
                if not number and size > len(_HEADER):  # `rewrite` moves only complete files to the path
                    raise StateFileError("it is damaged: it ends within its first record")
        except OSError as error:
            raise StateFileError(f"it cannot be read: {error.strerror}") from None
        return number > 0

    def _open(self) -> int:
        """Return a descriptor of the locked file at the path; create an empty file if there is none."""
        while True:
            if not self._path.exists():
                os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600))
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise UnusablePathError(f"{self._path} is not a regular file")
            descriptor = os.open(self._path, os.O_RDONLY)
            self._lock(descriptor)
            if _is_open_file_at(self._path, descriptor):
                return descriptor
            os.close(descriptor)  # another process replaced the file before the lock was taken

    def _log_once(self, message: str) -> None:
        """Log an error unless it is the same as the last one."""
        if message != self._logged:
            log.error("state file %s: %s", self._path, message)
        self._logged = message

    def _is_unchanged(self) -> bool:
        """Return whether the size is as written: no other process has appended to it or truncated it."""
        return self._descriptor is not None and os.fstat(self._descriptor).st_size == self._size

    def _is_in_place(self) -> bool:
        return self._descriptor is not None and _is_open_file_at(self._path, self._descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UnavailableError(
                f"the state file {self._path} is in use by another exporter. Give each exporter its own file"
            ) from None
        except OSError as error:  # a file system without locks
            log.warning("cannot lock %s: %s", self._path, error.strerror)

    def _move_unread_aside(self) -> str:
        """Move a file aside that was not read; return a message about what was done."""
        self.close()
        if self._write_blocked is not None:
            return "No state will be saved."
        aside = self._next_aside()
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return "The file no longer exists."
        except OSError as error:
            self._write_blocked = f"it exists, and could be neither read nor moved: {error.strerror}"
            return f"The file could not be moved aside ({error.strerror}), so no state will be saved."
        return f"The file was moved to {aside}."

    def _next_aside(self) -> Path:
        names = [Path(f"{self._path}.unread-{number}") for number in range(1, MAX_ASIDE_FILES + 1)]
        free = (name for name in names if not os.path.lexists(name))
        files = (name for name in names if name.is_file() and not name.is_symlink())
        return next(free, None) or min(files, key=lambda name: name.stat().st_mtime, default=names[-1])

    # -- writing -----------------------------------------------------------------------------------------

    def _rewrite(self, records: Iterable[bytes]) -> None:
        if self._write_blocked is not None:
            raise StateFileError(f"cannot write {self._path}: {self._write_blocked}")
        beside = self._path.with_name(self._path.name + ".new")
        was_lost = self._size > 0 and not self._is_in_place()
        try:
            if not self._is_in_place():
                self._reopen()
            _remove_leftover(beside)
            new = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                self._lock(new)
                _write_all(new, _HEADER)
                size = self._write(new, len(_HEADER), records)
                beside.replace(self._path)
            except BaseException:
                os.close(new)
                with suppress(OSError):
                    beside.unlink()
                raise
            self.close()
            self._descriptor, self._size, self._compacted_size = new, size, size
            _sync_directory(self._path.parent)
        except OSError as error:
            raise StateFileError(f"cannot write {self._path}: {error.strerror}") from None
        self._logged = ""
        if was_lost:
            log.error("state file %s: it was removed or moved, and was rewritten", self._path)

    def _reopen(self) -> None:
        """Open the file at the path after the previous one was removed or replaced.

        Another state file is moved aside unless a process uses it. Any other file stays.
        """
        self.close()
        descriptor = self._open()
        with os.fdopen(os.dup(descriptor), "rb") as file:
            start = file.read(len(_MAGIC))
        if start == _MAGIC:
            aside = self._next_aside()
            self._path.rename(aside)
            log.error("state file %s: another state file replaced it and was moved to %s", self._path, aside)
            os.close(descriptor)
            descriptor = self._open()
        elif start:
            os.close(descriptor)
            raise StateFileError(
                f"cannot write {self._path}: a file that is not a state file replaced it. Move that file away"
            )
        self._descriptor = descriptor

    def _write(self, descriptor: int, size: int, records: Iterable[bytes]) -> int:
        """Append records to a file of this size, and sync it; return its new size."""
        try:
            for record in records:
                frame = _frame.pack(len(record), zlib.crc32(_length(len(record))), zlib.crc32(record))
                _write_all(descriptor, frame + record)
                size += _frame.size + len(record)
            os.fdatasync(descriptor)
        except OSError as error:
            raise StateFileError(f"cannot write {self._path}: {error.strerror}") from None
        return size


def _check_header(path: Path, line: bytes) -> None:
    if _HEADER.startswith(line.rstrip(b"\0")) and line != _HEADER:
        raise StateFileError("it is damaged: its first line is incomplete")
    if not line.startswith(_MAGIC):
        raise UnusablePathError(
            f"{path} is not a state file of celery-exporter, and stays unchanged. Give another path"
        )
    if line != _HEADER:
        version = (line[len(_MAGIC) :].split() or [b""])[0].decode(errors="replace")
        raise StateFileError(f"it has version {version!r}, this exporter reads version {VERSION}")


def _records(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the content of each record, except of an incomplete one at the end."""
    position = len(_HEADER)
    while len(frame := file.read(_frame.size)) == _frame.size:
        length, length_checksum, content_checksum = _frame.unpack(frame)
        if zlib.crc32(_length(length)) != length_checksum:
            _check_padding(frame + file.read(_MAX_PADDING_BYTES))
            return
        position += _frame.size + length
        record = file.read(length) if position <= size else b""
        if len(record) < length:
            return
        if zlib.crc32(record) != content_checksum:
            _check_padding(file.read(_MAX_PADDING_BYTES))
            return
        yield record


def _check_padding(rest: bytes) -> None:
    """Raise StateFileError unless it is zeros, which a disk leaves if the power fails during a write."""
    if any(rest):
        raise StateFileError("it is damaged: a checksum does not match")


def _is_open_file_at(path: Path, descriptor: int) -> bool:
    try:
        at_path, opened = path.stat(), os.fstat(descriptor)
    except OSError:
        return False
    return (at_path.st_dev, at_path.st_ino) == (opened.st_dev, opened.st_ino)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftover(beside: Path) -> None:
    """Remove the new file of a process that was killed during a write.

    Any other file is an error.
    """
    try:
        status = beside.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise StateFileError(f"cannot write {beside}: it exists and is not a regular file")
    with beside.open("rb") as file:
        if not _MAGIC.startswith(file.read(len(_MAGIC))):
            raise StateFileError(f"cannot write {beside}: it exists and is not a state file")
    beside.unlink()
