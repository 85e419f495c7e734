"""The facts about the broker, a worker or a queue as HTML: names and values."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from celery_exporter.status.columns import Column
from celery_exporter.web.pages.cells import cell_class, content


def facts(columns: Sequence[Column], data: Any, root: str) -> str:
    """Return the list of facts; "" without columns."""
    items = "".join(_fact(column, data, root) for column in columns)
    return f'<dl id="facts">{items}</dl>\n' if items else ""


def _fact(column: Column, data: Any, root: str) -> str:
    return (
        f"<div{meaning(column)}><dt>{column.title}{unit(column)}</dt>"
        f'<dd class="{cell_class(column, data)}" {attributes(column)}>'
        f"{content(column, data, data.at, root)}</dd></div>"
    )


def attributes(column: Column) -> str:
    """Return the attributes that tell the script of a column."""
    values = {
        "title": column.title,
        "label": label(column),
        "field": column.field,
        "kind": column.kind,
        "total-field": column.total_field,
        "link": column.link,
        "tasks": column.tasks,
    }
    return " ".join(f'data-{name}="{escape(value)}"' for name, value in values.items() if value)


def meaning(column: Column) -> str:
    """Return the tooltip of a column as an attribute; "" without one."""
    return f' title="{escape(column.meaning)}"' if column.meaning else ""


def label(column: Column) -> str:
    """Return the title of a column with its unit, as text."""
    return f"{column.title} {column.unit}" if column.unit not in {"", "UTC"} else column.title


def unit(column: Column) -> str:
    """Return the unit of a column as HTML, "" without one; the script replaces UTC by the local zone."""
    kind = ' class="zone"' if column.unit == "UTC" else ""
    return f" <small{kind}>{column.unit}</small>" if column.unit else ""
