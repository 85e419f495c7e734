"""The status page as HTML. For tests in a browser see tests/integration/test_status_page.py."""

from __future__ import annotations

from html.parser import HTMLParser

import msgspec
import pytest
from harness import statuses
from harness.statuses import HOSTILE_NAMES, failure, queue, status, task, worker

from celery_exporter.core.types import State
from celery_exporter.status.columns import TABLES, UNKNOWN, fixed, ordered, seconds
from celery_exporter.web import status_page

VOID = {"meta", "link", "br", "input"}


class Parsed(HTMLParser):
    """The elements of a page, and the texts of its tables. Raises AssertionError if it is malformed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids)), "duplicate id"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(attributes) == len(dict(attributes)), f"duplicate attribute of {tag}"
        values = dict(attributes)
        self.elements.append((tag, values))
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables[values["id"] or ""] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start tag"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def column(self, table: str, title: str) -> list[str]:
        heads, *rows = self.tables[table]
        return [row[heads.index(title)] for row in rows]


def names(*, sort: str = status_page.SORT, contains: str = "", tasks=None) -> list[str]:
    shown = status(tasks=[task("b", 2), task("c"), task("a", 1)] if tasks is None else tasks)
    return Parsed(status_page.html(shown, sort=sort, contains=contains)).column("tasks", "Task")


@pytest.mark.parametrize(
    "shown",
    [status(), statuses.full_status(), statuses.small_status(), status(broker=statuses.broker(up=False))],
    ids=["empty", "everything", "ordinary", "broker down"],
)
def test_page_is_well_formed(shown):
    assert set(Parsed(status_page.html(shown)).tables) == {table.name for table in TABLES}


def test_texts_from_events_are_escaped():
    """This holds for each field with an external text, and for the filter of the request."""
    for name in HOSTILE_NAMES:
        broker = statuses.broker()
        shown = status(
            broker=msgspec.structs.replace(broker, url=name, down_since=1.0, error=name),
            exporter_version=name,
            findings=[statuses.Finding(name, "critical", name, name)],
            workers=[msgspec.structs.replace(worker(), name=name, version=name)],
            queues=[queue(name, 1)],
            tasks=[task(name, 1)],
            failures=[type(failure())(failure().at, name, name, name, name)],
        )
        parsed = Parsed(status_page.html(shown, contains=name[:3]))
        assert parsed.column("workers", "Worker") == parsed.column("workers", "Celery") == [name]
        assert parsed.column("queues", "Queue") == parsed.column("tasks", "Task") == [name]
        assert parsed.tables["failures"][1][1:] == [name] * 4
        assert [tag for tag, _ in parsed.elements if tag in {"script", "img", "b"}] == ["script", "b"]
        assert not any(key.startswith("on") for _, attributes in parsed.elements for key in attributes)


def test_the_page_of_a_broker_that_is_down_says_why_and_since_when():
    down = msgspec.structs.replace(
        statuses.broker(up=False), down_since=statuses.NOW - 75.25, error="<refused>"
    )
    page = status_page.html(status(broker=down))
    assert '<p id="outage">Not open since 01-15 07:58:45 UTC: &lt;refused&gt;</p>' in page
    page = status_page.html(status(broker=msgspec.structs.replace(down, error=None)))
    assert "UTC: the broker has not answered yet</p>" in page
    assert '<p id="outage"></p>' in status_page.html(status())


@pytest.mark.parametrize("text", HOSTILE_NAMES)
def test_parameters_of_the_request_are_escaped(text):
    parsed = Parsed(status_page.html(status(), sort=text, contains=text))
    inputs = [attributes for tag, attributes in parsed.elements if tag == "input"]
    assert [attributes["value"] for attributes in inputs if attributes["name"] == "filter"] == [text]
    assert [tag for tag, _ in parsed.elements if tag in {"script", "img", "b"}] == ["script"]


def test_each_state_has_a_column_with_its_rate():
    (tasks,) = (table for table in TABLES if table.name == "tasks")
    assert [column.field for column in tasks.columns if column.field.startswith("rates.")] == [
        f"rates.{state.name}" for state in State
    ]


def test_page_has_no_inline_script_or_style():
    for tag, attributes in Parsed(status_page.html(statuses.full_status())).elements:
        assert "style" not in attributes
        assert tag != "style"
        assert tag != "script" or attributes["src"]
    assert "unsafe" not in status_page.POLICY
    assert "script-src 'self';" in status_page.POLICY
    assert status_page.POLICY.startswith("default-src 'none';")


def test_links_are_relative():
    for _, attributes in Parsed(status_page.html(statuses.full_status())).elements:
        for name in ("src", "href", "action"):
            assert "//" not in (attributes.get(name) or "")
            assert not (attributes.get(name) or "").startswith("/"), "a proxy may add a path prefix"


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
def test_tasks_are_sorted_with_unknown_values_last(sort, order):
    assert names(sort=sort) == order


def test_sorting_is_stable():
    rows = [task("a", 1), task("b", 1), task("c", 1)]
    assert [row.name for row in ordered(rows, "-runtime_p50")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("contains", "expected"), [("", ["App.Add", "app.mul"]), ("APP.M", ["app.mul"]), ("add", ["App.Add"])]
)
def test_tasks_are_filtered_by_a_part_of_their_name_in_any_case(contains, expected):
    assert names(contains=contains, tasks=[task("App.Add"), task("app.mul")]) == expected


def test_empty_table_has_a_text():
    assert names(contains="nosuch") == ["No task has been seen yet."]
    parsed = Parsed(status_page.html(status()))
    for table in TABLES:
        assert parsed.tables[table.name][1:] == [[table.empty]]


def test_rows_beyond_the_limit_are_only_counted():
    for table in TABLES:
        make = {"workers": worker, "queues": queue, "tasks": task, "failures": failure}[table.name]
        rows = [make(f"n{index:05}") for index in range(table.max_rows + 1_001)]
        text = status_page.html(status(**{table.name: rows}))
        assert len(Parsed(text).tables[table.name]) == 1 + table.max_rows
        assert f'<p class="more" id="{table.name}-more">and 1,001 more</p>' in text
        assert f'id="{table.name}-count">{table.max_rows + 1_001:,}<' in text


def test_columns_name_existing_fields():
    """A misspelled field would always be shown as unknown."""
    shown = statuses.full_status()
    for table in TABLES:
        row = getattr(shown, table.name)[-1]
        for column in table.columns:
            field, _, key = column.field.partition(".")
            assert field in row.__struct_fields__
            assert not key or key in getattr(row, field)
            assert not column.total_field or column.total_field in row.__struct_fields__


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
def test_durations_have_a_readable_unit(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.125, 2, "0.13"), (2.5, 0, "3"), (0, 1, "0.0"), (1e6, 0, "1,000,000"), (999.996, 2, "1,000.00")],
)
def test_numbers_are_rounded_half_up(value, digits, text):
    assert fixed(value, digits) == text


def test_unknown_value_is_a_dash():
    parsed = Parsed(status_page.html(status(workers=[worker()], tasks=[task()])))
    assert parsed.column("workers", "Busy") == parsed.column("workers", "Load") == [UNKNOWN]
    assert parsed.tables["tasks"][1][1:-2] == [UNKNOWN] * 13


def test_age_is_never_negative():
    ahead = status(workers=[worker(value=-5.0)], queues=[queue("q", -2.0)], tasks=[task("t", -3.0)])
    parsed = Parsed(status_page.html(ahead))
    assert parsed.column("workers", "Heartbeat") == parsed.column("queues", "Oldest") == ["0 s"]
