"""Waiting for a condition, with a deadline: the one place in the tests that sleeps.

Tests share their machine: with each other, and with whatever else people do there. A condition costs what it
takes to come true, so a deadline is for what never comes, and may be far away.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

EVERY = 0.1  # fine enough for people, coarse enough to leave two cores to the workers
BUSY_FACTOR = 10  # how many times what a quiet machine may need is waited for
ANSWER_TIMEOUT = 60.0  # seconds for an answer over the network that comes in milliseconds


def eventually(
    probe: Callable[[], T],
    deadline: float = 10.0,
    *,
    every: float = EVERY,
    ignore: tuple[type[Exception], ...] = (),
    what: str = "",
) -> T:
    """Return what `probe` returns as soon as that is true.

    `deadline` is the seconds that a quiet machine may need; `BUSY_FACTOR` times that are waited.
    An AssertionError, and what `ignore` names, count as "not yet". When time is up the last state
    is in the message, so let the probe return or assert something that tells a reader what it saw.
    """
    seconds = BUSY_FACTOR * deadline
    end = time.monotonic() + seconds
    while True:
        error: Exception | None = None
        try:
            state = probe()
            if state:
                return state
            seen = repr(state)
        except (AssertionError, *ignore) as caught:
            error = caught
            seen = f"{type(caught).__name__}: {caught}"
        if time.monotonic() > end:
            raise AssertionError(f"{what or 'condition'} not met in {seconds:g} s; last: {seen}") from error
        time.sleep(every)


def until_equal(
    get: Callable[[], Any],
    want: Any,
    deadline: float = 10.0,
    *,
    ignore: tuple[type[Exception], ...] = (),
) -> None:
    """Wait until `get()` equals `want`; of two dicts that don't, only the differences are told."""

    def compare() -> bool:
        got = get()
        assert got == want, _difference(got, want)
        return True

    eventually(compare, deadline, ignore=ignore, what="equality")


def _difference(got: Any, want: Any) -> str:
    if isinstance(got, dict) and isinstance(want, dict):
        keys = {key for key in (*got, *want) if got.get(key) != want.get(key)}
        got, want = ({key: side[key] for key in keys if key in side} for side in (got, want))
    return f"got {got!r}, want {want!r}"


def stays(probe: Callable[[], Any], seconds: float, *, every: float = EVERY, what: str = "") -> None:
    """Hold that `probe` is true at every look during `seconds` (for what must *not* happen)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert probe(), f"{what or 'condition'} did not hold"
        time.sleep(every)
