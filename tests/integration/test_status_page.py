"""The status page in a browser, for real workers and for sample statuses."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import bcrypt
import jsonschema
import pytest
from harness import statuses
from harness.browser import BrowserPage, chromium
from harness.events import publish_events
from harness.exporter import Exporter
from harness.processes import side_by_side
from harness.servers import RedisServer
from harness.statuses import HOSTILE_NAMES, serve_status
from harness.waiting import eventually, until_equal
from harness.web_config import WebConfigExporter, unreachable_url
from harness.workers import Worker
from harness.workers import client as make_client

from celery_exporter import __version__
from celery_exporter.status.columns import TABLES
from celery_exporter.web.status_page import POLICY
from tools.docgen.api import PATH as SCHEMA

API = "/api/v1/status"
SECRET = "hunter2-in-arguments"
PASSWORD = "open sesame"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
LOGIN = {"Authorization": "Basic " + base64.b64encode(f"prometheus:{PASSWORD}".encode()).decode()}
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., BrowserPage]]:
    """`visit(url, **options)` opens a page in a new context. At the end no page may have problems."""
    with ExitStack() as stack:
        pages: list[tuple[BrowserPage, str]] = []

        def open_page(url: str, **options: Any) -> BrowserPage:
            page = BrowserPage(browser, url, **{"viewport": DESKTOP, **options})
            stack.callback(page.close)
            pages.append((page, url))
            return page

        yield open_page
        for page, url in pages:
            assert page.problems() == []
            hosts = {urlsplit(request).netloc for request in page.requests if not request.startswith("data:")}
            assert hosts == {urlsplit(url).netloc}, "it requests nothing from other hosts"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Return a broker, an exporter with two workers, and a client, for all tests."""
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(tmp_path_factory.mktemp("redis")))
        exporter = Exporter(
            tmp_path_factory.mktemp("exporter"), server.url, *("-Q", "idle"), *("--worker-timeout", "6")
        )
        stack.enter_context(exporter).connected()
        stack.callback(exporter.stop_cleanly)
        workers = [
            Worker(tmp_path_factory.mktemp("one"), server.url, "one@test", queues="celery"),
            Worker(tmp_path_factory.mktemp("two"), server.url, "two@test", queues="second", pool="solo"),
        ]
        stack.enter_context(side_by_side(*workers))
        client = stack.enter_context(make_client(server.url))
        url = f"http://127.0.0.1:{exporter.port}/"
        yield SimpleNamespace(server=server, exporter=exporter, client=client, url=url)


def status(cluster) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(cluster.exporter.get(API).text)
    return content


# -- updates -----------------------------------------------------------------------------------------------


def test_rows_appear_and_numbers_change_without_a_reload(cluster, visit):
    page = visit(cluster.url)
    page.page.evaluate("window.marker = 'not reloaded'")
    until_equal(lambda: page.row("workers", "one@test").get("State"), "up", 20)
    until_equal(lambda: page.row("workers", "one@test").get("Busy"), "0 / 2", 20)
    until_equal(lambda: page.row("workers", "two@test").get("State"), "up", 20)
    until_equal(lambda: page.row("queues", "second").get("Consumers"), "1", 20)
    assert page.row("tasks", "app.new_task") == {}
    for _ in range(3):
        cluster.client.send_task("app.new_task", queue="idle")
    until_equal(lambda: page.row("queues", "idle").get("Length"), "3", 20)
    until_equal(lambda: page.row("tasks", "app.new_task").get("Open"), "3", 20)
    cluster.client.send_task("tasks.succeed", queue="second")
    until_equal(lambda: page.row("workers", "two@test").get("Processed"), "1", 20)
    eventually(lambda: page.row("tasks", "tasks.succeed").get("Succeeded", "") > "0.00", 20)
    page.page.locator("#findings li.warning", has_text="messages wait in queues").wait_for()
    assert page.page.evaluate("window.marker") == "not reloaded"


def test_a_killed_worker_is_shown_as_down(cluster, visit, tmp_path, running):
    worker = running(Worker(tmp_path, cluster.server.url, "killed@test", queues="killed", concurrency=1))
    page = visit(cluster.url)
    until_equal(lambda: page.row("workers", "killed@test").get("State"), "up", 20)
    worker.kill()
    until_equal(lambda: page.row("workers", "killed@test").get("State"), "down", 20)
    assert page.page.locator("#workers td.down").all_text_contents() == ["down"]


def test_a_failure_is_shown_without_arguments_message_and_traceback(cluster, visit):
    page, static = visit(cluster.url), visit(cluster.url, java_script_enabled=False)
    task = cluster.client.send_task("tasks.fail_with_value_error", args=[SECRET], queue="celery")
    until_equal(lambda: page.row("failures", task.id).get("Exception"), "ValueError", 20)
    row = page.row("failures", task.id)
    assert (row["Task"], row["Worker"]) == ("tasks.fail_with_value_error", "one@test")
    assert re.fullmatch(r"\d\d-\d\d \d\d:\d\d:\d\d", row["Time (UTC)"])
    static.page.reload()
    assert static.row("failures", task.id) == row
    for text in (page.page.content(), static.page.content(), cluster.exporter.get(API).text):
        assert SECRET not in text
        assert "Traceback" not in text
        assert "raise" not in text


def test_hostile_names_are_shown_as_text(cluster, visit):
    """Names of tasks, workers and exceptions, with and without JavaScript."""
    for name in HOSTILE_NAMES:
        cluster.client.send_task(name, args=[SECRET], queue="idle")
    now = {"utcoffset": 0, "pid": 1, "clock": 1, "timestamp": time.time(), "uuid": HOSTILE_NAMES[0]}
    common = {**now, "hostname": HOSTILE_NAMES[1]}
    received = {**common, "type": "task-received", "name": HOSTILE_NAMES[0], "args": SECRET, "kwargs": "{}"}
    failed = {**common, "type": "task-failed", "exception": f"{HOSTILE_NAMES[0]}('x')"}
    publish_events(cluster.server.url, received, failed)
    page = visit(cluster.url, viewport=PHONE)
    for name in HOSTILE_NAMES:
        eventually(lambda name=name: page.row("tasks", name), 20, what=name)
    eventually(lambda: page.row("failures", HOSTILE_NAMES[0]), 20)
    static = visit(cluster.url, java_script_enabled=False, viewport=PHONE)
    for variant in (page, static):
        assert set(HOSTILE_NAMES) <= set(variant.column("tasks", "Task"))
        assert HOSTILE_NAMES[1] in variant.column("failures", "Worker")
        assert variant.page.locator("main script, main img").count() == 0
        assert variant.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert SECRET not in variant.page.content()


def test_the_page_works_without_javascript(cluster, visit):
    cluster.client.send_task("tasks.succeed", queue="second")
    page = visit(cluster.url, java_script_enabled=False)
    eventually(lambda: page.page.reload() and page.row("tasks", "tasks.succeed"), 20)
    eventually(lambda: page.page.reload() and page.row("workers", "two@test").get("Busy") == "0 / 1", 20)
    assert page.page.locator("table").count() == len(TABLES)
    assert page.column("queues", "Queue") == sorted(page.column("queues", "Queue"))
    assert page.page.locator("button").is_visible()
    assert page.page.locator("meta[http-equiv=refresh]").get_attribute("content") == "10"
    page.page.get_by_role("searchbox").fill("SUCC")
    page.page.get_by_role("button").click()
    assert page.column("tasks", "Task") == ["tasks.succeed"]
    page.page.get_by_role("link", name="Sent").click()
    assert page.column("tasks", "Task") == ["tasks.succeed"], "sorting keeps the filter"
    assert page.page.locator("th[aria-sort=descending]").inner_text() == "Sent"


# -- sorting and filtering --------------------------------------------------------------------------------


@pytest.fixture
def tasks():
    """Serve a page with three tasks."""
    rows = [statuses.task("b", 2.0), statuses.task("c"), statuses.task("a", 1.0)]
    with serve_status(statuses.status(tasks=rows)) as pages:
        yield pages


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "links"])
def test_a_click_on_a_heading_sorts_tasks(tasks, visit, has_script):
    page = visit(tasks.url, java_script_enabled=has_script)
    for title, order, direction in [
        ("Task", ["c", "b", "a"], "descending"),
        ("Task", ["a", "b", "c"], "ascending"),
        ("Run p50", ["b", "a", "c"], "descending"),
        ("Run p50", ["a", "b", "c"], "ascending"),
        ("Oldest", ["b", "a", "c"], "descending"),
        ("Open", ["b", "a", "c"], "descending"),
    ]:
        page.page.get_by_role("columnheader", name=title).get_by_role("link").click()
        until_equal(lambda: page.column("tasks", "Task"), order)
        heading = page.page.locator("#tasks th:not([aria-sort=none])")
        assert heading.get_attribute("aria-sort") == direction
        assert heading.inner_text().startswith(title)
    requests = [url for url in page.requests if "sort=" in url]
    assert bool(requests) is not has_script


def test_typing_filters_tasks_and_updates_keep_the_filter(tasks, visit):
    page = visit(f"{tasks.url}?filter=a&sort=-name")
    assert page.column("tasks", "Task") == ["a"]
    page.page.get_by_role("searchbox").fill("B")
    until_equal(lambda: page.column("tasks", "Task"), ["b"])
    before = len(tasks.requests)
    eventually(lambda: len(tasks.requests) > before + 1, 20, what="two more requests")
    assert page.column("tasks", "Task") == ["b"]
    page.page.get_by_role("searchbox").press("Enter")
    page.page.get_by_role("searchbox").fill("nosuch")
    until_equal(lambda: page.column("tasks", "Task"), ["No task has been seen yet."])
    page.page.get_by_role("searchbox").fill("")
    until_equal(lambda: page.column("tasks", "Task"), ["c", "b", "a"])


def test_the_url_contains_order_and_filter(tasks, visit):
    """So a reload keeps them, and a link can be shared."""
    page = visit(tasks.url)
    page.page.get_by_role("searchbox").fill("&")
    page.page.get_by_role("searchbox").fill("")
    page.page.get_by_role("columnheader", name="Run p50").get_by_role("link").click()
    until_equal(lambda: page.column("tasks", "Task"), ["b", "a", "c"])
    assert page.page.url.endswith("/?sort=-runtime_p50&filter=")
    page.page.get_by_role("searchbox").fill("B")
    page.page.reload()
    assert page.column("tasks", "Task") == ["b"]
    assert page.page.get_by_role("searchbox").input_value() == "B"
    page.page.get_by_role("searchbox").fill("")
    until_equal(lambda: page.column("tasks", "Task"), ["b", "a", "c"])


def test_updates_keep_focus_and_scroll_position(tasks, visit):
    """On a phone, tables scroll horizontally."""
    page = visit(tasks.url, viewport=PHONE)
    page.page.get_by_role("columnheader", name="Run p50").get_by_role("link").focus()
    page.page.evaluate("document.querySelector('.wide:has(#tasks)').scrollLeft = 77")
    before = len(tasks.requests)
    tasks.status = statuses.status(tasks=[*tasks.status.tasks, statuses.task("d", 1.0)])
    eventually(lambda: len(tasks.requests) > before + 1, 20)
    eventually(lambda: page.row("tasks", "d"))
    assert page.page.evaluate("document.activeElement.textContent") == "Run p50"
    assert page.page.evaluate("document.querySelector('.wide:has(#tasks)').scrollLeft") == 77


# -- without updates --------------------------------------------------------------------------------------


def test_missing_updates_are_reported_until_the_exporter_is_back(tmp_path, visit, running):
    """For an exporter that is frozen, and one that has stopped and starts again."""
    exporter = running(Exporter(tmp_path, unreachable_url()))
    page = visit(f"http://127.0.0.1:{exporter.port}/")
    page.page.evaluate("window.marker = 'not reloaded'")
    fresh = page.page.locator("#fresh")
    loaded = fresh.inner_text()
    eventually(lambda: fresh.inner_text() != loaded, 10)
    assert "Refresh failed" not in fresh.inner_text()
    exporter.pause()
    eventually(lambda: "Refresh failed" in fresh.inner_text(), 20)
    assert fresh.get_attribute("class") == "stale"
    exporter.resume()
    eventually(lambda: "Refresh failed" not in fresh.inner_text(), 20)
    exporter.stop_cleanly()
    eventually(lambda: "Refresh failed" in fresh.inner_text(), 20)
    at = page.page.locator("#at").inner_text()
    exporter.start().wait_ready()
    eventually(lambda: "Refresh failed" not in fresh.inner_text(), 20)
    assert page.page.locator("#at").inner_text() > at
    assert fresh.get_attribute("class") == ""
    assert page.page.evaluate("window.marker") == "not reloaded"


# -- layout ------------------------------------------------------------------------------------------------


PARTS = ("#at", "#exporter", "#outage", "#broker", "#findings", "#workers", "#queues", "#tasks", "#failures")


def outlines(page: BrowserPage) -> list[str]:
    """Return the HTML of the parts, and the headings with their counts."""
    parts = [page.page.locator(part).evaluate("element => element.outerHTML") for part in PARTS]
    texts = page.page.locator("h2, .more").all_text_contents()
    return [page.page.title(), *texts, *itertools.chain.from_iterable(map(str.splitlines, parts))]


@pytest.mark.parametrize(
    "sample",
    [
        statuses.full_status(),
        statuses.small_status(),
        statuses.status(broker=statuses.broker(up=False)),
    ],
    ids=["full", "small", "broker down"],
)
def test_the_script_renders_the_same_html_as_the_server(visit, sample):
    """The script updates a page of another status."""
    with serve_status(statuses.status(tasks=[statuses.task("before")])) as pages:
        page = visit(pages.url)
        pages.status = sample
        until_equal(lambda: page.row("tasks", "before"), {})
        static = visit(pages.url, java_script_enabled=False)
        by_script, by_server = ("\n".join(outlines(variant)).split("<td") for variant in (page, static))
        assert by_script == by_server


@pytest.mark.parametrize(
    "sample",
    [statuses.small_status(), statuses.status(), statuses.status(broker=statuses.broker(up=False))],
    ids=["findings", "empty", "broker down"],
)
def test_axe_reports_no_serious_violation(visit, sample):
    """In light and dark mode, on a desktop and on a phone."""
    with serve_status(sample) as pages:
        page = visit(pages.url)
        for scheme, viewport in itertools.product(("light", "dark"), (DESKTOP, PHONE)):
            page.page.emulate_media(color_scheme=scheme)
            page.page.set_viewport_size(viewport)
            assert page.axe() == []


def test_axe_reports_low_contrast_and_a_missing_label(visit):
    with serve_status(statuses.small_status()) as pages:
        page = visit(pages.url)
        page.page.evaluate("document.querySelector('label').replaceWith(document.createElement('input'))")
        page.page.evaluate("document.querySelector('h1').style.color = '#eee'")
        assert {violation.partition(":")[0] for violation in page.axe()} == {
            "critical label",
            "serious color-contrast",
        }


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])
def test_on_a_phone_tables_scroll_and_the_page_does_not(visit, has_script):
    with serve_status(statuses.full_status()) as pages:
        page = visit(pages.url, viewport=PHONE, java_script_enabled=has_script)
        assert page.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        widths = page.page.locator(".wide").evaluate_all("all => all.map(table => table.scrollWidth)")
        assert min(widths) > PHONE["width"]


def test_up_and_down_have_different_colors(visit):
    with serve_status(statuses.small_status()) as pages:
        page = visit(pages.url)
        cells = page.page.locator("#workers td.up")
        up, down, _ = cells.evaluate_all("all => all.map(cell => getComputedStyle(cell).color)")
        assert page.column("workers", "State") == ["up", "down", "up"]
        assert up != down


def test_long_names_leave_space_for_other_columns(visit):
    with serve_status(statuses.status(failures=[statuses.failure("x" * 250, exception="y" * 250)])) as pages:
        page = visit(pages.url)
        assert page.page.locator("#failures td").last.bounding_box()["x"] < DESKTOP["width"]


def test_on_a_phone_names_stay_visible_and_texts_wrap(visit):
    with serve_status(statuses.small_status()) as pages:
        page = visit(pages.url, viewport=PHONE)
        page.page.evaluate("document.querySelector('.wide:has(#tasks)').scrollLeft = 300")
        box = page.page.locator("#tasks td").first.bounding_box()
        assert 0 <= box["x"] < PHONE["width"]
        pages.status = statuses.status()
        until_equal(lambda: page.column("queues", "Queue"), [TABLES[1].empty])
        cell = page.page.locator("#queues td").bounding_box()
        assert cell["height"] > 1.5 * page.page.locator("#workers td").bounding_box()["height"], "two lines"


def test_on_a_desktop_no_table_scrolls(visit):
    with serve_status(statuses.small_status()) as pages:
        page = visit(pages.url)
        overflow = "all => all.map(table => table.scrollWidth - table.clientWidth)"
        assert page.page.locator(".wide").evaluate_all(overflow) == [0] * len(TABLES)


# -- responses ---------------------------------------------------------------------------------------------


def test_security_headers_forbid_scripts_of_other_origins(cluster):
    page = cluster.exporter.get("/")
    assert page.headers["content-security-policy"] == POLICY
    assert "unsafe-inline" not in POLICY
    for path in ("/", API, "/static/status.js", "/static/status.css", "/static/icon.svg"):
        response = cluster.exporter.get(path)
        assert (response.status, response.headers["x-content-type-options"]) == (200, "nosniff")
        assert cluster.exporter.get(path, method="POST").status == 405
    assert cluster.exporter.get("/static/nosuch").status == 404
    assert cluster.exporter.get("/static/../page.py").status == 404


def test_the_api_returns_what_its_published_schema_describes(cluster):
    content = status(cluster)
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "at": None}, schema)


def test_the_api_compresses_its_response(cluster):
    content = status(cluster)
    assert content["version"] == 1
    assert content["exporter_version"] == __version__
    assert {worker["name"] for worker in content["workers"]} >= {"one@test", "two@test"}
    plain, zipped = (cluster.exporter.get(API, headers) for headers in ({}, {"Accept-Encoding": "gzip"}))
    assert plain.headers["content-type"] == zipped.headers["content-type"] == "application/json"
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(zipped.body)).keys() == content.keys()


def test_no_status_page_disables_page_and_api(tmp_path, running):
    exporter = running(Exporter(tmp_path, unreachable_url(), "--no-status-page"))
    assert exporter.get(API).status == 404
    assert exporter.get("/runbooks").status == exporter.get("/static/status.css").status == 200
    landing = exporter.get("/")
    assert (landing.status, "<table" in landing.text, "/metrics" in landing.text) == (200, False, True)
    assert landing.headers["content-security-policy"].startswith("default-src 'none';")
    assert landing.headers["x-content-type-options"] == "nosniff"


def test_page_api_and_static_files_require_the_password(tmp_path, visit, running):
    exporter = running(WebConfigExporter(tmp_path, basic_auth_users={"prometheus": HASH}))
    for path in ("/", API, "/static/status.js", "/static/status.css", "/static/icon.svg"):
        assert exporter.get(path).status == 401
        assert exporter.get(path, LOGIN).status == 200
    credentials = {"username": "prometheus", "password": PASSWORD}
    page = visit(f"http://127.0.0.1:{exporter.port}/", http_credentials=credentials)
    at = page.page.locator("#at").inner_text()
    eventually(lambda: page.page.locator("#at").inner_text() > at, 10, what="an update with the password")
