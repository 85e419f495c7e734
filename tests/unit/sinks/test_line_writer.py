"""A line is written whole in the end, and once, whatever its output takes at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from typing import Self

from celery_exporter.sinks.line_writer import MAX_ATOMIC_BYTES, LineWriter, Progress

SOON, NOW = 60.0, 0.0  # seconds until the deadline of a write


def write(writer: LineWriter, lines: bytes, begin: int = 0, seconds: float = SOON) -> Progress:
    return writer.write(lines, begin, time.monotonic() + seconds)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let files of this process grow up to a size: a write beyond it is cut, like on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def opened(path: Path) -> Iterator[LineWriter]:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        yield LineWriter(descriptor)
    finally:
        os.close(descriptor)


class Pipe:
    """A pipe with the smallest buffer, and a thread that reads it, if `read` is called."""

    def __init__(self, *, blocking: bool = True) -> None:
        self.end, self.descriptor = os.pipe()
        os.set_blocking(self.descriptor, blocking)
        fcntl.fcntl(self.descriptor, fcntl.F_SETPIPE_SZ, 4096)
        self.got = b""
        self._reader: threading.Thread | None = None

    def read(self, size: int = 65_536) -> None:
        """Start to read until the end, `size` bytes at a time."""
        self._reader = threading.Thread(target=self._read, args=(size,), daemon=True)
        self._reader.start()

    def _read(self, size: int) -> None:
        while data := os.read(self.end, size):
            self.got += data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        if self._reader is not None:
            self._reader.join()
        os.close(self.end)


# -- files ---------------------------------------------------------------------------------------------


def test_lines_are_appended(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    with opened(path) as writer:
        assert write(writer, b"one\ntwo\n") == Progress(8)
        assert write(writer, b"three\n") == Progress(6)
    assert path.read_bytes() == b"before\none\ntwo\nthree\n"


@pytest.mark.parametrize("space", range(9))
def test_a_full_disk_leaves_no_torn_line_once_there_is_space(tmp_path, space):
    """Lines that were not begun are lost; the one that was begun is completed later."""
    path = tmp_path / "log"
    with opened(path) as writer:
        with file_size_limit(space):
            progress = write(writer, b"aaa\nbbb\n")
        assert (progress.error is None) == (space == 8)
        assert path.read_bytes() == b"aaa\nbbb\n"[:space]
        begun = -(-space // 4)
        assert progress.position == 4 * begun
        assert writer.is_within_a_line == (space % 4 != 0)
        assert write(writer, b"ccc\n") == Progress(4)
    assert path.read_bytes() == b"aaa\nbbb\n"[: 4 * begun] + b"ccc\n"


def test_a_disk_that_stays_full_takes_nothing_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "log"
    with opened(path) as writer:
        with file_size_limit(5):
            assert write(writer, b"aaa\nbbb\n").position == 8
            for _ in range(3):
                progress = write(writer, b"lost\n")
                assert (progress.position, progress.error.errno) == (0, errno.EFBIG)
        with file_size_limit(6):
            assert write(writer, b"lost\n").position == 0
        assert write(writer, b"") == Progress(0)
    assert path.read_bytes() == b"aaa\nbbb\n"


def test_a_line_that_a_killed_process_did_not_complete_is_ended(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    with opened(path) as writer:
        write(writer, b"three\n")
    assert path.read_bytes() == b"one\ntw\nthree\n"


def test_a_file_that_became_shorter_gets_no_rest_of_a_line(tmp_path):
    """Logrotate does so with copytruncate."""
    path = tmp_path / "log"
    with opened(path) as writer:
        with file_size_limit(5):
            write(writer, b"aaa\nbbb\n")
        os.truncate(path, 0)
        write(writer, b"ccc\n")
    assert path.read_bytes() == b"ccc\n"


def test_a_file_that_another_process_continued_gets_no_rest_of_a_line(tmp_path):
    path = tmp_path / "log"
    with opened(path) as writer:
        with file_size_limit(5):
            write(writer, b"aaa\nbbb\n")
        with path.open("ab") as other:
            other.write(b"other")
        write(writer, b"ccc\n")
    assert path.read_bytes() == b"aaa\nbother\nccc\n"


def test_a_device_without_space_takes_nothing():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        progress = write(LineWriter(descriptor), b"one\ntwo\n")
    finally:
        os.close(descriptor)
    assert (progress.position, progress.error.errno) == (0, errno.ENOSPC)


# -- pipes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_does_not_read_is_waited_for_until_the_deadline(blocking):
    lines = b"".join(b"%d\n" % number for number in range(100_000))
    with Pipe(blocking=blocking) as pipe:
        writer = LineWriter(pipe.descriptor)
        first = write(writer, lines, 0, NOW)
        assert 0 < first.position < len(lines)
        second = write(writer, lines, first.position, 0.05)
        assert second.position == first.position
        assert isinstance(first.error, TimeoutError)
        assert isinstance(second.error, TimeoutError)
        pipe.read()
        assert write(writer, lines, first.position).error is None
    assert pipe.got == lines


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 3 * MAX_ATOMIC_BYTES), min_size=1, max_size=20),
    st.lists(st.integers(1, 9_000), min_size=1, max_size=40),
)
def test_lines_of_any_length_arrive_once_however_the_reader_reads(lengths, reads):
    lines = b"".join(bytes([97 + number % 26]) * length + b"\n" for number, length in enumerate(lengths))
    with Pipe() as pipe:
        writer, got, position = LineWriter(pipe.descriptor), b"", 0
        sizes = iter(reads)
        while len(got) < len(lines):
            progress = write(writer, lines, position, NOW)
            position = progress.position
            got += os.read(pipe.end, next(sizes, 65_536))
        assert not writer.is_within_a_line
    assert got == lines


def test_lines_of_two_writers_of_one_pipe_do_not_mix():
    """As those of the log and the event log do, if a shell joins stdout and stderr."""
    with Pipe() as pipe:
        pipe.read(1_000)
        bodies = [
            b"".join(b"%c" % letter * (number % 3_000) + b"\n" for number in range(2_000)) for letter in b"ab"
        ]
        threads = [
            threading.Thread(target=write, args=(LineWriter(pipe.descriptor), body), daemon=True)
            for body in bodies
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(pipe.got.splitlines()) == sorted(b"".join(bodies).splitlines())


@pytest.mark.parametrize("length", [10, 3 * MAX_ATOMIC_BYTES])
def test_the_next_reader_gets_a_line_from_its_beginning(tmp_path, length):
    lines = b"".join(b"%c" % letter * length + b"\n" for letter in b"abcd" * (4 * 4096 // length + 1))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 4096)
    writer = LineWriter(descriptor)
    first = write(writer, lines, 0, NOW)
    os.close(end)
    broken = write(writer, lines, first.position, NOW)
    assert isinstance(broken.error, BrokenPipeError)
    assert broken.position <= first.position
    assert broken.position == 0 or lines[broken.position - 1 : broken.position] == b"\n"
    assert not writer.is_within_a_line
    os.close(descriptor)
