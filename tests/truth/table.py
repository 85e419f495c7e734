"""The table that a run of the scenarios ends with."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """What one scenario came to on one broker."""

    scenario: str
    broker: str
    tasks: int  # sent by clients
    differences: int  # sums that are not what the ledger says
    unknowns: int  # transitions booked under a name or queue that is "unknown"
    missed_really: int  # tasks that started, minus started events that were counted
    missed_reported: int


rows: list[Row] = []

_HEADINGS = Row("scenario", "broker", "tasks", "differences", "unknowns", "missed really", "missed reported")  # type: ignore[arg-type]


def text() -> list[str]:
    """Return the lines of the table."""
    cells = [[str(cell) for cell in row] for row in (_HEADINGS, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(_aligned(row, widths)) for row in cells]


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    texts = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
    return texts + [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
