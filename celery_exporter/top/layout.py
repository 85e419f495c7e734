"""Cells of the terminal: what a text takes of a line, tables in a width, bars and lines in block characters.

Pure, and the one door for text: nothing gets onto a line but through `clean`, so nobody who names a task
tells the terminal what to do.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery_exporter.status.columns import UNKNOWN, Column, Table, get, text
from celery_exporter.status.thresholds import LONG_WINDOW

#: A piece of a line, and what it is to look like: one of `STYLES`, or "".
Part = tuple[str, str]
Line = list[Part]

STYLES = ("title", "selected", "head", "good", "warn", "bad", "dim")
#: Cells between two columns.
GAP = 2
#: A text is cut to so many cells, and shown with no more; the first column has the table's title over it.
LEAST_TEXT, MOST_TEXT, LEAST_FIRST = 14, 48, 24
#: Cells of a bar, and of the line of a queue's length.
BAR, LINE = 8, 15
#: Stands for a character that does more than to be seen.
REPLACED = "\N{REPLACEMENT CHARACTER}"

_LEVELS = "▁▂▃▄▅▆▇█"
_LEFT = frozenset({"text", "up", "yes", "part", "line", "clock"})
_LOOKS = {("up", "up"): "good", ("up", "down"): "bad", ("yes", "no"): "warn"}
#: Columns that a narrow terminal goes without, in the order in which they leave.
_LEAVES: Mapping[str, Sequence[str]] = {
    "workers": ("version", "clock_skew", "task_events", "load", "processed", "heartbeat"),
    "queues": ("processes", "oldest", "lengths", "consumers"),
    "tasks": (
        "rates.REJECTED",
        "rates.REVOKED",
        "rates.RECEIVED",
        "rates.RETRY",
        "runtime_p50",
        "wait_p50",
        "rates.PENDING",
        "rates.STARTED",
        "oldest",
        "rates.FAILURE",
        "wait_p95",
        "runtime_p95",
        "rates.SUCCESS",
        "failure_share",
    ),
    "failures": ("uuid", "worker", "at"),
}


# -- text ----------------------------------------------------------------------------------------------


def clean(value: str) -> str:
    """Return a text of which each character takes one cell or two, and does nothing else."""
    if value.isascii() and value.isprintable():
        return value
    return "".join(map(_harmless, unicodedata.normalize("NFC", value)))


def _harmless(character: str) -> str:
    seen = character.isprintable() and unicodedata.category(character) not in {"Mn", "Me"}
    return character if seen else REPLACED


def width(value: str) -> int:
    """Return how many cells a clean text takes."""
    if value.isascii():
        return len(value)
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in value)


def cut(value: str, cells: int) -> str:
    """Return a clean text that takes so many cells at most, with a mark where something is missing."""
    if width(value) <= cells:
        return value
    kept, taken = "", 1  # by the mark
    for character in value:
        taken += width(character)
        if taken > cells:
            break
        kept += character
    return f"{kept}…" if cells > 0 else ""


def fit(value: str, cells: int, *, right: bool = False) -> str:
    """Return a clean text that takes just so many cells."""
    value = cut(value, cells)
    pad = " " * (cells - width(value))
    return pad + value if right else value + pad


def clipped(line: Line, cells: int) -> Line:
    """Return a line without what goes over the edge."""
    found: Line = []
    for part, style in line:
        cells_left = cells - sum(width(before) for before, _ in found)
        if cells_left <= 0:
            break
        found.append((cut(part, cells_left), style))
    return found


# -- bars and lines ------------------------------------------------------------------------------------


def bar(part: float, whole: float) -> str:
    """Return a bar that is full at the whole; what is not nothing is seen."""
    full = min(BAR, math.ceil(BAR * part / whole)) if whole > 0 else 0
    return "█" * full + "░" * (BAR - full)


def spark(points: Sequence[tuple[float, int | None]], now: float) -> str:
    """Return lengths of the last while as a line of blocks, the newest at its end; blank where unknown."""
    most: list[int | None] = [None] * LINE
    for at, length in points:
        place = min(LINE - 1, LINE - 1 - math.floor((now - at) * LINE / LONG_WINDOW))
        if length is not None and place >= 0:
            most[place] = max(length, most[place] or 0)
    scale = max((each for each in most if each is not None), default=0)
    return "".join(" " if each is None else _LEVELS[_level(each, scale)] for each in most)


def _level(length: int, most: int) -> int:
    return math.ceil((len(_LEVELS) - 1) * length / most) if length > 0 else 0


def _part(column: Column, row: Any, now: float) -> str:
    value, whole = get(row, column.field), get(row, column.of)
    said = text(column, row, now)
    return said if value is None or not whole else f"{bar(value, whole)} {said}"


def _line(column: Column, row: Any, now: float) -> str:
    points = get(row, column.field)
    known = [length for _, length in points if length is not None]
    return f"{spark(points, now)} max {max(known):,}" if known else UNKNOWN


#: Kinds of columns that are drawn here; the others are written.
_DRAWN: Mapping[str, Callable[[Column, Any, float], str]] = {"part": _part, "line": _line}


def said(column: Column, row: Any, now: float) -> str:
    """Return what stands in a cell. What cannot be written, for it is no time that there is, is not known."""
    try:
        return clean(_DRAWN.get(column.kind, text)(column, row, now))
    except (ValueError, OverflowError, OSError):
        return UNKNOWN


# -- tables --------------------------------------------------------------------------------------------


def drawn(
    table: Table, rows: Sequence[Any], now: float, cells: int, sort: str = ""
) -> tuple[str, list[Line]]:
    """Return the heads of the columns but the first, and the rows, in so many cells.

    The first column's head is left blank: the table's title stands there.
    """
    texts = [[said(column, row, now) for row in rows] for column in table.columns]
    heads = ["", *(_head(column, sort) for column in table.columns[1:])]
    needed = [
        min(MOST_TEXT, max(map(width, (head, *column)))) for head, column in zip(heads, texts, strict=True)
    ]
    needed[0] = max(needed[0], LEAST_FIRST)
    given = _given(table, needed, cells, sort.removeprefix("-"))
    lines = [
        _joined(
            (
                fit(texts[index][number], size, right=_right(table, index)),
                _look(table, index, texts[index][number]),
            )
            for index, size in given.items()
        )
        for number in range(len(rows))
    ]
    head = (" " * GAP).join(
        fit(heads[index], size, right=_right(table, index)) for index, size in given.items()
    )
    return head, lines


def _head(column: Column, sort: str) -> str:
    return column.title + {column.field: "▲", f"-{column.field}": "▼"}.get(sort, "")


def _right(table: Table, index: int) -> bool:
    return table.columns[index].kind not in _LEFT


def _look(table: Table, index: int, value: str) -> str:
    return _LOOKS.get((table.columns[index].kind, value), "")


def _joined(parts: Any) -> Line:
    line: Line = []
    for part in parts:
        line += [(" " * GAP, ""), part] if line else [part]
    return line


def _given(table: Table, needed: Sequence[int], cells: int, kept: str) -> dict[int, int]:
    """Return the width of each column that is shown, by its index. `kept` is a field that stays."""
    columns = table.columns
    least = [
        min(size, LEAST_TEXT) if column.kind == "text" else size
        for size, column in zip(needed, columns, strict=True)
    ]
    least[0] = LEAST_FIRST
    shown = list(range(len(columns)))
    fields = [column.field for column in columns]
    leaving = [fields.index(field) for field in _LEAVES[table.name] if field != kept]
    while leaving and _total(least, shown) > cells:
        shown.remove(leaving.pop(0))
    spare = max(0, cells - _total(least, shown))
    given = {}
    for index in shown:
        more = min(spare, needed[index] - least[index])
        given[index] = least[index] + more
        spare -= more
    return given


def _total(sizes: Sequence[int], shown: Sequence[int]) -> int:
    return sum(sizes[index] for index in shown) + GAP * (len(shown) - 1)
