"""A `Status` → what `top` shows: a header, and tables whose rows are sorted and filtered. Pure.

Every client that can publish events chooses names. With `visible`, none of them controls the terminal.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.quoting import shorten, terminal_cells, visible
from celery_exporter.status import columns as shared
from celery_exporter.status.columns import FINDINGS, Column, Table
from celery_exporter.status.finding import Finding
from celery_exporter.status.model import Status

#: A text and its style in Rich.
Part = tuple[str, str]

BAR_CELLS = 8
#: Cells of a line in a file, where texts are whole.
FILE_CELLS = 100_000
_LEFT_KINDS = frozenset({"text", "up", "yes", "part", "line", "clock", "finding"})
#: (kind of a column, text) → style of Rich.
_STYLES = {("up", "up"): "green", ("up", "down"): "bold red", ("yes", "no"): "yellow"}
_SEVERITY_STYLES = {"warning": "yellow", "critical": "bold red"}
_RANKS = {field: rank for rank, field in enumerate(shared.DETAILS, 1)}


def _details_last(table: Table) -> Table:
    return replace(table, columns=sorted(table.columns, key=lambda column: _RANKS.get(column.field, 0)))


#: The tables from top to bottom.
SECTIONS = (FINDINGS, *map(_details_last, shared.TABLES))


class ShownColumn(Struct, frozen=True):
    """A column as it is shown: its title, its cells, which have parts, and its width in terminal cells."""

    title: str
    justify: Literal["left", "right"]
    cells: Sequence[Sequence[Part]]
    width: int


def grid(
    status: Status, table: Table, sort: str = "", contains: str = "", line_cells: int = FILE_CELLS
) -> tuple[list[ShownColumn], list[str]]:
    """Return the columns of a table, and what identifies each of its rows.

    Rows are sorted and filtered as by `columns.rows_of`, at most `table.max_rows`. Without rows, the only
    cell says so. `line_cells` is the width of the terminal.
    """
    total = len(shared.rows_of(status, table))
    rows = shared.rows_of(status, table, sort, contains)[: table.max_rows]
    number = f"{len(rows):,} of {total:,}" if len(rows) < total else f"{total:,}"
    nothing = [[("No name contains this text." if total else table.empty, "dim")]]
    columns = table.columns if rows else table.columns[:1]
    # The first column is equally wide in each table, so that the others align.
    first_cells = line_cells // 5 + 4 if len(columns) > 1 else line_cells - 3
    shown: list[ShownColumn] = []
    for column in columns:
        title = _title(column) if shown else f"{table.title} {number}"
        title += {column.field: " ▲", f"-{column.field}": " ▼"}.get(sort, "")
        limit = line_cells // 2 + 4 if shown else first_cells
        cells = [_cell(column, row, status.at, limit) for row in rows] or nothing
        widths = [terminal_cells(_joined(parts)) for parts in cells] if shown else [first_cells]
        widest = max(terminal_cells(title), *widths)
        shown.append(ShownColumn(title, "left" if column.kind in _LEFT_KINDS else "right", cells, widest))
    return shown, [shared.get(row, table.key) for row in rows]


def _title(column: Column) -> str:
    return f"{column.title} (UTC)" if column.unit == "UTC" else column.title


def _joined(parts: Sequence[Part]) -> str:
    return "".join(content for content, _ in parts)


def orders(table: Table) -> list[str]:
    """Return the orders that a table can be sorted in, one for each column; "" if there is none."""
    sortable = [column for column in table.columns if column.kind not in {"line", "finding"}]
    return list(map(shared.first_sort, sortable)) or [""]


def header(status: Status, *, outdated: bool = False) -> list[Part]:
    """Return two lines about the exporter, the broker and how events arrive, and a third one if none do."""
    at = shared.text(shared.AT, status, status.at)
    facts = [
        f"{column.title.lower()}{column.unit} {shared.text(column, status, status.at)}"
        for column in shared.BROKER[2:]
    ]
    reason = shared.outage(status)
    return [
        (f"celery-exporter {visible(status.exporter_version)}  ", "bold"),
        ("up  ", "green") if status.broker.up else ("DOWN  ", "bold red"),
        (f"as of {at} UTC  ", "bold red" if outdated else ""),
        (f"{visible(status.broker.url)}\n{'  '.join(facts)}", ""),
        *([(f"\n{visible(reason)}", "bold red")] if reason else []),
    ]


def plain(status: Status) -> str:
    """Return the whole status as text, with all columns and whole names."""
    lines = [_joined(header(status))]
    for table in SECTIONS:
        columns = [_padded(column) for column in grid(status, table)[0]]
        lines += ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    return "\n".join(lines)


def _padded(column: ShownColumn) -> list[str]:
    texts = [column.title, *map(_joined, column.cells)]
    paddings = [" " * (max(map(terminal_cells, texts)) - terminal_cells(content)) for content in texts]
    pairs = (paddings, texts) if column.justify == "right" else (texts, paddings)
    return list(map("".join, zip(*pairs, strict=True)))


def _cell(column: Column, row: Any, now: float, limit: int) -> list[Part]:
    if column.kind == "finding":
        return _finding(row, limit)
    content = visible(shared.text(column, row, now))
    style = _STYLES.get((column.kind, content), "")
    part, whole = shared.get(row, column.field), shared.get(row, column.total_field)
    if part is not None and whole:
        content = f"{bar(part, whole)} {content}"
    return [(shorten(content, limit), style)]


def _finding(finding: Finding, limit: int) -> list[Part]:
    """Return a finding and its remedy on lines of their own, each wrapped to so many terminal cells."""
    message, remedy = (
        textwrap.fill(text, max(30, limit), subsequent_indent=" " * 9, break_on_hyphens=False)
        for text in (f"{finding.severity:9}{visible(finding.message)}", f"      -> {visible(finding.remedy)}")
    )
    style = _SEVERITY_STYLES[finding.severity]
    return [(message[:9], style), (f"{message[9:]}\n", ""), (remedy[:9], "dim"), (remedy[9:], "")]


def bar(part: float, whole: float) -> str:
    """Return a bar that is full at the whole. A part above 0 fills at least one cell."""
    full = max(0, min(BAR_CELLS, math.ceil(BAR_CELLS * part / whole)))
    return "█" * full + "░" * (BAR_CELLS - full)
