"""The pages in a browser, for real workers and for sample statuses."""

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
from harness import clusters, statuses
from harness.browser import OTHER_HOST, BrowserPage, chromium
from harness.events import publish_events
from harness.exporter import Exporter
from harness.processes import side_by_side
from harness.servers import RedisServer
from harness.statuses import HOSTILE_NAMES, serve_status
from harness.waiting import eventually, until_equal
from harness.web_config import WebConfigExporter, unreachable_url
from harness.workers import Worker
from harness.workers import client as make_client
from msgspec.structs import replace

from celery_exporter import __version__
from celery_exporter.status.columns import TABLES
from celery_exporter.web.pages import site
from celery_exporter.web.pages.layout import POLICY, STATIC
from celery_exporter.web.pages.tables import NARROW_ROWS
from tools.docgen.api import REFERENCE

API = "/api/v1/status"
SCHEMA = REFERENCE / "status-api.schema.json"
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
    page = visit(f"{cluster.url}?rows=all")
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
    page = visit(f"{cluster.url}?rows=all")
    until_equal(lambda: page.row("workers", "killed@test").get("State"), "up", 20)
    worker.kill()
    until_equal(lambda: page.row("workers", "killed@test").get("State"), "down", 20)
    assert page.page.locator("#workers td.down").all_text_contents() == ["down"]


def test_a_failure_is_shown_without_arguments_message_and_traceback(cluster, visit):
    page, static = (
        visit(f"{cluster.url}?rows=all"),
        visit(f"{cluster.url}?rows=all", java_script_enabled=False),
    )
    task = cluster.client.send_task("tasks.fail_with_value_error", args=[SECRET], queue="celery")
    until_equal(lambda: page.row("failures", task.id).get("Exception"), "ValueError", 20)
    row = page.row("failures", task.id)
    assert (row["Task"], row["Worker"]) == ("tasks.fail_with_value_error", "one@test")
    assert re.fullmatch(r"\d\d-\d\d \d\d:\d\d:\d\d", row["Time"])
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
    page = visit(f"{cluster.url}?rows=all", viewport=PHONE)
    for name in HOSTILE_NAMES:
        eventually(lambda name=name: page.row("tasks", name), 20, what=name)
    eventually(lambda: page.row("failures", HOSTILE_NAMES[0]), 20)
    static = visit(f"{cluster.url}?rows=all", java_script_enabled=False, viewport=PHONE)
    for variant in (page, static):
        assert set(HOSTILE_NAMES) <= set(variant.column("tasks", "Task"))
        assert HOSTILE_NAMES[1] in variant.column("failures", "Worker")
        assert variant.page.locator("main script, main img").count() == 0
        assert variant.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert SECRET not in variant.page.content()


def test_the_page_works_without_javascript(cluster, visit):
    cluster.client.send_task("tasks.succeed", queue="second")
    page = visit(f"{cluster.url}?rows=all", java_script_enabled=False)
    eventually(lambda: page.page.reload() and page.row("tasks", "tasks.succeed"), 20)
    eventually(lambda: page.page.reload() and page.row("workers", "two@test").get("Busy") == "0 / 1", 20)
    assert page.page.locator("table").count() == len(TABLES)
    assert page.page.locator("#pause").is_hidden()
    assert page.page.locator("meta[http-equiv=refresh]").get_attribute("content") == "10"
    page.page.get_by_role("searchbox", name="Tasks with the text").fill("SUCC")
    page.page.locator("form:has([data-table=tasks]) button").click()
    assert page.column("tasks", "Task") == ["tasks.succeed"]
    page.page.get_by_role("link", name="Sent /s").click()
    assert page.column("tasks", "Task") == ["tasks.succeed"], "sorting keeps the filter"
    assert page.page.locator("#tasks th[aria-sort=descending]").get_attribute("data-title") == "Sent"


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
        ("Task", ["a", "b", "c"], "ascending"),
        ("Task", ["c", "b", "a"], "descending"),
        ("Run p50", ["b", "a", "c"], "descending"),
        ("Run p50", ["a", "b", "c"], "ascending"),
        ("Oldest", ["b", "a", "c"], "descending"),
        ("Open", ["b", "a", "c"], "descending"),
    ]:
        page.page.locator(f"#tasks th[data-title='{title}'] a").click()
        until_equal(lambda: page.column("tasks", "Task"), order)
        heading = page.page.locator("#tasks th:not([aria-sort=none])")
        assert heading.get_attribute("aria-sort") == direction
        assert heading.inner_text().startswith(title)
    requests = [url for url in page.requests if "sort=" in url]
    assert bool(requests) is not has_script


def test_typing_filters_tasks_and_updates_keep_the_filter(tasks, visit):
    page = visit(f"{tasks.url}?filter=a&sort=-name")
    assert page.column("tasks", "Task") == ["a"]
    page.page.locator("[data-table=tasks]").fill("B")
    until_equal(lambda: page.column("tasks", "Task"), ["b"])
    before = len(tasks.requests)
    eventually(lambda: len(tasks.requests) > before + 1, 20, what="two more requests")
    assert page.column("tasks", "Task") == ["b"]
    page.page.locator("[data-table=tasks]").press("Enter")
    page.page.locator("[data-table=tasks]").fill("nosuch")
    until_equal(lambda: page.column("tasks", "Task"), ["No task has been seen yet."])
    page.page.locator("[data-table=tasks]").fill("")
    until_equal(lambda: page.column("tasks", "Task"), ["c", "b", "a"])


def test_the_url_contains_order_and_filter(tasks, visit):
    """So a reload keeps them, and a link can be shared."""
    page = visit(tasks.url)
    page.page.locator("[data-table=tasks]").fill("&")
    page.page.locator("[data-table=tasks]").fill("")
    page.page.locator("#tasks th[data-title='Run p50'] a").click()
    until_equal(lambda: page.column("tasks", "Task"), ["b", "a", "c"])
    assert page.page.url.endswith("/?sort=-runtime_p50")
    page.page.locator("[data-table=tasks]").fill("B")
    page.page.reload()
    assert page.column("tasks", "Task") == ["b"]
    assert page.page.locator("[data-table=tasks]").input_value() == "B"
    page.page.locator("[data-table=tasks]").fill("")
    until_equal(lambda: page.column("tasks", "Task"), ["b", "a", "c"])


def test_updates_keep_focus_and_scroll_position(tasks, visit):
    """On a narrow window, tables scroll horizontally."""
    page = visit(tasks.url, viewport={"width": 700, "height": 900})
    page.page.locator("#tasks th[data-title='Run p50'] a").focus()
    page.page.evaluate("document.querySelector('.wide:has(#tasks)').scrollLeft = 77")
    before = len(tasks.requests)
    tasks.status = statuses.status(tasks=[*tasks.status.tasks, statuses.task("d", 1.0)])
    eventually(lambda: len(tasks.requests) > before + 1, 20)
    eventually(lambda: page.row("tasks", "d"))
    assert page.page.evaluate("document.activeElement.textContent") == "Run p50"
    assert page.page.evaluate("document.querySelector('.wide:has(#tasks)').scrollLeft") == 77


def test_a_link_in_a_row_keeps_the_focus_where_the_row_goes(visit):
    """Its row gets other values, and another place."""
    sample = statuses.status(workers=[statuses.worker(name, 1.0) for name in ("a", "b", "c")])
    with serve_status(sample) as pages:
        page = visit(f"{pages.url}workers?sort=-processed")
        page.page.evaluate("update()")
        for locator in (page.page.get_by_title("Tasks of b"), page.page.locator("#workers td.part a").nth(1)):
            locator.focus()
            href = locator.get_attribute("href")
            at = pages.status.workers[1].processed + 10.0
            pages.status = replace(sample, workers=[*sample.workers[::2], statuses.worker("b", at)])
            until_equal(lambda: page.column("workers", "Worker"), ["b", "a", "c"], 20)
            assert page.page.evaluate("document.activeElement.getAttribute('href')") == href
            pages.status = sample
            until_equal(lambda: page.column("workers", "Worker"), ["a", "b", "c"], 20)
            assert page.page.evaluate("document.activeElement.getAttribute('href')") == href


def test_a_refresh_waits_while_text_is_selected_or_the_page_is_paused(tasks, visit):
    page = visit(tasks.url)
    shown = page.page.locator("#at")
    pause = page.page.locator("#pause")

    def set_time(at: float) -> None:
        tasks.status = statuses.status(tasks=tasks.status.tasks, at=at)

    def assert_unchanged() -> None:
        before, at = len(tasks.requests), shown.inner_text()
        set_time(tasks.status.at + 100)
        other = visit(tasks.url)
        until_equal(lambda: other.page.locator("#at").inner_text() != at, True, 20)
        eventually(lambda: len(tasks.requests) > before + 1, 20, what="refreshes of the other page")
        assert shown.inner_text() == at

    def assert_refreshes() -> None:
        at = shown.inner_text()
        set_time(tasks.status.at + 100)
        eventually(lambda: shown.inner_text() != at, 20)

    assert_refreshes()
    page.page.locator("h1").select_text()
    until_equal(pause.inner_text, "Paused: text is selected")
    assert_unchanged()
    page.page.evaluate("getSelection().removeAllRanges()")
    until_equal(pause.inner_text, "Pause")
    assert_refreshes()
    pause.click()
    assert (pause.inner_text(), pause.get_attribute("aria-pressed")) == ("Resume", "true")
    assert_unchanged()
    pause.press("Enter")
    assert_refreshes()


# -- charts and times -------------------------------------------------------------------------------------


def test_times_are_local_with_utc_as_tooltip(visit):
    with serve_status(clusters.cluster(2, 2)) as pages:
        page = visit(pages.url, timezone_id="Asia/Kolkata")
        at = page.page.locator("#at")
        until_equal(at.inner_text, "11-22 03:56:40")
        assert at.get_attribute("title") == "2026-11-21 22:26:40.000 UTC"
        assert set(page.page.locator(".zone").all_text_contents()) == {"GMT+5:30"}
        until_equal(lambda: page.page.locator("#chart-wait .axis").inner_text().split()[-1], "03:56")
        static = visit(pages.url, timezone_id="Asia/Kolkata", java_script_enabled=False)
        assert static.page.locator("#fresh").inner_text().startswith("As of 11-21 22:26:40 UTC.")


def test_cursor_keys_show_the_values_of_a_step(visit):
    with serve_status(clusters.cluster(2, 2)) as pages:
        page = visit(pages.url, timezone_id="UTC")
        chart = page.page.locator("#chart-throughput")
        newest = chart.locator(".legend").inner_text()
        chart.focus()
        chart.press("ArrowLeft")
        until_equal(chart.locator(".when").inner_text, "11-21 22:26:35")
        assert page.page.locator(".cursor").count() == page.page.locator(".chart").count(), "in all charts"
        assert chart.locator(".legend").inner_text() != newest
        chart.press("Escape")
        until_equal(page.page.locator(".cursor").count, 0)
        assert chart.locator(".legend").inner_text() == newest
        chart.locator("svg").hover()
        until_equal(lambda: bool(chart.locator(".when").inner_text()), True)


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "links"])
def test_the_range_of_charts_can_be_chosen(visit, has_script):
    with serve_status(clusters.cluster(2, 2)) as pages:
        page = visit(f"{pages.url}?filter=shop", java_script_enabled=has_script)
        line = page.page.locator("#chart-runtime path.warn")
        before = line.get_attribute("d")
        page.page.get_by_role("link", name="6 h").click()
        until_equal(lambda: line.get_attribute("d") != before, True)
        assert page.page.locator(".ranges [aria-current]").inner_text() == "6 h"
        assert page.page.url.endswith("/?filter=shop&range=6h")


def test_restarts_and_new_versions_are_marked_and_listed(visit):
    with serve_status(clusters.cluster(2, 2)) as pages:
        page = visit(pages.url, java_script_enabled=False)
        titles = page.page.locator("#chart-wait title").all_text_contents()
        assert titles == page.page.locator("#marks li").evaluate_all(
            "all => all.map(item => item.lastChild.textContent.trim())"
        )
        assert titles[0].startswith("restart of 12 workers: emails@web-0, ")


def test_charts_of_real_workers(cluster, visit):
    page, static = visit(cluster.url), visit(cluster.url, java_script_enabled=False)
    for variant in (page, static):
        eventually(lambda variant=variant: drawn(variant, "busy"), 40, what="a line for processes")
    cluster.client.send_task("tasks.succeed", queue="second")
    eventually(lambda: drawn(page, "throughput"), 40, what="a line for throughput")
    worker = visit(f"{cluster.url}workers/one@test")
    eventually(lambda: drawn(worker, "busy"), 40, what="a line for one worker")
    assert worker.column("queues", "Queue") == ["celery"]
    queue = visit(f"{cluster.url}queues/second", java_script_enabled=False)
    assert queue.column("workers", "Worker") == ["two@test"]


def drawn(page: BrowserPage, chart: str) -> bool:
    """Return whether a chart has lines, after a reload if the page does not refresh itself."""
    if not page.page.locator(".scripted").count():
        page.page.reload()
    return any(
        page.page.locator(f"#chart-{chart} path").evaluate_all(
            "all => all.map(path => path.getAttribute('d'))"
        )
    )


# -- pages of names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "links"])
@pytest.mark.parametrize("kind", ["workers", "queues"])
def test_links_lead_to_the_pages_of_hostile_names(visit, kind, has_script):
    names = [*HOSTILE_NAMES, "a/b", "..%2f", "%2e%2e", "a?b#c"]
    sample = statuses.status(
        workers=[statuses.worker(name, 1.0) for name in names],
        queues=[statuses.queue(name, 1.0) for name in names],
    )
    with serve_status(sample) as pages:
        page = visit(f"{pages.url}{kind}", java_script_enabled=has_script)
        for name in names:
            page.page.locator(f"#{kind} td a").get_by_text(name, exact=True).click()
            page.page.locator("#facts").wait_for()
            assert page.page.locator("#facts dd").first.inner_text() == name
            if has_script:
                page.page.evaluate("update()")
                assert "failed" not in page.page.locator("#fresh").inner_text()
            page.page.get_by_role("link", name=kind.capitalize()).click()
            page.page.locator(f"#{kind}").wait_for()


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "links"])
def test_tables_are_collapsed_and_expand(visit, has_script):
    with serve_status(LARGE) as pages:
        page = visit(f"{pages.url}workers?filter=web", java_script_enabled=has_script)
        assert len(page.column("workers", "Worker")) == 20
        assert page.column("workers", "State")[:2] == ["down", "up"], "problems first"
        page.page.get_by_role("link", name="show all 80").click()
        until_equal(lambda: len(page.column("workers", "Worker")), 80)
        assert page.page.url.split("#")[0].endswith("/workers?filter=web&rows=all")
        page.page.get_by_role("link", name="show fewer").click()
        until_equal(lambda: len(page.column("workers", "Worker")), 20)


# -- single tasks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])
def test_a_person_finds_out_what_became_of_a_task(cluster, visit, has_script):
    """From a recent failure to the task, to others like it, by its id, and back."""
    task = cluster.client.send_task("tasks.fail_with_value_error", args=[SECRET], queue="celery")
    page = visit(f"{cluster.url}failures", java_script_enabled=has_script)
    link = page.page.locator("#failures").get_by_role("link", name=task.id)
    eventually(lambda: link.count() or (page.page.reload() and None), 20, what="the failure")
    link.click()
    page.page.locator("#attempts").wait_for()
    assert page.page.locator("dd.state").inner_text() == "FAILURE"
    assert page.page.locator("h1").inner_text() == "tasks.fail_with_value_error"
    assert SECRET not in page.page.content()
    page.page.locator("#facts").get_by_role("link", name="tasks.fail_with_value_error").click()
    page.page.locator("#tasks").wait_for()
    assert task.id in page.column("tasks", "Id")
    page.page.get_by_label("State").select_option("SUCCESS")
    page.page.get_by_role("button", name="Search").click()
    page.page.wait_for_url("**state=SUCCESS**")
    until_equal(lambda: page.column("tasks", "Since"), ["No task that is kept is like this."])
    assert "name=tasks.fail_with_value_error" in page.page.url
    page.page.get_by_label("Id, or how it begins").fill(task.id[:20])
    page.page.get_by_role("button", name="Show").click()
    page.page.locator("p.id", has_text=task.id).wait_for()
    page.page.locator("#attempts").get_by_role("link", name="one@test", exact=True).click()
    page.page.locator("h1", has_text="Worker one@test").wait_for()


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])
def test_a_person_asks_why_a_task_waits(cluster, visit, has_script):
    task = cluster.client.send_task("app.waits", queue="idle")
    eventually(lambda: cluster.exporter.get(f"/task/{task.id}").status == 200, 20)
    page = visit(f"{cluster.url}task/{task.id}", java_script_enabled=has_script)
    page.page.get_by_role("link", name="Look at the broker now").click()
    page.page.locator("#explain .note").wait_for()
    assert "idle" in page.page.locator("#explain").inner_text()
    assert "This follows from:" in page.page.locator("#explain").inner_text()
    if has_script:  # axe needs it
        assert page.axe() == []


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])
@pytest.mark.parametrize(("kind", "title"), [("workers", "Worker"), ("queues", "Queue")])
def test_one_click_leads_from_a_row_to_its_tasks(visit, kind, title, has_script):
    name = {"workers": LARGE_TASK.worker, "queues": LARGE_TASK.queue_name}[kind]
    with serve_status(LARGE, SINGLE_TASKS) as pages:
        page = visit(f"{pages.url}{kind}?rows=all", java_script_enabled=has_script)
        if has_script:
            page.page.evaluate("update()")
        page.page.locator(f"#{kind}").get_by_title(f"Tasks of {name}", exact=True).click()
        page.page.locator("#tasks").wait_for()
        assert set(page.column("tasks", title)) == {name}


@pytest.mark.parametrize("path", ["tasks", "failures", "task/{uuid}"])
def test_ids_are_copied_by_the_keyboard(visit, path):
    with serve_status(LARGE, SINGLE_TASKS) as pages:
        page = visit(pages.url + path.format(uuid=LARGE_TASK.uuid), permissions=["clipboard-read"])
        button = page.page.locator(".copy").first
        uuid = (button.get_attribute("title") or "").removeprefix("Copy ")
        button.press("Enter")
        until_equal(page.page.locator("#copied").inner_text, "Copied.")
        assert page.page.evaluate("navigator.clipboard.readText()") == uuid
        assert page.page.locator("#pause").inner_text() == "Pause"
        assert page.axe() == []
        until_equal(page.page.locator("#copied").inner_text, "", 20)


def test_ids_are_copied_without_the_clipboard_api(visit):
    """With http and another host than localhost."""
    with serve_status(LARGE, SINGLE_TASKS) as pages:
        page = visit(f"http://{OTHER_HOST}:{pages.port}/task/{LARGE_TASK.uuid}")
        assert page.page.evaluate("navigator.clipboard") is None
        page.page.locator("p.id .copy").click()
        until_equal(page.page.locator("#copied").inner_text, "Copied.")
        page.page.goto(f"http://{OTHER_HOST}:{pages.port}/tasks")
        search = page.page.get_by_label("Id, or how it begins")
        search.press("Control+v")
        assert search.input_value() == LARGE_TASK.uuid


def test_an_id_that_cannot_be_copied_is_selected(visit):
    with serve_status(LARGE, SINGLE_TASKS) as pages:
        page = visit(f"http://{OTHER_HOST}:{pages.port}/tasks")
        page.page.evaluate("document.execCommand = () => false")
        page.page.get_by_title(f"Copy {LARGE_TASK.uuid}").click()
        until_equal(lambda: page.page.evaluate("String(getSelection())"), LARGE_TASK.uuid)
        assert page.page.locator("#copied").inner_text().startswith("Selected:")
        until_equal(page.page.locator("#pause").inner_text, "Paused: text is selected")


def test_without_scripts_there_are_no_copy_buttons(visit):
    with serve_status(LARGE, SINGLE_TASKS) as pages:
        page = visit(f"{pages.url}tasks", java_script_enabled=False)
        assert page.page.locator(".copy").count() == 50
        assert page.page.locator(".copy:visible").count() == 0


def test_a_search_refreshes_and_its_next_page_begins_where_it_ends(visit):
    finder = clusters.MadeUpTasks(LARGE)
    with serve_status(LARGE, finder) as pages:
        page = visit(f"{pages.url}tasks")
        before = page.page.locator("#older").get_attribute("href")
        newest = replace(finder.tasks[0], uuid="new", since=LARGE.at + 1)
        finder.add(newest)
        until_equal(lambda: page.column("tasks", "Id")[0], "new", 30)
        assert page.page.locator("#older").get_attribute("href") != before
        last = page.column("tasks", "Id")[-1]
        page.page.locator("#older").click()
        page.page.get_by_role("link", name="newest tasks").wait_for()
        uuids = [task.uuid for task in finder.tasks]
        assert page.column("tasks", "Id")[0] == uuids[uuids.index(last) + 1]


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


PARTS = ("nav.pages", "#exporter", "#outage", "#findings", "#facts", "#charts", "table", ".more")


#: Pages, each with a name in the full status if it needs one.
PAGES = [page.path + ("name-010" if page.is_named else "") for page in site.PAGES]
LARGE = clusters.cluster(80, 30)
SINGLE_TASKS = clusters.MadeUpTasks(LARGE)
LARGE_TASK = SINGLE_TASKS.tasks[3]
TASK_PAGES = ["/tasks", "/tasks?state=FAILURE&min_runtime=1s", f"/task/{LARGE_TASK.uuid}"]


def outlines(page: BrowserPage) -> list[str]:
    """Return the HTML of the parts that the script refreshes."""
    parts = [
        element
        for part in PARTS
        for element in page.page.locator(part).evaluate_all("all => all.map(element => element.outerHTML)")
    ]
    texts = page.page.locator("h2, #fresh time").all_text_contents()
    return [page.page.title(), *texts, *itertools.chain.from_iterable(map(str.splitlines, parts))]


@pytest.mark.parametrize(
    ("path", "sample"),
    [
        *((path, statuses.full_status()) for path in PAGES),
        *((path, LARGE) for path in TASK_PAGES),
        ("/", statuses.small_status()),
        ("/", LARGE),
        ("/", statuses.status(broker=statuses.broker(up=False))),
        ("/?sort=name&workers.sort=-processed&queues.filter=Q&rows=all&range=6h", LARGE),
    ],
    ids=[*PAGES, *TASK_PAGES, "small", "large", "broker down", "chosen"],
)
def test_the_script_renders_the_same_html_as_the_server(visit, path, sample):
    """The script updates a page of another status. In other zones than UTC it shows local times."""
    before = statuses.status(
        tasks=[statuses.task("before")],
        workers=[statuses.worker("name-010", up=False)],
        queues=[statuses.queue("name-010")],
        at=statuses.NOW - 1_000,
    )
    with serve_status(before, SINGLE_TASKS) as pages:
        url = pages.url + path.removeprefix("/")
        page = visit(url, timezone_id="UTC")
        at = page.page.locator("#at").inner_text()
        pages.status = sample
        eventually(lambda: page.page.locator("#at").inner_text() != at, 20)
        static = visit(url, java_script_enabled=False)
        by_script, by_server = ("\n".join(outlines(variant)).split("<td") for variant in (page, static))
        assert by_script == by_server


LARGE_PAGES = [
    *TASK_PAGES,
    "/?rows=all&workers.rows=all",
    "/workers?rows=all",
    "/queues?rows=all",
    "/failures",
    f"/workers/{LARGE.workers[0].name}",
    f"/queues/{LARGE.queues[0].name}",
]


@pytest.mark.parametrize(
    ("path", "sample"),
    [
        *((path, LARGE) for path in LARGE_PAGES),
        *(("/", sample) for sample in (statuses.small_status(), statuses.status())),
        ("/", statuses.status(broker=statuses.broker(up=False))),
    ],
    ids=[*LARGE_PAGES, "findings", "empty", "broker down"],
)
def test_axe_reports_no_serious_violation(visit, path, sample):
    """In light and dark mode, on a desktop and on a phone."""
    with serve_status(sample, SINGLE_TASKS) as pages:
        page = visit(pages.url + path.removeprefix("/"))
        for scheme, viewport in itertools.product(("light", "dark"), (DESKTOP, PHONE)):
            page.page.emulate_media(color_scheme=scheme)
            page.page.set_viewport_size(viewport)
            assert page.axe() == []


def test_axe_reports_low_contrast_and_a_missing_label(visit):
    with serve_status(statuses.small_status()) as pages:
        page = visit(pages.url)
        page.page.evaluate("document.querySelector('.filter').replaceWith(document.createElement('input'))")
        page.page.evaluate("document.querySelector('h1').style.color = '#eee'")
        assert {violation.partition(":")[0] for violation in page.axe()} == {
            "critical label",
            "serious color-contrast",
        }


#: Returns where the cells of all rows that are shown are, in one call: a refresh may replace them in between.
BOXES = """[...document.querySelectorAll("tr")].filter((row) => row.checkVisibility())
  .flatMap((row) => [...row.querySelectorAll("td")]).map((cell) => cell.getBoundingClientRect().toJSON())"""


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])
@pytest.mark.parametrize("path", [*PAGES, *TASK_PAGES])
def test_on_a_phone_all_columns_are_visible_without_scrolling_sideways(visit, path, has_script):
    with serve_status(statuses.full_status(), SINGLE_TASKS) as pages:
        url = pages.url + path.removeprefix("/")
        page = visit(url, viewport=PHONE, java_script_enabled=has_script)
        assert page.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        for box in page.page.evaluate(BOXES):
            assert 0 <= box["left"] < box["right"] <= PHONE["width"]
        for link in page.page.locator("th a").all():
            assert link.is_visible(), "cards can be sorted"


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])
@pytest.mark.parametrize(
    ("path", "height"), [("/", 5_500), ("/tasks", 2_000), ("/workers", 2_000), ("/failures", 3_000)]
)
def test_on_a_phone_long_tables_are_collapsed(visit, path, height, has_script):
    with serve_status(LARGE, SINGLE_TASKS) as pages:
        url = pages.url + path.removeprefix("/")
        page = visit(url, viewport=PHONE, java_script_enabled=has_script)
        assert page.page.evaluate("document.documentElement.scrollHeight") < height
        table = page.page.locator(".wide").last
        rows, more = table.locator("tbody tr:visible"), table.locator("xpath=../p")
        assert rows.count() == NARROW_ROWS
        assert more.inner_text().startswith("show all "), (
            "the number of hidden rows is another one on a phone"
        )
        more.get_by_role("link").click()
        until_equal(lambda: rows.count() > NARROW_ROWS, True)
        assert rows.count() == table.locator("tbody tr").count()
        more.get_by_role("link", name="show fewer").click()
        until_equal(rows.count, NARROW_ROWS)
        if has_script:
            page.page.set_viewport_size(DESKTOP)
            assert rows.count() > NARROW_ROWS, "a desktop shows more"


def test_on_a_phone_charts_are_in_one_row(visit):
    with serve_status(LARGE) as pages:
        page = visit(pages.url, viewport=PHONE)
        tops = page.evaluate_all(".chart", "all => all.map(chart => chart.offsetTop)")
        assert (len(tops), len(set(tops))) == (6, 1)
        page.page.locator("#chart-busy").focus()
        until_equal(lambda: page.page.locator("#chart-busy").bounding_box()["x"] < PHONE["width"] / 2, True)


def test_up_and_down_have_different_colors(visit):
    with serve_status(statuses.small_status()) as pages:
        page = visit(pages.url)
        colors = "all => all.map(cell => getComputedStyle(cell).color)"
        down, up, _ = page.evaluate_all("#workers td.up", colors)
        assert page.column("workers", "State") == ["down", "up", "up"]
        assert up != down


def test_long_names_leave_space_for_other_columns(visit):
    with serve_status(statuses.status(failures=[statuses.failure("x" * 250, exception="y" * 250)])) as pages:
        page = visit(pages.url)
        assert page.page.locator("#failures td").last.bounding_box()["x"] < DESKTOP["width"]


def test_on_a_phone_long_texts_wrap(visit):
    with serve_status(statuses.status()) as pages:
        page = visit(pages.url, viewport=PHONE)
        cell = page.page.locator("#queues td").bounding_box()
        assert cell["height"] > 1.5 * page.page.locator("#workers td").bounding_box()["height"], "two lines"


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])
@pytest.mark.parametrize("path", ["/", *TASK_PAGES, "/failures", "/workers"])
def test_on_a_desktop_no_table_scrolls(visit, path, has_script):
    """Ids of tasks, and times with milliseconds, are on it."""
    with serve_status(LARGE, SINGLE_TASKS) as pages:
        page = visit(pages.url + path.removeprefix("/"), java_script_enabled=has_script)
        overflow = "all => all.map(table => table.scrollWidth - table.clientWidth)"
        assert set(page.evaluate_all(".wide", overflow)) == {0}


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_ids_do_not_wrap(visit, viewport):
    with serve_status(LARGE, SINGLE_TASKS) as pages:
        page = visit(f"{pages.url}task/{SINGLE_TASKS.tasks[0].uuid}", viewport=viewport)
        heights = "all => all.map(id => id.getClientRects().length)"
        assert set(page.evaluate_all(".id a, .id code", heights)) == {1}


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])
def test_a_workflow_is_an_indented_tree(visit, has_script):
    with serve_status(LARGE, SINGLE_TASKS) as pages:
        page = visit(f"{pages.url}task/{LARGE_TASK.uuid}", java_script_enabled=has_script)
        if has_script:
            page.page.evaluate("update()")
        lefts = page.evaluate_all(
            "#workflow td:first-child a", "all => all.map(link => link.getBoundingClientRect().left)"
        )
        root, child, grandchild, other_child = lefts
        assert root < child == other_child < grandchild
        assert page.column("workflow", "Parent")[1] == LARGE_TASK.uuid[:8]


def test_a_workflow_that_begins_while_the_page_is_open_is_shown(visit):
    finder = clusters.MadeUpTasks(LARGE, count=0)
    task = replace(LARGE_TASK, root_id=None, parent_id=None)
    finder.add(task)
    with serve_status(LARGE, finder) as pages:
        page = visit(f"{pages.url}task/{task.uuid}")
        assert page.page.locator("#workflow").is_hidden()
        finder.add(replace(task, uuid="sent by it", root_id=task.uuid, parent_id=task.uuid))
        page.page.evaluate("update()")
        page.page.locator("#workflow").get_by_text("sent by it").wait_for()


# -- responses ---------------------------------------------------------------------------------------------


def test_security_headers_forbid_scripts_of_other_origins(cluster):
    page = cluster.exporter.get("/")
    assert page.headers["content-security-policy"] == POLICY
    assert "unsafe-inline" not in POLICY
    for path in ("/", API, *(f"/static/{name}" for name in STATIC)):
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
    assert exporter.get("/runbooks").status == exporter.get("/static/pages.css").status == 200
    landing = exporter.get("/")
    assert (landing.status, "<table" in landing.text, "/metrics" in landing.text) == (200, False, True)
    assert landing.headers["content-security-policy"].startswith("default-src 'none';")
    assert landing.headers["x-content-type-options"] == "nosniff"


def test_page_api_and_static_files_require_the_password(tmp_path, visit, running):
    exporter = running(WebConfigExporter(tmp_path, basic_auth_users={"prometheus": HASH}))
    for path in ("/", API, *(f"/static/{name}" for name in STATIC)):
        assert exporter.get(path).status == 401
        assert exporter.get(path, LOGIN).status == 200
    credentials = {"username": "prometheus", "password": PASSWORD}
    page = visit(f"http://127.0.0.1:{exporter.port}/", http_credentials=credentials)
    at = page.page.locator("#at").inner_text()
    eventually(lambda: page.page.locator("#at").inner_text() > at, 10, what="an update with the password")
