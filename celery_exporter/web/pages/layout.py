"""The status page as HTML. It is complete without JavaScript; with JavaScript it refreshes itself.

It loads nothing from other servers. Texts from events, workers and requests are escaped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any
from urllib.parse import urlencode

from celery_exporter.status.columns import (
    AT,
    BROKER,
    FILTERED,
    FINDINGS,
    TABLES,
    UNKNOWN,
    Column,
    Table,
    first_sort,
    fixed,
    get,
    outage,
    reversed_sort,
    rows_of,
    text,
)
from celery_exporter.status.model import Status
from celery_exporter.status.thresholds import LONG_WINDOW

#: Allows only the page's own files: no inline script or style, no frame of another site.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: The static files of the page. Their URLs contain a content hash.
STATIC = {
    name: (resources.files(__package__) / "static" / name).read_bytes()
    for name in ("status.css", "status.js", "icon.svg")
}
_DIGEST = hashlib.sha256(b"".join(STATIC.values())).hexdigest()[:12]
#: The field that tasks are sorted by if the request names none.
SORT = "name"
#: Size of the line chart of a queue's length, in SVG units.
WIDTH, HEIGHT = 120, 24

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · celery-exporter</title>
<link rel="icon" href="static/icon.svg?{digest}">
<link rel="stylesheet" href="static/status.css?{digest}">
<script src="static/status.js?{digest}" defer></script>
<noscript><meta http-equiv="refresh" content="10"></noscript>
</head>
<body>
<header>
<h1>celery-exporter <small id="exporter">{version}</small></h1>
<nav aria-label="Other pages"><a href="metrics">metrics</a> <a href="api/v1/status">JSON</a>
<a href="runbooks">runbooks</a> <a href="-/ready">ready</a></nav>
</header>
<main>
<p id="fresh">As of <time id="at">{at}</time> UTC.<span id="why" role="status"></span></p>
<p id="outage">{outage}</p>
<dl id="broker" class="{state}">{broker}</dl>
<section aria-labelledby="findings-title">
<h2 id="findings-title">{findings_title}</h2>
<ul id="findings">{findings}</ul>
</section>
{tables}
</main>
</body>
</html>
"""
_TABLE = """<section aria-labelledby="{name}-title">
<h2 id="{name}-title">{title} <small id="{name}-count">{count}</small></h2>
{form}<div class="wide" role="region" aria-labelledby="{name}-title" tabindex="0">
<table id="{name}" data-max-rows="{max_rows}" data-empty="{empty}"{sort}>
<thead><tr>{heads}</tr></thead>
<tbody>{rows}</tbody>
</table>
</div>
<p class="more" id="{name}-more">{more}</p>
</section>
"""
_FORM = """<form method="get" id="filter" role="search">
<label>Tasks whose name contains
<input type="search" name="filter" value="{filter}" autocomplete="off"></label>
<input type="hidden" name="sort" value="{sort}"><button>show</button>
</form>
"""


def html(status: Status, *, sort: str = SORT, contains: str = "") -> str:
    """Return the page, with the tasks whose name contains a text.

    `sort` is the field that tasks are sorted by, with a "-" before it for descending order.
    """
    if sort.removeprefix("-") not in {column.field for table in TABLES for column in table.columns}:
        sort = SORT
    return _PAGE.format(
        title="up" if status.broker.up else "broker down",
        version=escape(status.exporter_version),
        digest=_DIGEST,
        at=text(AT, status, status.at),
        state="good" if status.broker.up else "bad",
        outage=escape(outage(status)),
        broker=_broker(status),
        findings_title=FINDINGS.title,
        findings=_findings(status),
        tables="".join(_table(table, status, sort, contains) for table in TABLES),
    )


def _broker(status: Status) -> str:
    return "".join(
        f"<div{_meaning(column)}><dt>{column.title}</dt>"
        f'<dd data-field="{column.field}" data-kind="{column.kind}">{value}</dd></div>'
        for column in BROKER
        for value in [escape(text(column, status, status.at))]
    )


def _meaning(column: Column) -> str:
    return f' title="{escape(column.meaning)}"' if column.meaning else ""


def _findings(status: Status) -> str:
    problems = "".join(
        f'<li class="{finding.severity}"><b>{finding.severity}</b> '
        f"{escape(finding.message)}{_runbook(finding.alert)}"
        f"<br><code>{escape(finding.remedy)}</code></li>"
        for finding in rows_of(status, FINDINGS)
    )
    return problems or f'<li class="ok">{FINDINGS.empty}</li>'


def _runbook(alert: str) -> str:
    return f' <a href="runbooks#{escape(alert.lower())}">{escape(alert)}</a>' if alert else ""


# -- tables --------------------------------------------------------------------------------------------


def _table(table: Table, status: Status, sort: str, contains: str) -> str:
    is_sortable, form, sort_attribute = table.name == FILTERED, "", ""
    if is_sortable:
        form = _FORM.format(filter=escape(contains), sort=escape(sort))
        sort_attribute = f' data-sort="{escape(sort)}"'
    total, rows = len(rows_of(status, table)), rows_of(status, table, sort if is_sortable else "", contains)
    heads = (_head(column, sort, contains, is_sortable=is_sortable) for column in table.columns)
    cells = "".join(_row(table, row, status.at) for row in rows[: table.max_rows])
    empty = f'<tr><td colspan="{len(table.columns)}">{escape(table.empty)}</td></tr>'
    more = len(rows) - table.max_rows
    return _TABLE.format(
        name=table.name,
        title=table.title,
        count=f"{total:,}",
        form=form,
        max_rows=table.max_rows,
        empty=escape(table.empty),
        sort=sort_attribute,
        heads="".join(heads),
        rows=cells or empty,
        more=f"and {more:,} more" if more > 0 else "",
    )


def _head(column: Column, sort: str, contains: str, *, is_sortable: bool) -> str:
    meaning = _meaning(column)
    data = f'data-field="{column.field}" data-kind="{column.kind}" data-total-field="{column.total_field}"'
    if not is_sortable:
        return f'<th scope="col" {data}{meaning}>{column.title}</th>'
    order = {column.field: "ascending", f"-{column.field}": "descending"}.get(sort, "none")
    first = first_sort(column)  # of the first click; the second one reverses the order
    query = urlencode({"sort": reversed_sort(first) if sort == first else first, "filter": contains})
    link = f'<a href="?{escape(query)}#tasks-title">{column.title}</a>'
    return f'<th scope="col" aria-sort="{order}" {data}{meaning}>{link}</th>'


def _row(table: Table, row: Any, now: float) -> str:
    return f"<tr>{''.join(_cell(column, row, now) for column in table.columns)}</tr>"


def _cell(column: Column, row: Any, now: float) -> str:
    if column.kind == "line":
        return f'<td class="line">{_line(get(row, column.field), now)}</td>'
    value = escape(text(column, row, now))
    if column.kind == "part":
        return f'<td class="part">{_meter(column, row)}{value}</td>'
    return f'<td class="{column.kind} {value if column.kind in {"up", "yes"} else ""}">{value}</td>'


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
        f'<polyline points="{" ".join(coordinates)}"/></svg><small>max {most:,}</small>'
    )
