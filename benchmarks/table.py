"""Draws the table of results, with ratios to the lower bound and to the peer, and with targets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Target(NamedTuple):
    """A limit for a figure, and its text in the table."""

    text: str
    limit: float
    at_least: bool = False

    def judge(self, figure: float | None) -> str:
        """Return the text of the target, and whether a figure meets it."""
        if figure is None:
            outcome = "not measured"
        elif figure >= self.limit if self.at_least else figure <= self.limit:
            outcome = "ok"
        else:
            outcome = "missed"
        return f"{self.text} {outcome}"


class Row(NamedTuple):
    """A line: the values of all rounds, and the medians of the lower bound and of the peer."""

    label: str
    unit: str
    values: Sequence[float]
    floor: float | None = None
    peer: float | None = None
    targets: Sequence[tuple[Target, float | None]] = ()
    remark: str = ""
    digits: int = 1


Line = Row | str  # a string is a headline

_HEAD = f"{'':46}{'median':>11} {'':9}{'least … most':22}{'of floor':>9}{'of peer':>9}  target"


def ratio(figure: float | None, other: float | None) -> float | None:
    """Return the ratio of two figures; None if one is missing."""
    return None if figure is None or not other else figure / other


def median(values: Sequence[float]) -> float | None:
    """Return the median; None without values."""
    return statistics.median(values) if values else None


def draw(lines: Sequence[Line]) -> str:
    """Return the table as text."""
    return "\n".join([_HEAD, *(line if isinstance(line, str) else draw_row(line) for line in lines)])


def draw_row(row: Row) -> str:
    """Return a row as text."""
    figure = median(row.values)
    if figure is None:
        figures = f"{'-':>11} {row.unit:9}{'':22}"
    else:
        spread = f"{min(row.values):,.{row.digits}f} … {max(row.values):,.{row.digits}f}"
        figures = f"{figure:11,.{row.digits}f} {row.unit:9}{spread if len(row.values) > 1 else '':22}"
    ratios = "".join(f"{_times(ratio(figure, other)):>9}" for other in (row.floor, row.peer))
    remarks = [target.judge(value) for target, value in row.targets] + [row.remark] * bool(row.remark)
    return f"{row.label:46}{figures}{ratios}  {', '.join(remarks)}".rstrip()


def _times(figure: float | None) -> str:
    if figure is None:
        return ""
    return f"{figure:.1f} x" if figure >= 1 else f"1/{1 / figure:.1f}"
