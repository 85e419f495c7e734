"""Time spans held to a bound, on a machine whose processors other programs use too.

Each thread of Linux has an account of how long it ran and how long it was ready to run while other threads
had the processor. What is left of a span is time in which the thread was blocked: it slept, or waited for an
answer, a lock or a file. That is what a program can be held to, however busy the machine is.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.waiting import EVERY, eventually

if TYPE_CHECKING:
    from typing_extensions import Self

#: Where nothing else runs (`make faults` says so), spans are held to their bounds as the clock measures them.
QUIET = os.environ.get("MACHINE") == "quiet"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Look(NamedTuple):
    """What is read at a moment."""

    at: float
    accounts: dict[Path, int]  # of threads, in nanoseconds
    stolen_seconds: float


class Span:
    """A span of time, less what the threads of some processes ran or waited to run.

    `with Span(pid) as span:` is for a call that waits for that process; this process is one of the two then.
    `Span.until(condition, pid)` waits for a condition.

    Threads that run side by side are deducted one after the other, so `blocked_seconds` is the least that it
    may have been, and 0 for processes that were busy throughout.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = (*pids, os.getpid())

    def __enter__(self) -> Self:
        self._begin = self._end = self._look()
        self._due_seconds = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self._extend(self._look())

    @classmethod
    def until(
        cls,
        condition: Callable[[], object],
        *pids: int,
        deadline: float = 10.0,
        every: float = EVERY,
        what: str = "",
    ) -> Self:
        """Wait as `eventually` does; the span ends when the condition was last seen not to be met.

        So this process, which may be late to see it, takes no part in it.
        """
        span = cls()
        span._pids = pids
        span.__enter__()

        def is_met() -> object:
            before = span._look()
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
        return max(0.0, self.elapsed_seconds - self._due_seconds - stolen_seconds)

    @property
    def seconds(self) -> float:
        """What is held to a bound."""
        return self.elapsed_seconds if QUIET else self.blocked_seconds

    def __repr__(self) -> str:
        return f"{self.elapsed_seconds:.2f} s, of which blocked {self.blocked_seconds:.2f} s"

    def _extend(self, look: Look) -> None:
        """Have the span end at this look; the account of a thread that has ended stays as it was."""
        before = self._end.accounts
        self._due_seconds += sum(now - before.get(thread, 0) for thread, now in look.accounts.items()) / 1e9
        self._end = look._replace(accounts={**before, **look.accounts})

    def _look(self) -> Look:
        accounts = {}
        for pid in self._pids:
            with contextlib.suppress(OSError):  # it has ended
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(OSError):
                        ran, waited, _ = (thread / "schedstat").read_text().split()
                        accounts[thread] = int(ran) + int(waited)
        return Look(time.monotonic(), accounts, _stolen_seconds())


def _stolen_seconds() -> float:
    """Return how long the host of this virtual machine kept its processors, since it was started."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return int(fields[8]) / TICKS_PER_SECOND
