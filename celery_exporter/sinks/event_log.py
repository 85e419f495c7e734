"""--event-log: one JSON object a line, appended to a file or written to stdout.

A file is opened again after it was moved away (logrotate), and when `reopen` is called. A line that the
output does not take is lost and counted. Only a pipe without a reader, or with one that does not read, is
waited for.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from celery_exporter.core.records import Record
from celery_exporter.core.types import State
from celery_exporter.errors import BadSettingError
from celery_exporter.sinks.base import NOT_WRITTEN, Payload, PermanentError, TemporaryError
from celery_exporter.sinks.line_writer import LineWriter
from celery_exporter.sinks.log_line import encode_lines

log = logging.getLogger(__name__)

#: The value of the option that means stdout.
STDOUT = Path("-")
#: Access to a file that is created: its group can read it, which may be that of a log shipper.
FILE_MODE = 0o640
#: A FIFO is opened without waiting for a reader; the other flags are those of every log file.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
#: Seconds for the rest of a line before a file is closed.
_LAST_WRITE_SECONDS = 0.1
#: What can be written to: regular files, FIFOs, and devices such as /dev/null.
_USABLE = (stat.S_ISREG, stat.S_ISFIFO, stat.S_ISCHR)
#: Errors of paths that no later attempt can open.
_UNUSABLE_ERRORS = frozenset({errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class EventLogSink:
    """See `Sink`. Raises BadSettingError for a path that can never be written to."""

    name = "event_log"
    max_body_bytes = 16 * 2**20
    states = tuple(State)
    min_interval = 0.0

    def __init__(self, path: Path, broker: str | None = None) -> None:
        self._broker = broker
        self._path = None if path == STDOUT else path
        self.address = "stdout" if self._path is None else str(path)
        #: Opens the file again before the next write, for any thread; None for stdout.
        self.reopen: Callable[[], None] | None = None if self._path is None else self._set_outdated
        self._is_outdated = False
        self._writer: LineWriter | None = None
        self._body, self._position = b"", 0  # what was not written whole yet, and how far it was written
        if self._path is None:
            if sys.stdout is None:
                raise BadSettingError("--event-log: got '-', but stdout is closed; it takes a path then")
        else:
            _check(self._path)

    def select(self, records: Iterable[Any]) -> list[Any]:
        """See `Sink`: transitions."""
        return [record for record in records if type(record) is Record]

    def encode(self, records: Sequence[Record]) -> Payload:
        """See `Sink`."""
        return Payload(encode_lines(records, self._broker))

    def send(self, body: bytes, timeout: float) -> None:
        """See `Sink`. After a TemporaryError, the same body is continued where it was interrupted."""
        if body is not self._body:
            self._body, self._position = body, 0
        progress = self._opened().write(body, self._position, time.monotonic() + timeout)
        self._position = progress.position
        if progress.error is None:
            self._body = b""
            return
        if isinstance(progress.error, (TimeoutError, BlockingIOError)):
            raise TemporaryError(f"{self.address} takes no data: its reader does not read")
        if isinstance(progress.error, BrokenPipeError) and self._path is not None:
            self.close()  # another reader may open the FIFO
            raise TemporaryError(f"{self.address} has no reader any more")
        lost = body.count(b"\n", progress.position)
        self._body = b""
        # Without the count, so that the error is the same each time, and is logged once.
        text = f"cannot write to {self.address}: {progress.error.strerror}; lines are lost"
        raise PermanentError(text, NOT_WRITTEN, lost)

    def probe(self, timeout: float) -> None:  # noqa: ARG002
        """See `Sink`. No file is created: another user may run `doctor`. A FIFO stays open for its reader."""
        if self._path is not None and self._writer is None:
            descriptor = _open_existing(self._path)
            self._writer = None if descriptor is None else LineWriter(descriptor)

    def close(self) -> None:
        """See `Sink`. Stdout stays open."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if writer.is_within_a_line:
            writer.write(b"", 0, time.monotonic() + _LAST_WRITE_SECONDS)
            if writer.is_within_a_line:
                log.error("the last line of %s is not complete", self.address)
        if self._path is not None:
            os.close(writer.descriptor)

    def _is_at_path(self, writer: LineWriter) -> bool:
        """Return whether the path leads to the open file."""
        if self._path is None:
            return True
        try:
            return os.path.samestat(self._path.stat(), os.fstat(writer.descriptor))
        except OSError:
            return False

    def _set_outdated(self) -> None:
        self._is_outdated = True

    def _opened(self) -> LineWriter:
        """Return the writer, with the file opened again if its path leads to another one."""
        if self._writer is not None and (self._is_outdated or not self._is_at_path(self._writer)):
            self.close()
        if self._writer is None:
            self._is_outdated = False
            self._writer = LineWriter(sys.stdout.fileno() if self._path is None else _open(self._path))
        return self._writer


def _check(path: Path) -> None:
    """Raise BadSettingError if the path leads to something that cannot be written to, such as a directory."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in _UNUSABLE_ERRORS:
            return
        raise BadSettingError(f"--event-log: cannot open {str(path)!r}: {error.strerror}") from None
    if not any(is_usable(mode) for is_usable in _USABLE):
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise BadSettingError(f"--event-log: {str(path)!r} is {kind}; it takes the path of a file, or -")


def _open(path: Path) -> int:
    """Open a file for appending, and create it if it does not exist. Raises TemporaryError."""
    try:
        return os.open(path, _FLAGS | os.O_CREAT, FILE_MODE)
    except OSError as error:
        raise _cannot_open(path, error) from None


def _open_existing(path: Path) -> int | None:
    """Open a file for appending; return None if it can be created. Raises TemporaryError."""
    try:
        return os.open(path, _FLAGS)
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            raise _cannot_open(path, error) from None
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise _cannot_open(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES))) from None
        return None
    except OSError as error:
        raise _cannot_open(path, error) from None


def _cannot_open(path: Path, error: OSError) -> TemporaryError:
    reason = error.strerror
    if error.errno == errno.ENOENT:
        reason = f"directory {path.parent} does not exist"
    elif error.errno == errno.ENXIO:
        reason = "no process reads this FIFO"
    return TemporaryError(f"cannot open {path}: {reason}")
