"""Writes lines to a descriptor: a file, a pipe, a terminal or a socket.

A write may take a part of the lines only: the disk is full, or a pipe has no space. Invariant: the rest of a
line that was begun is written before anything else, so the line is complete in the end, and no other line
continues it. What was written is never removed: a program that follows a file (`tail -F`, Fluent Bit, Vector)
reads all of it again if it becomes shorter.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from contextlib import suppress

from msgspec import Struct

#: Lines up to this length enter a pipe whole, also if other processes write to it (pipe(7), PIPE_BUF).
MAX_ATOMIC_BYTES = select.PIPE_BUF


class Progress(Struct, frozen=True):
    """How far a write came: `position` is behind the last line that was begun. `error` says why not further.

    Lines up to `position` are in the output, but for the rest of the last one, which follows.
    """

    position: int
    error: OSError | None = None


class LineWriter:
    """Appends lines to an open descriptor, which stays the caller's.

    Other outputs than regular files may have a reader that does not read: `write` waits for it until its
    deadline. The descriptor may block or not, because its flags can be shared with other processes.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        #: Of the line that was begun, or the newline that a predecessor could not write.
        self._rest = b"\n" if self._ends_within_a_line() else b""
        self._size = self._current_size()  # of the file behind the beginning of that line

    @property
    def is_within_a_line(self) -> bool:
        """Return whether the last line is not complete."""
        return bool(self._rest)

    def write(self, lines: bytes, begin: int, deadline: float) -> Progress:
        """Write the lines from position `begin` on, until `deadline`, a monotonic time in seconds."""
        position = begin
        try:
            self._complete(deadline)
            while position < len(lines):
                position += self._write(self._next_chunk(lines, position), deadline)
        except BrokenPipeError as error:  # the next reader gets the line from its beginning
            if self._rest and begin:
                begin = lines.rfind(b"\n", 0, begin - 1) + 1
            self._rest = b""
            return Progress(max(begin, lines.rfind(b"\n", begin, position) + 1), error)
        except OSError as error:
            end = position if position == begin else lines.index(b"\n", position - 1) + 1
            self._rest = lines[position:end] or self._rest
            self._size = self._current_size()
            return Progress(end, error)
        return Progress(position)

    def _complete(self, deadline: float) -> None:
        """Write the rest of the line that was begun."""
        if self._rest and self.is_regular and self._current_size() != self._size:
            # Another process made the file shorter (logrotate, copytruncate), or wrote to it.
            self._rest = b"\n" if self._ends_within_a_line() else b""
        while self._rest:
            self._rest = self._rest[self._write(self._next_chunk(self._rest, 0), deadline) :]
            self._size = self._current_size()

    def _next_chunk(self, lines: bytes, position: int) -> bytes | memoryview:
        """Return what to write at once: for other outputs than regular files, whole lines that fit."""
        if self.is_regular:
            return memoryview(lines)[position:]
        limit = position + MAX_ATOMIC_BYTES
        return lines[position : lines.rfind(b"\n", position, limit) + 1 or limit]

    def _write(self, data: bytes | memoryview, deadline: float) -> int:
        if not self.is_regular and not self._is_writable(deadline):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return os.write(self.descriptor, data)

    def _is_writable(self, deadline: float) -> bool:
        """Wait for space for `MAX_ATOMIC_BYTES`: a write of more may block. A broken pipe is writable."""
        return bool(self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _current_size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def _ends_within_a_line(self) -> bool:
        """Return whether a regular file ends without a newline; False if it cannot be read."""
        if not self.is_regular or not (size := self._current_size()):
            return False
        with suppress(OSError):  # the descriptor itself is for writing only
            reader = os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(reader, 1, size - 1) not in {b"\n", b""}
            finally:
                os.close(reader)
        return False
