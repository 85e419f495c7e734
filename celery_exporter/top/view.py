"""What is on the screen, and what a key changes about it: a `News` and a `View` → lines. Pure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.status.columns import BROKER, TABLES, Column, Table, ordered, text
from celery_exporter.status.model import Status
from celery_exporter.top.layout import GAP, LEAST_TEXT, Line, clean, clipped, drawn, fit, width

#: The sections from the top down, by what they are called in a `Status`.
SECTIONS = ("findings", *(table.name for table in TABLES))
#: The one that can be sorted and filtered, and by what it is sorted when nobody says.
SORTED, SORT = "tasks", "name"
#: Longest part of a name that tasks are looked for by.
LONGEST = 255
#: Lines that an error may take.
MOST_PROBLEM = 4

_TABLES = {table.name: table for table in TABLES}
_FIELDS = {column.field: column for column in _TABLES[SORTED].columns}
_AT = Column("", "at", "clock")
_WELL = "Nothing: what can be seen from here is well."
_STYLES = {"warning": "warn", "critical": "bad"}
#: Columns of a severity.
_INDENT = 9
_FOOT = "q quit  / filter  ←→ sort  r reverse  ↑↓ scroll  tab next  enter alone"
_TYPING_FOOT = "▏  enter keeps it, escape forgets it"


class News(Struct, frozen=True):
    """What a source told: the newest status, or the last one there was and why there is no newer one."""

    source: str  # where it comes from
    status: Status | None = None
    problem: str = ""


class View(Struct, frozen=True):
    """How somebody looks at it."""

    sort: str = SORT
    contains: str = ""
    typing: bool = False
    selected: str = SORTED
    alone: bool = False
    offset: int = 0  # rows of the selected section that are above


class Screen(Struct, frozen=True):
    """The lines, and how far the selected section can be scrolled: at once, and at most."""

    lines: list[Line]
    page: int = 1
    most: int = 0


class _Section(Struct, frozen=True):
    """A part of the screen: what stands over its first column, heads of the others, rows, how many exist."""

    name: str
    title: str
    heads: str
    rows: list[Line]
    total: int


def screen(news: News, view: View, cells: int, height: int | None = None) -> Screen:
    """Return what is to be seen, in so many cells and lines; of no height, all of it, and no keys."""
    head = _head(news, cells)
    sections = [] if news.status is None else _sections(news.status, view, cells)
    room = math.inf if height is None else height - len(head) - len(sections) - 1
    shares = share([len(section.rows) for section in sections], room)
    lines, page, most = head, 1, 0
    for section, rows in zip(sections, shares, strict=True):
        here = section.name == view.selected
        if here:
            page, most = max(1, rows), len(section.rows) - rows
        above = min(view.offset, most) if here else 0
        lines.append(_titled(section, above, rows, selected=here and height is not None))
        lines += section.rows[above : above + rows]
    if height is not None:
        lines = [*lines, *([[]] * height)][: max(0, height - 1)]
        lines.append(_foot(view))
    return Screen([clipped(line, cells) for line in lines], page, most)


def share(wanted: Sequence[int], room: float) -> list[int]:
    """Return how many lines each gets: as many as it wants, and where there are too few, none gets more than
    another that wants as many.
    """
    given = [0] * len(wanted)
    left = room
    for rank, index in enumerate(sorted(range(len(wanted)), key=lambda index: wanted[index])):
        fair = max(0, left / (len(wanted) - rank))
        given[index] = int(min(wanted[index], fair))
        left -= given[index]
    return given


# -- the head and the foot -----------------------------------------------------------------------------


def _head(news: News, cells: int) -> list[Line]:
    problem = [[(line, "bad")] for line in _wrapped(news.problem, cells)[:MOST_PROBLEM]]
    status = news.status
    if status is None:
        return [
            [("celery-exporter top  ", "title"), (clean(news.source), "")],
            *(problem or [[("…", "dim")]]),
        ]
    name = f"celery-exporter {clean(status.exporter_version)}"
    up, state = ("good", "up") if status.broker.up else ("bad", "DOWN")
    at = f"as of {text(_AT, status, status.at)} UTC"
    left = cells - sum(map(width, (name, state, at))) - 3 * GAP
    url = fit(clean(status.broker.url), max(0, left))
    gap = (" " * GAP, "")
    facts = [f"{column.title.lower()} {text(column, status, status.at)}" for column in BROKER[2:]]
    since = [[("no news since: ", "bad"), *problem[0]], *problem[1:]] if problem else []
    return [
        [(name, "title"), gap, (url, ""), gap, (state, up), gap, (at, "bad" if problem else "")],
        [((" " * GAP).join(facts), "")],
        *since,
    ]


def _wrapped(value: str, cells: int) -> list[str]:
    return textwrap.wrap(clean(value), max(LEAST_TEXT, cells), break_on_hyphens=False)


def _foot(view: View) -> Line:
    if view.typing:
        return [("/" + clean(view.contains), "warn"), (_TYPING_FOOT, "dim")]
    filtered = [(f"/{clean(view.contains)}  ", "warn")] if view.contains else []
    return [*filtered, (_FOOT, "dim")]


# -- sections ------------------------------------------------------------------------------------------


def _sections(status: Status, view: View, cells: int) -> list[_Section]:
    shown = [view.selected] if view.alone else SECTIONS
    return [
        _findings(status, cells) if name == "findings" else _table(_TABLES[name], status, view, cells)
        for name in shown
    ]


def _findings(status: Status, cells: int) -> _Section:
    wrong = [finding for finding in status.findings if finding.severity != "ok"]
    lines: list[Line] = []
    for finding in wrong:
        found, *more = _wrapped(finding.message, cells - _INDENT) or [""]
        lines.append([(fit(finding.severity, _INDENT), _STYLES[finding.severity]), (found, "")])
        lines += [[(" " * _INDENT, ""), (line, "")] for line in more]
        lines += [
            [(f"{'->' if index == 0 else '':>{_INDENT - 1}} ", "dim"), (line, "")]
            for index, line in enumerate(_wrapped(finding.remedy, cells - _INDENT))
        ]
    return _Section("findings", "What to look at", "", lines or [[(_WELL, "dim")]], len(wrong))


def _table(table: Table, status: Status, view: View, cells: int) -> _Section:
    rows: Sequence[Any] = getattr(status, table.name)
    sort, title = "", table.title
    if table.name == SORTED:
        sort = view.sort
        rows = ordered([row for row in rows if view.contains.lower() in row.name.lower()], sort)
        title += {table.columns[0].field: "▲", f"-{table.columns[0].field}": "▼"}.get(sort, "")
    heads, lines = drawn(table, rows[: table.most], status.at, cells, sort)
    empty = table.empty if not getattr(status, table.name) else "None has this in its name."
    return _Section(table.name, title, heads, lines or [[(empty, "dim")]], len(rows))


def _titled(section: _Section, above: int, rows: int, *, selected: bool) -> Line:
    """Return the line over a section; which of its rows are shown is told where it is not all of them."""
    many = f"{section.total:,}"
    lines = section.name == "findings"  # of which several are one
    there = len(section.rows) if lines else section.total
    if 0 < rows < there:
        part = f"{above + 1}-{above + rows} of"
        many = f"{many}, lines {part} {there}" if lines else f"{part} {many}"
    title = f"{section.title} {many}"
    style = "selected" if selected else "title"
    return [(title, style), (section.heads[width(title) :], "head")]


# -- keys ----------------------------------------------------------------------------------------------


def pressed(view: View, seen: Screen, key: str, character: str = "") -> View:
    """Return how it is looked at after a key, by its name, and what it writes. Others change nothing."""
    if view.typing:
        change = _TYPING_KEYS.get(key)
        return change(view) if change else _typed(view, character)
    act = _KEYS.get(key)
    return act(view, seen) if act else view


def pasted(view: View, text: str) -> View:
    """Return how it is looked at after somebody pasted a text, which is part of a name if of anything."""
    return _typed(view, "".join(text.split())) if view.typing else view


def _scrolled(by: Callable[[Screen], float]) -> Callable[[View, Screen], View]:
    def act(view: View, seen: Screen) -> View:
        return replace(view, offset=int(min(max(0, min(view.offset, seen.most) + by(seen)), seen.most)))

    return act


def _next(step: int) -> Callable[[View, Screen], View]:
    def act(view: View, _: Screen) -> View:
        index = (SECTIONS.index(view.selected) + step) % len(SECTIONS)
        return replace(view, selected=SECTIONS[index], offset=0)

    return act


def _sorted(step: int) -> Callable[[View, Screen], View]:
    """Names from the first on, numbers from the largest on, as on the status page."""

    def act(view: View, _: Screen) -> View:
        fields = list(_FIELDS)
        field = fields[(fields.index(view.sort.removeprefix("-")) + step) % len(fields)]
        return replace(view, sort=field if _FIELDS[field].kind == "text" else f"-{field}", offset=0)

    return act


def _reversed(view: View, _: Screen) -> View:
    return replace(view, sort=view.sort[1:] if view.sort.startswith("-") else f"-{view.sort}")


def _filtering(view: View, _: Screen) -> View:
    alone = view.alone and view.selected == SORTED
    return replace(view, typing=True, selected=SORTED, alone=alone, offset=0)


def _typed(view: View, character: str) -> View:
    if not character.isprintable():
        return view
    return replace(view, contains=(view.contains + character)[:LONGEST])


_KEYS: Mapping[str, Callable[[View, Screen], View]] = {
    "up": _scrolled(lambda _: -1),
    "down": _scrolled(lambda _: 1),
    "pageup": _scrolled(lambda seen: -seen.page),
    "pagedown": _scrolled(lambda seen: seen.page),
    "home": _scrolled(lambda _: -math.inf),
    "end": _scrolled(lambda _: math.inf),
    "tab": _next(1),
    "shift+tab": _next(-1),
    "enter": lambda view, _: replace(view, alone=not view.alone, offset=0),
    "escape": lambda view, _: replace(view, alone=False, contains="", offset=0),
    "left": _sorted(-1),
    "right": _sorted(1),
    "s": _sorted(1),
    "r": _reversed,
    "slash": _filtering,
}
_TYPING_KEYS: Mapping[str, Callable[[View], View]] = {
    "enter": lambda view: replace(view, typing=False),
    "escape": lambda view: replace(view, typing=False, contains=""),
    "backspace": lambda view: replace(view, contains=view.contains[:-1]),
    "ctrl+u": lambda view: replace(view, contains=""),
}
