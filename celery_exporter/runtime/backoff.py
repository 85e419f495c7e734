"""Waits between attempts to reach a server."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

#: Seconds before the second attempt.
FIRST_RETRY_SECONDS = 0.2


def back_off(
    longest: float, first: float = FIRST_RETRY_SECONDS, rand: Callable[[], float] = random.random
) -> Iterator[float]:
    """Yield waits in seconds: doubling, capped, and spread so that many clients do not return at once."""
    wait = first
    while True:
        yield min(wait, longest) * (0.5 + rand() / 2)
        wait = min(wait * 2, longest)
