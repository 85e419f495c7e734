"""Time spans held to a bound, on a machine whose processors other programs use too.

Each thread of Linux has an account of how long it ran and how long it was ready to run while other threads
had the processor. What is left of a span is time in which the thread was blocked: it slept, or waited for an
answer, a lock or a file. That is what a program can be held to, however busy the machine is.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

#: Where nothing else runs (`make faults` says so), spans are held to their bounds as the clock measures them.
QUIET = os.environ.get("MACHINE") == "quiet"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Span:
    """The time within `with`, less what the threads of these processes and of this one ran or waited to run.

    Threads that run side by side are deducted one after the other, so `blocked_seconds` is the least that it
    may have been, and 0 for processes that were busy throughout.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = (*pids, os.getpid())
        self._accounts: dict[Path, int] = {}  # what has been seen of each thread, in nanoseconds
        self._due_seconds = self._stolen_seconds = 0.0

    def __enter__(self) -> Self:
        self._accounts = self._read()
        self._due_seconds = 0.0
        self._stolen_before = _stolen_seconds()
        self._begin = self._end = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()

    def look(self) -> None:
        """Read the accounts: of a process that ends, what was read of it last is what counts."""
        self._end = time.monotonic()
        self._stolen_seconds = _stolen_seconds() - self._stolen_before
        for thread, now in self._read().items():
            self._due_seconds += (now - self._accounts.get(thread, 0)) / 1e9
            self._accounts[thread] = now

    @property
    def elapsed_seconds(self) -> float:
        return self._end - self._begin

    @property
    def blocked_seconds(self) -> float:
        return max(0.0, self.elapsed_seconds - self._due_seconds - self._stolen_seconds)

    @property
    def seconds(self) -> float:
        """What is held to a bound."""
        return self.elapsed_seconds if QUIET else self.blocked_seconds

    def __repr__(self) -> str:
        return f"{self.elapsed_seconds:.2f} s, of which blocked {self.blocked_seconds:.2f} s"

    def _read(self) -> dict[Path, int]:
        accounts = {}
        for pid in self._pids:
            with contextlib.suppress(OSError):  # it has ended
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(OSError):
                        ran, waited, _ = (thread / "schedstat").read_text().split()
                        accounts[thread] = int(ran) + int(waited)
        return accounts


def _stolen_seconds() -> float:
    """Return how long the host of this virtual machine kept its processors, since it was started."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return int(fields[8]) / TICKS_PER_SECOND
