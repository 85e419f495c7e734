"""Opening the history file: whose it is, who else has it, and SQLite's connections to it.

A file that is not a history file, that is damaged or that has another version stays as it is. A lock (flock)
keeps other exporters out.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import msgspec

from celery_exporter.history import schema

log = logging.getLogger(__name__)

#: Seconds for which a connection waits for a lock of another one; writer and readers do not lock each other.
_BUSY_SECONDS = 1.0
#: Pages in memory, in KiB, of the connection that writes and of the one that reads.
_WRITE_CACHE_KIB, _READ_CACHE_KIB = 8_192, 2_048
#: Pages of PATH-wal: a batch of tasks has a thousand, and each copy of all into the file waits for the disk.
_WAL_PAGES, _PAGE_BYTES = 4_000, 4_096
_HEADER_BYTES, _SQLITE_MAGIC = 100, b"SQLite format 3\0"
#: The last bytes of names of the files that SQLite keeps beside the file while it is open.
BESIDE = ("-wal", "-shm")

_MOVE = "Move it away, with PATH-wal if there is one, and a new one is begun"


class HistoryFileError(Exception):
    """The file cannot be read or written; the text is one line that says what to do."""


class FileInUseError(HistoryFileError):
    """Another process has locked the file."""


class FileDamagedError(HistoryFileError):
    """SQLite cannot use the content of the file."""


class FileMovedError(HistoryFileError):
    """The file is no longer at the path."""


class QueryTimeoutError(HistoryFileError):
    """A search took too long and was ended, or waited too long for another one."""


def lock(path: Path) -> int:
    """Return a descriptor of the locked file at a path; create an empty file if there is none.

    Close it after all connections: closing any descriptor of a file ends the locks that SQLite has on it.
    Raises HistoryFileError; the file is then unchanged.
    """
    try:
        descriptor = _open_locked(path)
    except FileNotFoundError:
        raise HistoryFileError(f"cannot open {path}: directory {path.parent} does not exist") from None
    except OSError as error:
        raise HistoryFileError(f"cannot open {path} for writing: {error.strerror}") from None
    try:
        _check(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def probe(path: Path) -> bool:
    """Return whether an exporter has the file at a path open; raise HistoryFileError if none could use it.

    Nothing is changed.
    """
    path = Path(os.path.realpath(path))
    if path.exists():
        try:
            os.close(lock(path))
        except FileInUseError:
            return True
    elif not path.parent.is_dir():
        raise HistoryFileError(f"directory {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise HistoryFileError(f"directory {path.parent} is not writable: SQLite keeps PATH-wal there")
    return False


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise FileInUseError(
                f"{path} is in use by another exporter. Give each exporter its own file"
            ) from None
        except OSError as error:  # a file system without locks
            log.warning("cannot lock %s: %s", path, error.strerror)
        if is_open_file_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # it was removed or moved before the lock was taken


def _check(path: Path, descriptor: int) -> None:
    """Raise HistoryFileError unless the file is empty or a history file of this version."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise HistoryFileError(f"{path} is not a regular file. Give another path")
    header = os.pread(descriptor, _HEADER_BYTES, 0)
    if not header:
        return
    version, application = (int.from_bytes(header[start : start + 4], "big") for start in (60, 68))
    if not header.startswith(_SQLITE_MAGIC) or application != schema.APPLICATION_ID:
        raise HistoryFileError(
            f"{path} is not a history file of celery-exporter, and stays unchanged. Give another path, or "
            "move that file away"
        )
    if version != schema.SCHEMA_VERSION:
        raise HistoryFileError(
            f"{path} has version {version}, this exporter uses version {schema.SCHEMA_VERSION}. {_MOVE}"
        )


def is_open_file_at(path: Path, descriptor: int) -> bool:
    """Return whether a descriptor is one of the file that is at a path now."""
    try:
        at_path = path.stat()
    except OSError:
        return False
    return (at_path.st_dev, at_path.st_ino) == identity(descriptor)


def identity(descriptor: int) -> tuple[int, int]:
    """Return what tells an open file apart from all others."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def connect_writer(path: Path) -> sqlite3.Connection:
    """Return the connection that writes to a locked file; create the tables if the file is empty."""
    with translated(path):
        connection = _connect(path, "rw", _WRITE_CACHE_KIB)
        try:
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                # Before WAL is on: then the header says whose file it is from the first commit on.
                connection.executescript(f"BEGIN;{schema.CREATE}COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a power failure may cost the last seconds
            connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * _PAGE_BYTES}")
        except BaseException:
            connection.close()
            raise
        return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Return a connection that cannot write."""
    with translated(path):
        connection = _connect(path, "rw", _READ_CACHE_KIB)  # with "ro" SQLite cannot open PATH-shm
        connection.execute("PRAGMA query_only = ON")
        return connection


def _connect(path: Path, mode: str, cache_kib: int) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "temp_store = MEMORY"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(f"PRAGMA cache_size = -{cache_kib}")
    return connection


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into HistoryFileError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if text == "interrupted":
            raise QueryTimeoutError("the search took too long and was ended: narrow it down") from None
        raise HistoryFileError(f"cannot use {path}: {text}{_remedy(text)}") from None
    except (sqlite3.DatabaseError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FileDamagedError(
            f"{path} is damaged ({error}), and stays as it is. {_MOVE}; `sqlite3 PATH .recover` reads what "
            "is left"
        ) from None


_REMEDIES = {
    "full": "Free space on its disk; tasks are written again then",
    "readonly": "Let the exporter write the file and its directory",
    "unable to open": "The exporter has to be able to write its directory, too: SQLite keeps PATH-wal there",
    "locked": "Another program has it open for writing; end that one",
    "disk I/O": "The kernel's log (dmesg) has the reason",
}


def _remedy(text: str) -> str:
    return next((f". {remedy}" for part, remedy in _REMEDIES.items() if part in text), "")


def bytes_on_disk(path: Path) -> int:
    """Return the size of the file and of those beside it."""
    size = 0
    for name in (str(path), *(f"{path}{end}" for end in BESIDE)):
        with suppress(OSError):
            size += Path(name).stat().st_size
    return size
