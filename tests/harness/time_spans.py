"""Time spans that tests limit, on a machine whose processors other programs use as well.

Linux counts how long each thread ran, and how long it waited for a processor. The rest of a span is time in
which the thread was blocked: it slept, or waited for an answer, a lock or a file. A test can limit that time
on a busy machine.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.waiting import POLL_SECONDS, eventually

if TYPE_CHECKING:
    from typing import Self

#: On a machine where nothing else runs, as for `make faults`, limits apply to the elapsed time.
QUIET = os.environ.get("MACHINE") == "quiet"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Reading(NamedTuple):
    """The counters at one moment."""

    at: float  # monotonic seconds
    thread_times: dict[Path, int]  # nanoseconds by thread, running or waiting for a processor
    stolen_seconds: float


class TimeSpan:
    """A span of time without the time that the threads of some processes ran or waited for a processor.

    `with TimeSpan(pid) as span:` measures a call that waits for that process. The times of both processes
    are subtracted. `TimeSpan.until(condition, pid)` waits for a condition.

    The times of parallel threads are added, so `blocked_seconds` is a lower bound. It is 0 for processes
    that were busy for the whole span.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = (*pids, os.getpid())

    def __enter__(self) -> Self:
        self._begin = self._end = self._read()
        self._busy_seconds = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self._extend(self._read())

    @classmethod
    def until(
        cls,
        condition: Callable[[], object],
        *pids: int,
        deadline: float = 10.0,
        every: float = POLL_SECONDS,
        what: str = "",
    ) -> Self:
        """Wait as `eventually` does. The span ends at the last check before the condition is met.

        So a delay of this process between two checks does not count.
        """
        span = cls()
        span._pids = pids
        span.__enter__()

        def is_met() -> object:
            before = span._read()
            if not (state := condition()):
                span._extend(before)
            return state

        eventually(is_met, deadline, every=every, what=what)
        return span

    @property
    def elapsed_seconds(self) -> float:
        return self._end.at - self._begin.at

    @property
    def blocked_seconds(self) -> float:
        stolen_seconds = self._end.stolen_seconds - self._begin.stolen_seconds
        return max(0.0, self.elapsed_seconds - self._busy_seconds - stolen_seconds)

    @property
    def seconds(self) -> float:
        """The time to which limits apply."""
        return self.elapsed_seconds if QUIET else self.blocked_seconds

    def __repr__(self) -> str:
        return f"{self.elapsed_seconds:.2f} s, of which blocked {self.blocked_seconds:.2f} s"

    def _extend(self, reading: Reading) -> None:
        """Let the span end at this reading; the last times of threads that have ended stay."""
        before, now = self._end.thread_times, reading.thread_times
        self._busy_seconds += sum(total - before.get(thread, 0) for thread, total in now.items()) / 1e9
        self._end = reading._replace(thread_times={**before, **now})

    def _read(self) -> Reading:
        thread_times = {}
        for pid in self._pids:
            with contextlib.suppress(OSError):  # the process has ended
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(OSError):
                        ran, waited, _ = (thread / "schedstat").read_text().split()
                        thread_times[thread] = int(ran) + int(waited)
        return Reading(time.monotonic(), thread_times, _stolen_seconds())


def _stolen_seconds() -> float:
    """Return how long the host of this virtual machine used its processors for others, since boot."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return int(fields[8]) / TICKS_PER_SECOND
