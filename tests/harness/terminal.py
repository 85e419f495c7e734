"""A command of the exporter in a pseudo-terminal: its output, keys, window sizes, and terminal modes."""

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
    """`python -m celery_exporter` with its own controlling terminal."""

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
        self._descriptors: tuple[int, ...] = (self.slave, self.master, *self._closing)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.resize(*size)
        self.before = termios.tcgetattr(self.slave)
        self.raw = b""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery_exporter", *self.arguments]

    def environment(self) -> dict[str, str]:
        excluded = ("TERM", "NO_COLOR", "COLUMNS", "LINES")
        inherited = {name: value for name, value in clean_environment().items() if name not in excluded}
        return {**inherited, "TERM": "xterm-256color", **self.extra}

    def start(self) -> Terminal:
        self.process = subprocess.Popen(
            self.command(),
            cwd=self.folder,
            env=self.environment(),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  no threads yet
        )
        running.append(self)
        self._reader.start()
        return self

    def _read(self) -> None:
        while self._closing[0] not in select.select([self.master, self._closing[0]], [], [])[0]:
            try:
                chunk = os.read(self.master, 65_536)
            except OSError:  # no process has the terminal open
                return
            self.raw += chunk
            self.log.write_bytes(self.raw)

    def kill(self) -> None:
        super().kill()
        self.close()

    def close(self) -> None:
        """Close the terminal, as when its window is closed."""
        if self._descriptors:
            os.write(self._closing[1], b"x")
            if self._reader.is_alive():
                self._reader.join()
            for descriptor in self._descriptors:
                os.close(descriptor)
        self._descriptors = ()

    # -- input and output ----------------------------------------------------------------------------------

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def written(self) -> str:
        """Return all output so far, without escape sequences."""
        return _ESCAPES.sub("", self.raw.decode(errors="replace"))

    def shows(self, text: str, deadline: float = 20.0) -> Terminal:
        """Wait until the output contains this text."""
        eventually(lambda: text in self.written(), deadline, what=f"{text!r} in {self.written()[-3_000:]}")
        return self

    def is_restored(self) -> bool:
        """Return whether the terminal has its initial modes, the main screen, and a visible cursor."""
        modes = termios.tcgetattr(self.slave) == self.before
        is_main_screen = self.raw.rfind(b"\x1b[?1049l") > self.raw.rfind(b"\x1b[?1049h")
        return modes and is_main_screen and self.raw.rfind(b"\x1b[?25h") > self.raw.rfind(b"\x1b[?25l")
