"""A `Status` → what `top` shows: header, findings, and rows that are sorted and filtered. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.status.columns import BROKER, TABLES, Column, Table, ordered
from celery_exporter.status.finding import Finding
from celery_exporter.status.model import Status
from celery_exporter.top.cells import cell, clean, width

#: A text and its style in Rich.
Part = tuple[str, str]

FINDINGS = Table("findings", "What to look at", "No problems found.", ())
#: The table whose rows are filtered by name.
FILTERED = "tasks"
#: Fields that come first: a narrow terminal shows no more without scrolling.
_FIRST_FIELDS = {
    "workers": ("name", "up", "active", "processed", "load", "heartbeat"),
    "queues": ("name", "length", "oldest", "consumers", "lengths"),
    "tasks": (
        *("name", "rates.SUCCESS", "rates.FAILURE", "failure_share", "runtime_p95", "wait_p95", "open"),
        *("oldest", "rates.PENDING", "rates.STARTED", "runtime_p50", "wait_p50", "rates.RETRY"),
    ),
}
_AT = Column("", "at", "clock")
_LEFT_KINDS = frozenset({"text", "up", "yes", "part", "line", "clock"})


def _reordered(table: Table) -> Table:
    rank = {field: index for index, field in enumerate(_FIRST_FIELDS.get(table.name, ()))}
    return replace(table, columns=sorted(table.columns, key=lambda column: rank.get(column.field, len(rank))))


#: The tables from top to bottom.
SECTIONS = (FINDINGS, *map(_reordered, TABLES))


class Rows(Struct, frozen=True):
    """The rows of a table that are shown, or what is shown if there are none."""

    title: str
    rows: Sequence[Any]
    empty: str


def rows_of(status: Status, table: Table, sort: str = "", contains: str = "") -> Rows:
    """Return at most `table.max_rows` rows; of tasks, those whose name contains a text in any case.

    `sort` is a field, with a "-" before it for the largest first, or "" for the order of the status.
    """
    rows = getattr(status, table.name)
    if table is FINDINGS:
        rows = [finding for finding in rows if finding.severity != "ok"]
    filtered = table.name == FILTERED and contains
    matching = [row for row in rows if contains.lower() in row.name.lower()] if filtered else rows
    shown = (ordered(matching, sort) if sort else matching)[: table.max_rows]
    number = f"{len(shown):,} of {len(rows):,}" if len(shown) < len(rows) else f"{len(rows):,}"
    return Rows(f"{table.title} {number}", shown, "No name contains this text." if rows else table.empty)


def key_of(row: Any) -> str:
    """Return what identifies a row in its table."""
    return next(str(getattr(row, field)) for field in ("name", "uuid", "check") if hasattr(row, field))


def sort_after(table: Table, sort: str, step: int) -> str:
    """Return the order by the column that is so many columns after the present one; 0 reverses the order.

    Names are in alphabetical order, numbers and times from the largest.
    """
    if not step:
        return sort.removeprefix("-") if sort.startswith("-") else f"-{sort}"
    columns = [column for column in table.columns if column.kind != "line"]
    index = [column.field for column in columns].index(sort.removeprefix("-"))
    return first_sort(columns[(index + step) % len(columns)])


def first_sort(column: Column) -> str:
    """Return the order that a column is sorted in first."""
    return column.field if column.kind == "text" else f"-{column.field}"


def is_right(column: Column) -> bool:
    """Return whether the cells of a column are aligned right, as numbers are."""
    return column.kind not in _LEFT_KINDS


def header(status: Status, *, outdated: bool = False) -> list[Part]:
    """Return two lines about the exporter, the broker and how events arrive."""
    at, *facts = [cell(column, status, status.at)[0] for column in (_AT, *BROKER[2:])]
    named = [f"{column.title.lower()} {fact}" for column, fact in zip(BROKER[2:], facts, strict=True)]
    return [
        (f"celery-exporter {clean(status.exporter_version)}  ", "bold"),
        ("up  ", "green") if status.broker.up else ("DOWN  ", "bold red"),
        (f"as of {at} UTC  ", "bold red" if outdated else ""),
        (f"{clean(status.broker.url)}\n{'  '.join(named)}", ""),
    ]


def finding_parts(finding: Finding, cells: int = 10_000) -> list[Part]:
    """Return a finding and its remedy on two lines, which are wrapped to so many terminal cells."""
    indent = " " * 9
    fill = partial(
        textwrap.fill,
        width=max(30, cells),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
    message, remedy = (
        fill(clean(content)).removeprefix(indent) for content in (finding.message, finding.remedy)
    )
    style = {"warning": "yellow", "critical": "bold red"}[finding.severity]
    return [(f"{finding.severity:9}", style), (f"{message}\n", ""), ("      -> ", "dim"), (remedy, "")]


def plain(status: Status) -> str:
    """Return the whole status as text, with all columns and whole names."""
    lines = ["".join(content for content, _ in header(status))]
    for table in SECTIONS:
        shown = rows_of(status, table)
        if table is FINDINGS or not shown.rows:
            findings = ["".join(content for content, _ in finding_parts(finding)) for finding in shown.rows]
            lines += [shown.title, *(findings or [shown.empty])]
        else:
            lines += _plain_table(table, shown, status.at)
    return "\n".join(lines)


def _plain_table(table: Table, shown: Rows, now: float) -> list[str]:
    columns: list[list[str]] = []
    for column in table.columns:
        title = column.title if columns else shown.title
        texts = [title, *(cell(column, row, now)[0] for row in shown.rows)]
        paddings = [" " * (max(map(width, texts)) - width(content)) for content in texts]
        pairs = (paddings, texts) if is_right(column) else (texts, paddings)
        columns.append(list(map("".join, zip(*pairs, strict=True))))
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
