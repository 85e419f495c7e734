"""The values of cells and facts as HTML. static/format.js makes the same of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from celery_exporter.status.columns import TASK_LINK, UNKNOWN, Column, fixed, get, text, utc
from celery_exporter.status.thresholds import LONG_WINDOW

#: Size of the line of a queue's length, in SVG units.
WIDTH, HEIGHT = 120, 24
#: Characters that JavaScript's encodeURIComponent keeps, too.
_SAFE = "!~*'()"
#: Names that no segment of a path can be: browsers resolve them.
_NO_SEGMENTS = frozenset({".", ".."})
#: The longest names in a link, in characters: the server rejects longer queries.
MAX_LINK_LENGTH = 900
#: Kinds that show a time, or the time since then.
_TIMES = frozenset({"ago", "clock", "time", "precise"})
#: Times after 1970 and before the year 10000. Others are no times.
_MAX_TIME = 253_402_300_800
#: A rate that is not worth a look.
_ZERO = "0.00"
#: Kinds whose text is also a class.
_STATES = frozenset({"up", "yes", "open", "state"})
_field = re.compile(r"\{([\w.]*)\}")


def cell_class(column: Column, row: Any) -> str:
    """Return the class of a cell: its kind, and the state if it shows one, or that a rate is zero."""
    value = get(row, column.field)
    if column.kind == "decimal" and value is not None and text(column, row, 0.0) == _ZERO:
        return "decimal zero"
    if _is_id(column):
        return "text id"
    return (
        escape(f"{column.kind} {text(column, row, 0.0)}")
        if column.kind in _STATES and value is not None
        else column.kind
    )


def content(column: Column, row: Any, now: float, root: str) -> str:
    """Return a value as HTML.

    `now` is the time of the row in epoch seconds, `root` the relative URL of the start page.
    """
    value = get(row, column.field)
    if value is None:
        return UNKNOWN
    if column.kind == "line":
        return _line(value, now)
    if column.kind == "part":
        return _meter(column, row) + _linked(column, row, now, root)
    if column.kind in _TIMES:
        return moment(value, text(column, row, now)) if _is_time(value) else UNKNOWN
    return _linked(column, row, now, root)


def _linked(column: Column, row: Any, now: float, root: str) -> str:
    """Return a value with its links, and the button that copies it if it is an id."""
    shown = escape(text(column, row, now))
    own, tasks = (escape(url(template, column, row)) for template in (column.link, column.tasks))
    return (
        (f'<a href="{root}{own}">{shown}</a>' if own else shown)
        + (copy_button(shown) if _is_id(column) and get(row, column.field) else "")
        + (f'<a class="list" href="{root}{tasks}" title="Tasks of {shown}"></a>' if tasks else "")
    )


def _is_id(column: Column) -> bool:
    return column.link == TASK_LINK and column.kind == "text"


def copy_button(shown: str) -> str:
    """Return the button after an escaped id that copies it."""
    return f'<button type="button" class="copy" title="Copy {shown}"></button>'


def url(template: str, column: Column, row: Any) -> str:
    """Return a URL of a column for a row, relative to the start page; "" without one."""
    names = {field: get(row, field or column.field) for field in _field.findall(template)}
    quoted = {field: quote(str(name or ""), safe=_SAFE) for field, name in names.items()}
    is_segment = not template.endswith("/{}") or names[""] not in _NO_SEGMENTS
    if not is_segment or not all(quoted.values()) or sum(map(len, quoted.values())) > MAX_LINK_LENGTH:
        return ""
    return _field.sub(lambda match: quoted[match[1]], template)


def link(template: str, name: str) -> str:
    """Return a URL with a name, relative to the start page; "" if no URL can have it."""
    return url(template, Column("", "name", "text"), {"name": name})


def moment(at: float, shown: str) -> str:
    """Return a time as HTML, with its UTC as tooltip; the script shows local times."""
    text_utc = utc(at)
    return f'<time datetime="{text_utc.replace(" ", "T")}Z" title="{text_utc} UTC">{shown}</time>'


def _is_time(value: float) -> bool:
    return 0 <= value < _MAX_TIME


def _meter(column: Column, row: Any) -> str:
    part, whole = get(row, column.field), get(row, column.total_field)
    if part is None or not whole:
        return ""
    return f'<meter min="0" max="{whole}" value="{part}" aria-label="{column.title}"></meter> '


def _line(points: Sequence[tuple[float, int | None]], now: float) -> str:
    lengths = [(at, length) for at, length in points if length is not None]
    if not lengths:
        return UNKNOWN
    least, most = (extreme(length for _, length in lengths) for extreme in (min, max))
    scale = (HEIGHT - 2) / max(most, 1)
    coordinates = (
        f"{fixed((1 - (now - at) / LONG_WINDOW) * WIDTH, 1)},{fixed(HEIGHT - 1 - length * scale, 1)}"
        for at, length in lengths
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="between {least:,} and {most:,}">'
        f'<polyline points="{" ".join(coordinates)}"></polyline></svg><small>max {most:,}</small>'
    )
