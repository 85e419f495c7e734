"""Tables as HTML: sorted, filtered and collapsed by the parameters of the URL."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from msgspec import Struct

from celery_exporter.status.columns import Column, Table, first_sort, get, matches, ordered, reversed_sort
from celery_exporter.status.workflow import levels
from celery_exporter.web.pages.cells import cell_class, content
from celery_exporter.web.pages.facts import attributes, label, meaning, unit
from celery_exporter.web.pages.query import ALL, Query

#: Rows of a table that is not expanded; static/pages.css has the number of those on a phone.
COLLAPSED_ROWS, NARROW_ROWS = 20, 5
#: Kinds that have no order.
_UNSORTED = frozenset({"line"})

_TABLE = """<section aria-labelledby="{name}-title">
<div class="head">
<h2 id="{name}-title">{title} <small id="{name}-count">{count}</small></h2>
{form}</div>
<div class="wide" role="region" aria-labelledby="{name}-title" tabindex="0">
<table id="{name}" role="table" data-prefix="{prefix}" data-sort="{sort}" data-then="{then}" \
data-field="{field}" data-key="{key}" data-rows="{limit}" data-max-rows="{max_rows}" \
data-empty="{empty}"{expanded}>
<thead role="rowgroup"><tr role="row">{heads}</tr></thead>
<tbody role="rowgroup">{rows}</tbody>
</table>
</div>
<p class="more" id="{name}-more">{more}</p>
</section>
"""
_FORM = """<form method="get" class="filter" role="search">
<label><span>{label}</span> <input type="search" name="{key}" value="{value}" placeholder="filter" \
autocomplete="off" data-table="{table}"></label>
{hidden}<button>show</button>
</form>
"""


class ShownTable(Struct, frozen=True):
    """A table on a page: the field that it is sorted by at first, and the rows that it has at first.

    Without `sort`, it has the order of the data, and no filter.
    `then` is the field that orders rows with the same value. `link` is that of the page with more rows.
    """

    table: Table
    sort: str
    rows: int = COLLAPSED_ROWS
    link: str = ""
    then: str = ""
    field: str = ""  # with the rows, if it is not the name of the table
    is_tree: bool = False  # of the tasks of a workflow; that of the page is marked


def html(shown: ShownTable, data: Any, query: Query) -> str:
    """Return a table with the rows of `data`."""
    table = shown.table
    rows: Sequence[Any] = get(data, shown.field or table.name)
    sort, contains = query.of(table.name, "sort"), query.of(table.name, "filter")
    if not shown.sort or sort.removeprefix("-") not in {
        column.field for column in table.columns if column.kind not in _UNSORTED
    }:
        sort = shown.sort
    matching = [row for row in rows if matches(table, row, contains)]
    for order in filter(None, (shown.then, sort)):
        matching = ordered(matching, order)
    is_expanded = query.of(table.name, "rows") == ALL
    limit = table.max_rows if is_expanded else shown.rows
    kinds = _tree(matching, data.task.uuid) if shown.is_tree else [""] * len(matching)
    cells = "".join(
        _row(table, row, kind, data.at, query.root)
        for row, kind in zip(matching[:limit], kinds[:limit], strict=True)
    )
    empty = f'<tr role="row"><td role="cell" colspan="{len(table.columns)}">{escape(table.empty)}</td></tr>'
    title = f'<a href="{query.root}{shown.link}">{table.title}</a>' if shown.link else table.title
    return _TABLE.format(
        name=table.name,
        title=title,
        count=f"{len(rows):,}",
        form=_form(table, contains, query) if shown.sort else "",
        prefix=query.key(table.name, ""),
        sort=escape(shown.sort),
        then=escape(shown.then),
        limit=shown.rows,
        max_rows=table.max_rows,
        empty=escape(table.empty),
        heads="".join(_head(table, column, sort, query) for column in table.columns),
        field=escape(shown.field),
        key=table.key,
        expanded=" data-expanded" if is_expanded else "",
        rows=cells or empty,
        more=_more(shown, len(matching), query, is_expanded=is_expanded),
    )


def _form(table: Table, contains: str, query: Query) -> str:
    key = query.key(table.name, "filter")
    others = ((name, value) for name, value in query.parameters.items() if name != key and value)
    return _FORM.format(
        label=f"{table.title} with the text",
        key=escape(key),
        value=escape(contains),
        table=table.name,
        hidden="".join(
            f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">\n' for name, value in others
        ),
    )


def _more(shown: ShownTable, count: int, query: Query, *, is_expanded: bool) -> str:
    """Return how many rows are not shown, and the link that expands or collapses the table.

    With few rows, the link is only for phones, and only there fewer rows than `shown.rows` are shown.
    """
    table = shown.table
    if count <= NARROW_ROWS:
        return ""
    key = query.key(table.name, "rows")
    hidden = max(0, count - (table.max_rows if is_expanded else shown.rows))
    most = min(count, table.max_rows)
    label = "show fewer" if is_expanded else f"show {'all ' if most == count else ''}{most:,}"
    value = "" if is_expanded else ALL
    url = query.url(**{key: value})
    link = f'<a href="{escape(url)}#{table.name}-title" data-set="{key}={value}">{label}</a>'
    if count <= shown.rows:
        return f'<span class="narrow">{link}</span>'
    kind = "" if is_expanded else ' class="broad"'
    return f"<span{kind}>and {hidden:,} more: </span>{link}" if hidden else link


def _head(table: Table, column: Column, sort: str, query: Query) -> str:
    title = f"{column.title}{unit(column)}"
    if column.kind in _UNSORTED or not sort:
        return f'<th scope="col" role="columnheader" {attributes(column)}{meaning(column)}>{title}</th>'
    order = {column.field: "ascending", f"-{column.field}": "descending"}.get(sort, "none")
    first = first_sort(column)  # of the first click; the second one reverses the order
    url = query.url(**{query.key(table.name, "sort"): reversed_sort(first) if sort == first else first})
    return (
        f'<th scope="col" role="columnheader" aria-sort="{order}" {attributes(column)}{meaning(column)}>'
        f'<a href="{escape(url)}#{table.name}-title">{title}</a></th>'
    )


def _tree(tasks: Sequence[Any], marked: str) -> list[str]:
    """Return the attributes of the rows of a tree: how deep each is, and whether it is that of the page."""
    return [
        f' data-depth="{depth}"{" aria-current=true" if task.uuid == marked else ""}'
        for task, depth in zip(tasks, levels(tasks), strict=True)
    ]


def _row(table: Table, row: Any, kind: str, now: float, root: str) -> str:
    cells = (
        f'<td role="cell" class="{cell_class(column, row)}" data-title="{label(column)}">'
        f"{content(column, row, now, root)}</td>"
        for column in table.columns
    )
    return f'<tr role="row"{kind}>{"".join(cells)}</tr>'
