"""The table: what was measured, beside the floor and the peer, and which targets it meets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Target(NamedTuple):
    """A bound on a figure: `text` says it to people. A target that is missed is a result like any other."""

    text: str
    limit: float
    at_least: bool = False

    def judge(self, figure: float | None) -> str:
        """Return the target with what came of it."""
        if figure is None:
            verdict = "not measured"
        elif figure >= self.limit if self.at_least else figure <= self.limit:
            verdict = "ok"
        else:
            verdict = "missed"
        return f"{self.text} {verdict}"


class Row(NamedTuple):
    """A line: the values of all rounds, and medians of the same round's floor and peer to compare with."""

    label: str
    unit: str
    values: Sequence[float]
    floor: float | None = None
    peer: float | None = None
    targets: Sequence[tuple[Target, float | None]] = ()
    remark: str = ""
    digits: int = 1


Line = Row | str  # a text is a headline

_HEAD = f"{'':46}{'median':>11} {'':9}{'least … most':22}{'of floor':>9}{'of peer':>9}  target"


def ratio(figure: float | None, other: float | None) -> float | None:
    return None if figure is None or not other else figure / other


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def draw(lines: Sequence[Line]) -> str:
    return "\n".join([_HEAD, *(each if isinstance(each, str) else draw_row(each) for each in lines)])


def draw_row(row: Row) -> str:
    found = median(row.values)
    if found is None:
        figures = f"{'-':>11} {row.unit:9}{'':22}"
    else:
        spread = f"{min(row.values):,.{row.digits}f} … {max(row.values):,.{row.digits}f}"
        figures = f"{found:11,.{row.digits}f} {row.unit:9}{spread if len(row.values) > 1 else '':22}"
    compared = "".join(f"{_times(ratio(found, other)):>9}" for other in (row.floor, row.peer))
    said = [target.judge(figure) for target, figure in row.targets] + [row.remark] * bool(row.remark)
    return f"{row.label:46}{figures}{compared}  {', '.join(said)}".rstrip()


def _times(figure: float | None) -> str:
    if figure is None:
        return ""
    return f"{figure:.1f} x" if figure >= 1 else f"1/{1 / figure:.1f}"
