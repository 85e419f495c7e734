"""The demo's processes: starting, monitoring and stopping them, including their children and files."""

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

#: Seconds between two checks of a condition.
POLL_SECONDS = 0.1
#: Seconds from SIGTERM to SIGKILL: a worker finishes its task, in at most 0.4 s, and closes its connection.
STOP_TIMEOUT_SECONDS = 5.0
#: Prefixes of variables that may belong to the user's own cluster.
EXCLUDED_VARIABLES = ("CELERY_", "CE_", "PROMETHEUS_", "METRICS_")
#: Lines of a log that an error quotes.
QUOTED_LINES = 8


class StoppedError(Exception):
    """The user stopped the demo."""


class DemoError(Exception):
    """The demo cannot continue; the text is for the user."""


@dataclass(frozen=True)
class DemoProcess:
    """One process, in a session of its own: Ctrl-C reaches only this process, which stops all in order."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def require_running(self) -> None:
        """Raise DemoError, with the end of its log, if the process has ended."""
        if self.popen.poll() is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-QUOTED_LINES:] or [
                "(its log is empty)"
            ]
            tail = "".join(f"\n  {line}" for line in lines)
            raise DemoError(f"{self.name} ended, exit code {self.popen.returncode}:{tail}")

    def end_by(self, deadline: float) -> None:
        """Wait until a monotonic time, then kill the process group.

        Pool processes may outlive their worker.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


class DemoProcesses:
    """The running processes, in the order of their start. Their logs are in `folder`."""

    def __init__(self, folder: Path, stop: Stop) -> None:
        self.folder = folder
        self._stop = stop
        self._processes: list[DemoProcess] = []

    def start(self, name: str, *command: str, **environment: str) -> DemoProcess:
        """Start a process; its output goes to a log of that name."""
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(EXCLUDED_VARIABLES)
        }
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603  only the demo's commands
                command,
                cwd=self.folder,
                # Temporary files of a killed process are removed with our folder.
                env=inherited | {"TMPDIR": str(self.folder)} | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(DemoProcess(name, process, log))
        return self._processes[-1]

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Return whether the condition became true within these seconds.

        Raises StoppedError if the user stops the demo, and DemoError if a process ends.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._stop.requested:
                raise StoppedError
            for process in self._processes:
                process.require_running()
            # The server that the condition queries may be starting or stopping.
            with contextlib.suppress(OSError, HTTPException, RedisError):
                if condition():
                    return True
            time.sleep(POLL_SECONDS)
        return False

    def end(self, *processes: DemoProcess) -> None:
        """Stop these processes, all at the same time."""
        for process in processes:
            self._processes.remove(process)
            process.popen.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        for process in processes:
            process.end_by(deadline)

    def end_all(self) -> None:
        """Stop all processes, the broker last: without it the others would try to reconnect."""
        self.end(*self._processes[1:])
        self.end(*self._processes)
