"""Waiting for a condition, with a deadline. Tests sleep only here.

Tests share the machine with each other and with other programs. A wait ends as soon as its condition is met,
so long deadlines cost time only in tests that fail.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1
BUSY_FACTOR = 10  # a busy machine may take this many times as long as a quiet one
ANSWER_TIMEOUT = 60.0  # seconds, for a response that takes milliseconds on a quiet machine


def eventually(
    probe: Callable[[], T],
    deadline: float = 10.0,
    *,
    every: float = POLL_SECONDS,
    ignore: tuple[type[Exception], ...] = (),
    what: str = "",
) -> T:
    """Call `probe` until its result is true, and return that.

    `deadline` is in seconds of a quiet machine; the wait takes up to `BUSY_FACTOR` times as long. A probe
    that raises AssertionError, or an error of `ignore`, is called again. After the deadline, raises
    AssertionError with the last result or error, so a probe should return or assert a descriptive value.
    """
    seconds = BUSY_FACTOR * deadline
    end = time.monotonic() + seconds
    while True:
        error: Exception | None = None
        try:
            state = probe()
            if state:
                return state
            last = repr(state)
        except (AssertionError, *ignore) as caught:
            error = caught
            last = f"{type(caught).__name__}: {caught}"
        if time.monotonic() > end:
            raise AssertionError(f"{what or 'condition'} not met in {seconds:g} s; last: {last}") from error
        time.sleep(every)


def until_equal(
    get: Callable[[], Any],
    want: Any,
    deadline: float = 10.0,
    *,
    ignore: tuple[type[Exception], ...] = (),
) -> None:
    """Wait until `get()` equals `want`. The error for two dicts has only their differences."""

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


def stays(probe: Callable[[], Any], seconds: float, *, every: float = POLL_SECONDS, what: str = "") -> None:
    """Check repeatedly for `seconds` that `probe` is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert probe(), f"{what or 'condition'} did not hold"
        time.sleep(every)
