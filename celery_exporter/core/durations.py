"""Durations as people write them: 90s, 15m, 2h, 3d, 1w."""

from __future__ import annotations

import re

#: Seconds of the units, the longest first.
UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_duration = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([wdhms])")


def seconds_of(text: str) -> float | None:
    """Return the seconds of a duration with a unit, None if the text is none."""
    match = _duration.fullmatch(text)
    return float(match[1]) * UNITS[match[2]] if match else None


def duration_text(seconds: float) -> str:
    """Return the shortest duration of so many seconds that `seconds_of` reads as exactly these."""
    unit, size = next((unit, size) for unit, size in UNITS.items() if seconds % size == 0 or unit == "s")
    return f"{seconds / size:.9f}".rstrip("0").removesuffix(".") + unit
