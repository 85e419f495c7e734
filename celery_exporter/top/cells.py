"""A value of a status → the text of one cell: safe characters, bars, sparklines. Pure.

Every client that can publish events chooses names. `clean` is applied to each, so that none controls the
terminal.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from celery_exporter.status.columns import UNKNOWN, Column, get, text
from celery_exporter.status.thresholds import LONG_WINDOW

BAR_CELLS, SPARKLINE_CELLS = 8, 15
_BLOCKS = "▁▂▃▄▅▆▇█"
#: (kind of a column, text) → style of Rich.
_STYLES = {("up", "up"): "green", ("up", "down"): "bold red", ("yes", "no"): "yellow"}


def clean(value: str) -> str:
    """Return a text without characters that are invisible, combine with others or control the terminal."""
    if value.isascii() and value.isprintable():
        return value
    return "".join(
        letter
        if letter.isprintable() and unicodedata.category(letter) not in {"Mn", "Me"}
        else "\N{REPLACEMENT CHARACTER}"
        for letter in unicodedata.normalize("NFC", value)
    )


def width(value: str) -> int:
    """Return the number of terminal cells that a clean text takes."""
    return len(value) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in value)


def shorten(value: str, cells: int) -> str:
    """Return a clean text in at most so many cells, 1 or more. A longer text has … in its middle."""
    shown, kept = value, min(len(value), cells)
    while width(shown) > cells:
        kept -= 1
        shown = f"{value[: (kept + 1) // 2]}…{value[len(value) - kept // 2 :]}"
    return shown


def bar(part: float, whole: float) -> str:
    """Return a bar that is full at the whole. A part above 0 fills at least one cell."""
    full = min(BAR_CELLS, math.ceil(BAR_CELLS * part / whole)) if whole > 0 else 0
    return "█" * full + "░" * (BAR_CELLS - full)


def sparkline(points: Sequence[tuple[float, int | None]], now: float) -> str:
    """Return the highest length in each minute of `LONG_WINDOW`, blank where unknown.

    `points` are pairs of epoch seconds and length.
    """
    lengths: list[int | None] = [None] * SPARKLINE_CELLS
    for at, length in points:
        age = max(0, math.floor((now - at) * SPARKLINE_CELLS / LONG_WINDOW))
        if length is not None and age < SPARKLINE_CELLS:
            lengths[-1 - age] = max(length, lengths[-1 - age] or 0)
    scale = (len(_BLOCKS) - 1) / max(filter(None, lengths), default=1)
    return "".join(" " if length is None else _BLOCKS[math.ceil(scale * length)] for length in lengths)


def cell(column: Column, row: Any, now: float) -> tuple[str, str]:
    """Return the text of a cell and its style; `now` is the epoch second that the row is of."""
    try:
        content = clean(_content(column, row, now))
    except (ValueError, OverflowError, OSError):  # not a time
        content = UNKNOWN
    return content, _STYLES.get((column.kind, content), "")


def _content(column: Column, row: Any, now: float) -> str:
    value, content = get(row, column.field), text(column, row, now)
    if column.kind == "part" and value is not None and (whole := get(row, column.total_field)):
        return f"{bar(value, whole)} {content}"
    if column.kind == "line":
        lengths = [length for _, length in value if length is not None]
        return f"{sparkline(value, now)} max {max(lengths):,}" if lengths else UNKNOWN
    return content
