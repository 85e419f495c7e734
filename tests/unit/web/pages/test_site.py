"""The pages as HTML. For tests in a browser see tests/integration/test_status_page.py."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import clusters, statuses
from harness.statuses import HOSTILE_NAMES, failure, queue, status, task, worker

from celery_exporter.core.types import State
from celery_exporter.status import charts as chart_views
from celery_exporter.status.charts import ChartQuery, Charts
from celery_exporter.status.columns import (
    FAILURE_GROUPS,
    QUEUE_LINK,
    QUEUE_TASKS,
    TABLES,
    TASK_LINK,
    TASKS,
    UNKNOWN,
    WORKER_LINK,
    WORKER_TASKS,
    fixed,
    ordered,
    seconds,
)
from celery_exporter.status.model import FailureGroup, Status
from celery_exporter.status.task_columns import ATTEMPTS, FOUND, TASK_FACTS
from celery_exporter.web.pages import layout, missing, site
from celery_exporter.web.pages.query import Query, chosen
from celery_exporter.web.pages.tables import COLLAPSED_ROWS, NARROW_ROWS

DASHBOARDS = Path(__file__).resolve().parents[4] / "dashboards" / "provisioning"
VOID = {"meta", "link", "br", "input"}
#: Tags that no page has, except for the scripts in its head.
FOREIGN = {"img", "iframe", "object", "style", "base"}


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


def page_of(source: str) -> site.Page:
    return next(page for page in site.PAGES if page.path == source)


def html(shown: Status, path: str = "/", name: str = "", root: str = "", **parameters: str) -> str:
    page = page_of(path)
    given = {key.replace("_", "."): value for key, value in parameters.items()}
    query = Query(chosen(given, page.known_parameters()), page.main, name, root)
    data = page.data(shown, name)
    return site.html(page, data, clusters.charts(ChartQuery(page.charts, name)), query)


def names(*, tasks: Any = None, **parameters: str) -> list[str]:
    shown = status(tasks=[task("b", 2), task("c"), task("a", 1)] if tasks is None else tasks)
    return Parsed(html(shown, **parameters)).column("tasks", "Task")


def hostile_status(name: str) -> Status:
    """Return a status with a text in each field that has an external text."""
    broker = statuses.broker()
    return status(
        broker=msgspec.structs.replace(broker, url=name, down_since=1.0, error=name),
        exporter_version=name,
        findings=[statuses.Finding(name, "critical", name, name)],
        workers=[msgspec.structs.replace(worker(), name=name, version=name, pool=name, queues=[name])],
        queues=[queue(name, 1)],
        tasks=[task(name, 1)],
        failures=[type(failure())(failure().at, name, name, name, name)],
        failure_groups=[FailureGroup(name, name, 1, 1, failure().at, name, name)],
    )


ALL = [(page.path, "name-001" if page.is_named else "") for page in site.PAGES]
STATUSES = {
    "everything": statuses.full_status(),
    "ordinary": statuses.small_status(),
    "empty": status(),
    "broker down": status(broker=statuses.broker(up=False)),
}


@pytest.mark.parametrize("shown", STATUSES.values(), ids=STATUSES)
@pytest.mark.parametrize(("path", "name"), [row for row in ALL if not row[1]])
def test_pages_are_well_formed(path, name, shown):
    expected = {entry.table.name for entry in page_of(path).tables}
    assert set(Parsed(html(shown, path, name)).tables) == expected


@pytest.mark.parametrize(("path", "name"), ALL)
def test_pages_of_names_are_well_formed(path, name):
    Parsed(html(STATUSES["everything"], path, name))


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("path", [page.path for page in site.PAGES])
def test_texts_from_events_are_escaped(path, name, monkeypatch):
    """This holds for each field with an external text, for marks and lines of charts, and for parameters."""
    monkeypatch.setattr(clusters.MadeUpHistory, "names", lambda *_: [name])
    marks = [clusters.Mark(clusters.MONOTONIC - 5, kind, name, name) for kind in ("restart", "version")]
    monkeypatch.setattr(clusters.MadeUpHistory, "marks", lambda *_: marks)
    page = page_of(path)
    text = html(hostile_status(name), path, name if page.is_named else "", filter="", sort=name, range=name)
    parsed = Parsed(text)
    for entry in page.tables:
        assert name in parsed.tables[entry.table.name][1]
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == len(layout.SCRIPTS)
    assert FOREIGN.isdisjoint(tags)
    assert not any(key.startswith("on") for _, attributes in parsed.elements for key in attributes)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_page_for_an_unknown_name_escapes_it(name):
    parsed = Parsed(missing.html(status(), "worker", "Workers", Query(name=name, root="../")))
    assert FOREIGN.isdisjoint(tag for tag, _ in parsed.elements)


@pytest.mark.parametrize("text", HOSTILE_NAMES)
def test_parameters_of_the_request_are_escaped(text):
    parsed = Parsed(html(status(), sort=text, filter=text, range=text))
    inputs = [attributes for tag, attributes in parsed.elements if tag == "input"]
    values = [attributes["value"] for attributes in inputs if attributes["name"] == "filter"]
    assert set(values) == {text}, "each form keeps what the others chose"
    assert [tag for tag, _ in parsed.elements if tag in {"script", "img"}] == ["script"] * len(layout.SCRIPTS)


def test_unknown_parameters_are_ignored():
    assert "nosuch" not in html(status(), nosuch="1", workers_nosuch="2")


def test_each_state_has_a_column_with_its_rate():
    assert [column.field for column in TASKS.columns if column.field.startswith("rates.")] == [
        f"rates.{state.name}" for state in State
    ]


@pytest.mark.parametrize(("path", "name"), ALL)
def test_pages_have_no_inline_script_or_style(path, name):
    for tag, attributes in Parsed(html(statuses.full_status(), path, name)).elements:
        assert "style" not in attributes
        assert tag != "style"
        assert tag != "script" or attributes["src"]
    assert "unsafe" not in layout.POLICY
    assert "script-src 'self';" in layout.POLICY
    assert layout.POLICY.startswith("default-src 'none';")


@pytest.mark.parametrize(("path", "name"), ALL)
def test_links_are_relative_and_begin_at_the_start_page(path, name):
    """A proxy may add a path prefix."""
    root = "../" if name else ""
    for tag, attributes in Parsed(html(statuses.small_status(), path, name, root) if not name else html(
        statuses.full_status(), path, name, root
    )).elements:  # fmt: skip
        for attribute in ("src", "href", "action"):
            url = attributes.get(attribute) or "?"
            assert "//" not in url.replace(root, "")
            assert not url.startswith("/")
            assert url.startswith((root, "?", "#")), tag


def test_names_link_to_their_pages():
    shown = status(
        workers=[worker("w 1@h/ü?#")],
        queues=[queue("q&1")],
        tasks=[task("a.b")],
        failures=[failure("a.b")],
    )
    links = [attributes.get("href") for tag, attributes in Parsed(html(shown)).elements if tag == "a"]
    assert {
        "workers/w%201%40h%2F%C3%BC%3F%23",
        "queues/q%261",
        "tasks?name=a.b",
        f"task/{failure().uuid}",
        "tasks?worker=w%201%40h%2F%C3%BC%3F%23",
        "tasks?queue=q%261",
        "tasks?exception=KeyError",
    } <= set(links)


#: The last part of a field that has such a name → the URL of its list.
LISTS = {
    "worker": "tasks?worker={}",
    "queue_name": "tasks?queue={}",
    "task": "tasks?name={}",
    "task_name": "tasks?name={}",
    "exception": "tasks?exception={}",
    "parent_id": "tasks?parent={}",
    "root_id": "tasks?root={}",
}
COLUMNS = [
    column
    for columns in (
        *(entry.table.columns for page in site.PAGES for entry in page.tables),
        *(FOUND.columns, ATTEMPTS.columns, TASK_FACTS),
    )
    for column in columns
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: f"{column.title} {column.field}")
def test_one_click_leads_from_each_name_to_its_tasks(column):
    """By the name itself, or by the link beside it, where the name leads to a page of its own."""
    part = column.field.rpartition(".")[2]
    wanted = {WORKER_LINK: WORKER_TASKS, QUEUE_LINK: QUEUE_TASKS}.get(column.link) or LISTS.get(part)
    assert wanted in {None, column.tasks or column.link}
    assert part != "uuid" or column.link == TASK_LINK


@pytest.mark.parametrize(("path", "parameter"), [("/workers/", "worker"), ("/queues/", "queue")])
def test_the_page_of_a_name_leads_to_its_tasks(path, parameter):
    name = "name 010&"
    shown = status(workers=[worker(name)], queues=[queue(name)])
    links = [attributes.get("href") for tag, attributes in Parsed(html(shown, path, name, "../")).elements]
    url = f"../tasks?{parameter}=name%20010%26"
    assert {url, f"{url}&state=STARTED", f"{url}&state=FAILURE"} <= set(links)


def test_counts_lead_to_the_tasks_that_they_count():
    group = FailureGroup("K&E", "t", 7, 2, statuses.NOW, "w@h", "u")
    parsed = Parsed(html(status(failure_groups=[group]), "/failures"))
    parsed.elements += Parsed(html(status(workers=[worker("w", 1.0)], tasks=[task("t", 1.0)]))).elements
    assert {
        "tasks?exception=K%26E&name=t",
        "tasks?worker=w&state=STARTED",
        "tasks?name=t&state=PENDING,RECEIVED,STARTED,RETRY",
    } <= {attributes.get("href") for tag, attributes in parsed.elements if tag == "a"}


def test_ids_have_a_button_that_copies_them():
    parsed = Parsed(html(status(failures=[failure()]), "/failures"))
    (button,) = [attributes for tag, attributes in parsed.elements if attributes.get("class") == "copy"]
    assert (button["type"], button["title"]) == ("button", f"Copy {failure().uuid}")


@pytest.mark.parametrize("name", ["", ".", "..", "\N{SNOWMAN}" * 250])
def test_names_that_no_url_can_have_are_no_links(name):
    parsed = Parsed(html(status(workers=[worker(name)])))
    assert not [
        attributes for tag, attributes in parsed.elements
        if tag == "a" and (attributes["href"] or "").startswith("workers/")
    ]  # fmt: skip


def test_problems_come_first_and_critical_ones_before_warnings():
    text = html(statuses.small_status())
    order = [text.index(part) for part in ('id="findings"', 'li class="critical', 'li class="warning')]
    assert order == sorted(order)
    assert order[-1] < text.index('id="facts"') < text.index('id="charts"') < text.index("<table")
    assert '<span id="problems" class="badge critical">2</span>' in text
    assert "<title>2 problems · Overview · celery-exporter</title>" in text
    assert "<title>broker down · Overview" in html(status(broker=statuses.broker(up=False)))
    assert "<title>ok · Queues" in html(status(), "/queues")


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
        ("nosuch", ["b", "a", "c"]),  # by failures
        ("--name", ["b", "a", "c"]),
        ("pool_size", ["b", "a", "c"]),
        ("", ["b", "a", "c"]),
    ],
)
def test_tasks_are_sorted_with_unknown_values_last(sort, order):
    assert names(sort=sort) == order


def test_tables_are_sorted_and_filtered_independently():
    shown = status(
        workers=[worker("a", 1), worker("b", 2), worker("down", up=False)],
        queues=[queue("x", 1), queue("y", 2)],
        tasks=[task("a", 1), task("b", 2)],
    )
    parsed = Parsed(html(shown))
    assert parsed.column("workers", "Worker") == ["down", "a", "b"], "problems first"
    assert parsed.column("queues", "Queue") == ["y", "x"], "the longest first"
    parsed = Parsed(html(shown, workers_sort="-name", queues_filter="X", filter="b"))
    assert parsed.column("workers", "Worker") == ["down", "b", "a"]
    assert parsed.column("queues", "Queue") == ["x"]
    assert parsed.column("tasks", "Task") == ["b"]
    parsed = Parsed(html(shown, "/workers", sort="-name", filter="B"))
    assert parsed.column("workers", "Worker") == ["b"]


def test_lines_have_no_order():
    rows = [queue("b", 1), queue("a", 2)]
    assert Parsed(html(status(queues=rows), "/queues", sort="lengths")).column("queues", "Queue") == [
        "a",
        "b",
    ]


def test_sorting_is_stable():
    rows = [task("a", 1), task("b", 1), task("c", 1)]
    assert [row.name for row in ordered(rows, "-runtime_p50")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("contains", "expected"), [("", ["App.Add", "app.mul"]), ("APP.M", ["app.mul"]), ("add", ["App.Add"])]
)
def test_tasks_are_filtered_by_a_part_of_their_name_in_any_case(contains, expected):
    assert names(filter=contains, tasks=[task("App.Add"), task("app.mul")]) == expected


def test_empty_table_has_a_text():
    assert names(filter="nosuch") == ["No task has been seen yet."]
    parsed = Parsed(html(status()))
    for table in TABLES:
        assert parsed.tables[table.name][1:] == [[table.empty]]


MAKE = {"workers": worker, "queues": queue, "tasks": task, "failures": failure}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_are_collapsed_and_rows_beyond_the_limit_are_only_counted(table):
    path = {"tasks": "/", "failures": "/failures"}.get(table.name, f"/{table.name}")
    first = site.OVERVIEW_ROWS if path == "/" else COLLAPSED_ROWS
    rows = [MAKE[table.name](f"n{index:05}") for index in range(table.max_rows + 1_001)]
    shown = status(**{table.name: rows})
    prefix = "failures_" if table.name == "failures" else ""
    for expanded, count, label in (
        ({}, first, f"show {table.max_rows:,}"),
        ({f"{prefix}rows": "all"}, table.max_rows, "show fewer"),
    ):
        text = html(shown, path, **expanded)
        assert len(Parsed(text).tables[table.name]) == 1 + count
        assert f'id="{table.name}-count">{len(rows):,}<' in text
        assert f">and {len(rows) - count:,} more: </span><a " in text
        assert f">{label}</a></p>" in text


def test_short_tables_have_no_link_to_more_rows_but_on_phones():
    rows = [worker(f"w{index}") for index in range(COLLAPSED_ROWS)]
    more, link = (
        '<p class="more" id="workers-more">',
        '<a href="?rows=all#workers-title" data-set="rows=all">',
    )
    assert f"{more}</p>" in html(status(workers=rows[:NARROW_ROWS]), "/workers")
    for count in (NARROW_ROWS + 1, COLLAPSED_ROWS):
        text = html(status(workers=rows[:count]), "/workers")
        assert f'{more}<span class="narrow">{link}show all {count}</a></span></p>' in text
    text = html(status(workers=[*rows, worker("x")]), "/workers")
    assert f'{more}<span class="broad">and 1 more: </span>{link}show all {len(rows) + 1}</a></p>' in text


def test_columns_name_existing_fields():
    """A misspelled field would always be shown as unknown."""
    shown = hostile_status("x")
    for page in site.PAGES:
        data = page.data(shown, "x")
        rows = [(getattr(data, entry.table.name)[-1], entry.table.columns) for entry in page.tables]
        for row, columns in [*rows, (data, page.facts)]:
            for column in columns:
                for field in filter(None, (column.field, column.total_field)):
                    holder = row
                    for part in field.split("."):
                        assert isinstance(holder, dict) or part in holder.__struct_fields__, field
                        holder = holder[part] if isinstance(holder, dict) else getattr(holder, part)


def test_pages_of_one_worker_and_one_queue_show_what_belongs_to_it():
    workers = [msgspec.structs.replace(worker(name, 1.0), queues=[name]) for name in ("a", "b")]
    shown = status(
        workers=workers,
        queues=[queue("a", 1), queue("b", 1)],
        failures=[type(failure())(1.0, "t", "a", "KeyError", "u1"), failure()],
    )
    parsed = Parsed(html(shown, "/workers/", "a"))
    assert parsed.column("queues", "Queue") == ["a"]
    assert parsed.column("failures", "Id") == ["u1"]
    assert Parsed(html(shown, "/queues/", "b")).column("workers", "Worker") == ["b"]
    assert page_of("/queues/").data(shown, "nosuch") is None
    assert page_of("/workers/").data(shown, "nosuch") is None


def test_failures_are_grouped():
    groups = [
        FailureGroup("KeyError", "t", 7, 2, statuses.NOW - 5, "w@h", "u"),
        FailureGroup("X", "t", 1, 0, None, "", ""),
    ]
    parsed = Parsed(html(status(failure_groups=groups), "/failures"))
    assert parsed.tables[FAILURE_GROUPS.name][1:] == [
        ["KeyError", "t", "7", "2", "5 s", "w@h", "u"],
        ["X", "t", "1", "0", UNKNOWN, UNKNOWN, UNKNOWN],
    ]


@pytest.mark.parametrize(("path", "name"), ALL)
def test_pages_link_to_their_dashboards_if_grafana_is_known(path, name):
    page = page_of(path)
    data = page.data(statuses.full_status(), name)
    query = Query(main=page.main, name=name, grafana='https://grafana.example.com/x?y="><b>')
    links = [
        attributes.get("href") for tag, attributes in Parsed(site.html(page, data, None, query)).elements
    ]
    uid = layout.DASHBOARDS[page.navigation]
    assert f"{query.grafana}/d/{uid}" in links
    assert (DASHBOARDS / f"{uid}.json").exists()
    assert "grafana" not in site.html(page, data, None, Query(main=page.main, name=name))


def test_the_pages_of_a_broker_that_is_down_say_why_and_since_when():
    down = msgspec.structs.replace(
        statuses.broker(up=False), down_since=statuses.NOW - 75.25, error="<refused>"
    )
    for path in ("/", "/failures"):
        page = html(status(broker=down), path)
        assert '<p id="outage">Not open since 01-15 07:58:45 UTC: &lt;refused&gt;</p>' in page
        page = html(status(broker=msgspec.structs.replace(down, error=None)), path)
        assert "UTC: the broker has not answered yet</p>" in page
        assert '<p id="outage"></p>' in html(status(), path)


def test_the_pages_of_a_standby_say_so():
    standby = msgspec.structs.replace(statuses.broker(), active=False)
    assert '<p id="outage" class="standby">Standby: another exporter' in html(status(broker=standby))
    assert '<p id="outage"></p>' in html(status(broker=msgspec.structs.replace(standby, active=True)))


def test_without_charts_a_page_has_no_section_for_them():
    page = site.OVERVIEW
    assert 'id="charts"' not in site.html(page, status(), None, Query(main="tasks"))


def test_the_range_of_charts_is_in_the_url():
    charts: Charts = clusters.charts(ChartQuery("overview", "", "6h"))
    page = site.OVERVIEW
    text = site.html(page, status(), charts, Query({"range": "6h", "filter": "x"}, page.main))
    assert '<a href="?range=6h&amp;filter=x" data-set="range=6h" aria-current="true">6 h</a>' in text
    assert '<a href="?filter=x" data-set="range=">15 min</a>' in text
    assert {chart.name for chart in chart_views.PAGES["overview"]} == {
        name.removeprefix("chart-") for name in Parsed(text).ids if name.startswith("chart-")
    }


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
    parsed = Parsed(html(status(workers=[worker()], tasks=[task()])))
    assert parsed.column("workers", "Busy") == parsed.column("workers", "Load") == [UNKNOWN]
    assert parsed.tables["tasks"][1][1:-2] == [UNKNOWN] * 13


def test_age_is_never_negative():
    ahead = status(workers=[worker(value=-5.0)], queues=[queue("q", -2.0)], tasks=[task("t", -3.0)])
    parsed = Parsed(html(ahead))
    assert parsed.column("workers", "Heartbeat") == parsed.column("queues", "Oldest") == ["0 s"]
