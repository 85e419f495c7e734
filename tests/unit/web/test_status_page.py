"""The status page as HTML and JSON, of statuses made by hand; for a browser see live/test_status_page.py."""

from __future__ import annotations

import asyncio
import re
import time
from html.parser import HTMLParser

import msgspec
import pytest
from harness import statuses
from harness.statuses import HOSTILE_NAMES, NOW, failure, queue, status, task, worker

from celery_exporter.core.types import State
from celery_exporter.status.columns import TABLES, UNKNOWN, fixed, ordered, seconds
from celery_exporter.status.model import Status
from celery_exporter.web import status_page as page
from celery_exporter.web.status_routes import LASTS, _Newest

VOID = {"meta", "link", "br", "input"}


class Parsed(HTMLParser):
    """A page that is well-formed, or an AssertionError: its elements, and its tables as texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids)), "an id stands twice"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(attributes) == len(dict(attributes)), f"an attribute of {tag} stands twice"
        found = dict(attributes)
        self.elements.append((tag, found))
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables[found["id"] or ""] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def column(self, table: str, title: str) -> list[str]:
        heads, *rows = self.tables[table]
        return [row[heads.index(title)] for row in rows]


def names(*, sort: str = page.SORT, contains: str = "", tasks=None) -> list[str]:
    found = status(tasks=[task("b", 2), task("c"), task("a", 1)] if tasks is None else tasks)
    return Parsed(page.html(found, sort=sort, contains=contains)).column("tasks", "Task")


@pytest.mark.parametrize(
    "found",
    [status(), statuses.full_status(), statuses.small_status(), status(broker=statuses.broker(up=False))],
    ids=["empty", "everything", "ordinary", "broker down"],
)
def test_the_page_is_well_formed(found):
    assert set(Parsed(page.html(found)).tables) == {table.name for table in TABLES}


def test_what_came_from_the_wire_is_text():
    """In every place where a text may come from elsewhere, and in what was asked for too."""
    for name in HOSTILE_NAMES:
        broker = statuses.broker()
        found = status(
            broker=type(broker)(name, *(getattr(broker, each) for each in broker.__struct_fields__[1:])),
            exporter_version=name,
            findings=[statuses.Finding(name, "critical", name, name)],
            workers=[msgspec.structs.replace(worker(), name=name, version=name)],
            queues=[queue(name, 1)],
            tasks=[task(name, 1)],
            failures=[type(one)(one.at, name, name, name, name) for one in [failure()]],
        )
        text = page.html(found, contains=name[:3])
        parsed = Parsed(text)
        assert parsed.column("workers", "Worker") == parsed.column("workers", "Celery") == [name]
        assert parsed.column("queues", "Queue") == parsed.column("tasks", "Task") == [name]
        assert parsed.tables["failures"][1][1:] == [name] * 4
        assert [tag for tag, _ in parsed.elements if tag in {"script", "img", "b"}] == ["script", "b"]
        assert not any(key.startswith("on") for _, found in parsed.elements for key in found)


@pytest.mark.parametrize("asked", HOSTILE_NAMES)
def test_what_was_asked_for_is_text(asked):
    parsed = Parsed(page.html(status(), sort=asked, contains=asked))
    (box,) = (found for tag, found in parsed.elements if tag == "input" and found["name"] == "filter")
    assert box["value"] == asked
    assert [tag for tag, _ in parsed.elements if tag in {"script", "img", "b"}] == ["script"]


def test_each_state_has_a_column_of_its_rate():
    (tasks,) = (table for table in TABLES if table.name == "tasks")
    assert [each.field for each in tasks.columns if each.field.startswith("rates.")] == [
        f"rates.{state.name}" for state in State
    ]


def test_a_status_that_costs_much_is_given_out_for_longer():
    """So however large a cluster is, pages that are open cost 1 % of a core for what is made anew."""
    made = []

    def costly() -> Status:
        made.append(end := time.thread_time() + 0.03)
        while time.thread_time() < end:
            pass
        return status()

    async def ask() -> None:
        newest = _Newest(costly)
        begin = time.monotonic()
        while time.monotonic() < begin + LASTS + 0.3:
            await newest.get()
            await asyncio.sleep(0.1)

    asyncio.run(ask())
    assert len(made) == 1


def test_no_script_and_no_style_is_in_the_page():
    for tag, found in Parsed(page.html(statuses.full_status())).elements:
        assert "style" not in found
        assert tag != "style"
        assert tag != "script" or found["src"]
    assert "unsafe" not in page.POLICY
    assert "script-src 'self';" in page.POLICY
    assert page.POLICY.startswith("default-src 'none';")


def test_everything_that_is_shown_is_of_here():
    for _, found in Parsed(page.html(statuses.full_status())).elements:
        for attribute in ("src", "href", "action"):
            assert "//" not in (found.get(attribute) or ""), "it works behind a proxy that adds a path, too"
            assert not (found.get(attribute) or "").startswith("/")


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("name", ["a", "b", "c"]),
        ("-name", ["c", "b", "a"]),
        ("runtime_p50", ["a", "b", "c"]),
        ("-runtime_p50", ["b", "a", "c"]),
        ("rates.SUCCESS", ["a", "b", "c"]),
        ("-open", ["b", "a", "c"]),
        ("-oldest", ["b", "a", "c"]),
        ("oldest", ["a", "b", "c"]),
        ("nosuch", ["a", "b", "c"]),
        ("--name", ["a", "b", "c"]),
        ("pool_size", ["a", "b", "c"]),
        ("", ["a", "b", "c"]),
    ],
)
def test_tasks_are_sorted_and_what_is_not_known_comes_last(sort, order):
    assert names(sort=sort) == order


def test_what_is_equal_stays_in_order():
    rows = [task("a", 1), task("b", 1), task("c", 1)]
    assert [row.name for row in ordered(rows, "-runtime_p50")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("contains", "found"), [("", ["App.Add", "app.mul"]), ("APP.M", ["app.mul"]), ("add", ["App.Add"])]
)
def test_tasks_are_found_by_a_part_of_their_name_in_any_case(contains, found):
    assert names(contains=contains, tasks=[task("App.Add"), task("app.mul")]) == found


def test_a_table_without_rows_says_so():
    assert names(contains="nosuch") == ["No task has been seen yet."]
    parsed = Parsed(page.html(status()))
    for table in TABLES:
        assert parsed.tables[table.name][1:] == [[table.empty]]


def test_so_many_rows_are_shown_and_how_many_more_there_are_is_said():
    for table in TABLES:
        made = {"workers": worker, "queues": queue, "tasks": task, "failures": failure}[table.name]
        found = status(**{table.name: [made(f"n{place:05}") for place in range(table.most + 1_001)]})
        text = page.html(found)
        assert len(Parsed(text).tables[table.name]) == 1 + table.most
        assert f'<p class="more" id="{table.name}-more">and 1,001 more</p>' in text
        assert f'id="{table.name}-count">{table.most + 1_001:,}<' in text


def test_each_table_is_of_fields_that_there_are():
    """A name that is written wrong would be shown as not known, for ever."""
    found = statuses.full_status()
    for table in TABLES:
        row = getattr(found, table.name)[-1]
        for column in table.columns:
            field, _, key = column.field.partition(".")
            assert field in row.__struct_fields__
            assert not key or key in getattr(row, field)
            assert not column.of or column.of in row.__struct_fields__


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 ms"),
        (0.0005, "1 ms"),
        (0.125, "125 ms"),
        (0.9995, "1.0 s"),
        (0.99999, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1.0 min"),
        (60.0, "1.0 min"),
        (3599.99, "1.0 h"),
        (86_399.99, "1.0 d"),
        (1e6, "11.6 d"),
        (1e9, "11,574.1 d"),
    ],
)
def test_durations_are_written_in_the_unit_that_people_use(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.125, 2, "0.13"), (2.5, 0, "3"), (0, 1, "0.0"), (1e6, 0, "1,000,000"), (999.996, 2, "1,000.00")],
)
def test_numbers_have_halves_rounded_up(value, digits, text):
    assert fixed(value, digits) == text


def test_what_is_not_known_is_a_dash():
    parsed = Parsed(page.html(status(workers=[worker()], tasks=[task()])))
    assert parsed.column("workers", "Busy") == parsed.column("workers", "Load") == [UNKNOWN]
    assert parsed.tables["tasks"][1][1:-2] == [UNKNOWN] * 13


def test_clocks_that_are_ahead_make_no_age_negative():
    ahead = status(workers=[worker(value=-5.0)], queues=[queue("q", -2.0)], tasks=[task("t", -3.0)])
    parsed = Parsed(page.html(ahead))
    assert parsed.column("workers", "Heartbeat") == parsed.column("queues", "Oldest") == ["0 s"]


def test_scripts_get_back_what_went_in():
    found = statuses.full_status()
    decoded = msgspec.json.decode(msgspec.json.encode(found), type=Status)
    assert msgspec.json.encode(decoded) == msgspec.json.encode(found)
    assert decoded.at == NOW
    assert re.fullmatch(rb'\{"version":1,.*\}', msgspec.json.encode(found))
