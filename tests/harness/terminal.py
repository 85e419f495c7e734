"""A program in a real terminal (a pty): what it writes, keys, other sizes, what it leaves behind."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

from harness.exporter import clean_environment
from harness.processes import Process, running
from harness.waiting import eventually

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")


class Terminal(Process):
    """`python -m celery_exporter` with a terminal of its own."""

    name = "terminal"

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        size: tuple[int, int] = (100, 30),
        environment: dict[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.arguments, self.extra = arguments, environment or {}
        self.master, self.slave = pty.openpty()
        self._closing = os.pipe()
        self._ends: tuple[int, ...] = (self.slave, self.master, *self._closing)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.resize(*size)
        self.before = termios.tcgetattr(self.slave)
        self.raw = b""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery_exporter", *self.arguments]

    def environment(self) -> dict[str, str]:
        named = ("TERM", "NO_COLOR", "COLUMNS", "LINES")
        kept = {name: value for name, value in clean_environment().items() if name not in named}
        return {**kept, "TERM": "xterm-256color", **self.extra}

    def start(self) -> Terminal:
        self.process = subprocess.Popen(
            self.command(),
            cwd=self.folder,
            env=self.environment(),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  no threads before it
        )
        running.append(self)
        self._reader.start()
        return self

    def _read(self) -> None:
        while self._closing[0] not in select.select([self.master, self._closing[0]], [], [])[0]:
            try:
                found = os.read(self.master, 65_536)
            except OSError:  # nobody has it open any more
                return
            self.raw += found
            self.log.write_bytes(self.raw)

    def kill(self) -> None:
        super().kill()
        self.close()

    def close(self) -> None:
        """Take it away, as who closes the window does."""
        if self._ends:
            os.write(self._closing[1], b"x")
            if self._reader.is_alive():
                self._reader.join()
            for end in self._ends:
                os.close(end)
        self._ends = ()

    # what a person does and sees

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def written(self) -> str:
        """Return all that was ever on it, as text."""
        return _ESCAPES.sub("", self.raw.decode(errors="replace"))

    def shows(self, text: str, deadline: float = 20.0) -> Terminal:
        """Wait until it was written there."""
        eventually(lambda: text in self.written(), deadline, what=f"{text!r} in {self.written()[-3_000:]}")
        return self

    def is_restored(self) -> bool:
        """Tell whether it is as it was: its modes, its first screen, its cursor."""
        modes = termios.tcgetattr(self.slave) == self.before
        first = self.raw.rfind(b"\x1b[?1049l") > self.raw.rfind(b"\x1b[?1049h")
        return modes and first and self.raw.rfind(b"\x1b[?25h") > self.raw.rfind(b"\x1b[?25l")
