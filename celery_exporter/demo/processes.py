"""The demo's processes: started, watched, waited for, and ended without leaving anything behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING

from redis import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from celery_exporter.demo import Stop

POLL = 0.1  # seconds between two looks at a condition: what a person takes for at once
PATIENCE = 5.0  # seconds from SIGTERM to SIGKILL: a worker ends the task it runs, 0.4 s at most, and hangs up
FOREIGN = ("CELERY_", "CE_", "PROMETHEUS_", "METRICS_")  # settings of the user's own cluster, not the demo's


class StoppedError(Exception):
    """Somebody asked for the end."""


class DemoError(Exception):
    """Why the demo cannot go on, in words for a person."""


@dataclass(frozen=True)
class Part:
    """One process, in a session of its own: the terminal's Ctrl-C reaches only us, who end all in order."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def require_running(self) -> None:
        """Raise, with what it said last, if it has ended."""
        if self.process.poll() is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-8:] or ["(its log is empty)"]
            tail = "".join(f"\n  {line}" for line in lines)
            raise DemoError(f"{self.name} ended, exit code {self.process.returncode}:{tail}")

    def end_by(self, deadline: float) -> None:
        """Wait until then, and kill what is left: the part, or pool processes that outlived their worker."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Stage:
    """The parts that run, in the order of their start."""

    def __init__(self, folder: Path, stop: Stop) -> None:
        self.folder = folder
        self._stop = stop
        self._parts: list[Part] = []

    def start(self, name: str, *command: str, **environment: str) -> Part:
        """Start a part, its output in a log of that name."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603  our own commands
                command,
                cwd=self.folder,
                # What a part that had to be killed leaves in its temporary folder goes with ours.
                env=inherited | {"TMPDIR": str(self.folder)} | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._parts.append(Part(name, process, log))
        return self._parts[-1]

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether the condition came true in time. Raises if a part ends meanwhile or a stop is asked for."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._stop.asked:
                raise StoppedError
            for part in self._parts:
                part.require_running()
            # Whom the condition asks may not be up yet, or be going down: the next round knows.
            with contextlib.suppress(OSError, HTTPException, RedisError):
                if condition():
                    return True
            time.sleep(POLL)
        return False

    def end(self, *parts: Part) -> None:
        """End these, all at the same time."""
        for part in parts:
            self._parts.remove(part)
            part.process.terminate()
        deadline = time.monotonic() + PATIENCE
        for part in parts:
            part.end_by(deadline)

    def end_all(self) -> None:
        """The broker, started first, ends last: without it the others would try to reconnect, not end."""
        self.end(*self._parts[1:])
        self.end(*self._parts)
