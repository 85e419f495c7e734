"""The status page in a browser, of real workers, and of statuses made by hand where those can't be had."""

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
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
#: Pages that are open at a time, how often each asks, and for how long they are watched, in seconds.
CROWD, EVERY, WATCHED = 10, 2.0, 6.0


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., BrowserPage]]:
    """`visit(url, **options of the context)` opens a page; none may have anything to complain of."""
    with ExitStack() as stack:
        visitors: list[tuple[BrowserPage, str]] = []

        def open_page(url: str, **options: Any) -> BrowserPage:
            visitor = BrowserPage(browser, url, **{"viewport": WIDE, **options})
            stack.callback(visitor.close)
            visitors.append((visitor, url))
            return visitor

        yield open_page
        for visitor, url in visitors:
            assert visitor.problems() == []
            places = {urlsplit(asked).netloc for asked in visitor.requests if not asked.startswith("data:")}
            assert places == {urlsplit(url).netloc}, "it asks nobody else"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Return a broker, an exporter, two workers and a client, for all tests here."""
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(tmp_path_factory.mktemp("redis")))
        exporter = Exporter(
            tmp_path_factory.mktemp("exporter"), server.url, *("-Q", "idle"), *("--worker-timeout", "6")
        )
        stack.enter_context(exporter).connected()
        stack.callback(exporter.stop_cleanly)
        one = Worker(tmp_path_factory.mktemp("one"), server.url, "one@test", queues="celery")
        two = Worker(tmp_path_factory.mktemp("two"), server.url, "two@test", queues="second", pool="solo")
        for each in (one, two):
            stack.callback(each.kill)
            each.start()
        for each in (one, two):
            each.wait_ready()
        client = stack.enter_context(make_client(server.url))
        url = f"http://127.0.0.1:{exporter.port}/"
        yield SimpleNamespace(server=server, exporter=exporter, client=client, url=url)


def status(cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.exporter.get(API).text)
    return found


# -- what happens there ------------------------------------------------------------------------------------


def test_rows_appear_by_themselves_and_numbers_change(cluster, visit):
    page = visit(cluster.url)
    page.page.evaluate("window.kept = 'not loaded anew'")
    until_equal(lambda: page.row("workers", "one@test").get("State"), "up", 20)
    until_equal(lambda: page.row("workers", "one@test").get("Busy"), "0 / 2", 20)
    until_equal(lambda: page.row("workers", "two@test").get("State"), "up", 20)
    until_equal(lambda: page.row("queues", "second").get("Consumers"), "1", 20)
    assert page.row("tasks", "app.unheard_of") == {}
    for _ in range(3):
        cluster.client.send_task("app.unheard_of", queue="idle")
    until_equal(lambda: page.row("queues", "idle").get("Length"), "3", 20)
    until_equal(lambda: page.row("tasks", "app.unheard_of").get("Open"), "3", 20)
    cluster.client.send_task("tasks.succeed", queue="second")
    until_equal(lambda: page.row("workers", "two@test").get("Processed"), "1", 20)
    eventually(lambda: page.row("tasks", "tasks.succeed").get("Succeeded", "") > "0.00", 20)
    page.page.locator("#findings li.warning", has_text="messages wait in queues").wait_for()
    assert page.page.evaluate("window.kept") == "not loaded anew"


def test_the_row_of_a_worker_that_dies_turns_to_down(cluster, visit, tmp_path, running):
    worker = running(Worker(tmp_path, cluster.server.url, "mortal@test", queues="mortal", concurrency=1))
    page = visit(cluster.url)
    until_equal(lambda: page.row("workers", "mortal@test").get("State"), "up", 20)
    worker.kill()
    until_equal(lambda: page.row("workers", "mortal@test").get("State"), "down", 20)
    assert page.page.locator("#workers td.down").all_text_contents() == ["down"]


def test_a_failure_is_told_without_arguments_text_and_traceback(cluster, visit):
    page, plain = visit(cluster.url), visit(cluster.url, java_script_enabled=False)
    sent = cluster.client.send_task("tasks.fail_with_value_error", args=[SECRET], queue="celery")
    until_equal(lambda: page.row("failures", sent.id).get("Exception"), "ValueError", 20)
    row = page.row("failures", sent.id)
    assert (row["Task"], row["Worker"]) == ("tasks.fail_with_value_error", "one@test")
    assert re.fullmatch(r"\d\d-\d\d \d\d:\d\d:\d\d", row["Time (UTC)"])
    plain.page.reload()
    assert plain.row("failures", sent.id) == row
    for text in (page.page.content(), plain.page.content(), cluster.exporter.get(API).text):
        assert SECRET not in text
        assert "Traceback" not in text
        assert "raise" not in text


def test_hostile_names_are_text(cluster, visit):
    """Of tasks as clients name them, workers and exceptions as events do; with a script and without."""
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
    plain = visit(cluster.url, java_script_enabled=False, viewport=PHONE)
    for one in (page, plain):
        assert set(HOSTILE_NAMES) <= set(one.column("tasks", "Task"))
        assert HOSTILE_NAMES[1] in one.column("failures", "Worker")
        assert one.page.locator("main script, main img").count() == 0
        assert one.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert SECRET not in one.page.content()


def test_the_page_works_without_a_script(cluster, visit):
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
    assert page.column("tasks", "Task") == ["tasks.succeed"], "a filter stays when the order changes"
    assert page.page.locator("th[aria-sort=descending]").inner_text() == "Sent"


# -- what people do there ----------------------------------------------------------------------------------


@pytest.fixture
def tasks():
    """Serve a page with three tasks; `sort` is by what."""
    made = [statuses.task("b", 2.0), statuses.task("c"), statuses.task("a", 1.0)]
    with serve_status(statuses.status(tasks=made)) as source:
        yield source


@pytest.mark.parametrize("scripted", [True, False], ids=["script", "links"])
def test_tasks_are_sorted_by_a_click(tasks, visit, scripted):
    page = visit(tasks.url, java_script_enabled=scripted)
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
        found = page.page.locator("#tasks th:not([aria-sort=none])")
        assert found.get_attribute("aria-sort") == direction
        assert found.inner_text().startswith(title)
    documents = [asked for asked in page.requests if "sort=" in asked]  # which the server was asked for
    assert bool(documents) is not scripted


def test_tasks_are_filtered_as_one_types_and_stay_so(tasks, visit):
    page = visit(f"{tasks.url}?filter=a&sort=-name")
    assert page.column("tasks", "Task") == ["a"]
    page.page.get_by_role("searchbox").fill("B")
    until_equal(lambda: page.column("tasks", "Task"), ["b"])
    asked = len(tasks.requests)
    eventually(lambda: len(tasks.requests) > asked + 1, 20, what="two more answers")
    assert page.column("tasks", "Task") == ["b"]
    page.page.get_by_role("searchbox").press("Enter")
    page.page.get_by_role("searchbox").fill("nosuch")
    until_equal(lambda: page.column("tasks", "Task"), ["No task has been seen yet."])
    page.page.get_by_role("searchbox").fill("")
    until_equal(lambda: page.column("tasks", "Task"), ["c", "b", "a"])


def test_order_and_filter_stay_in_the_address(tasks, visit):
    """So that they outlast loading it anew, and can be sent to somebody."""
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


def test_what_a_person_holds_stays_while_numbers_change(tasks, visit):
    """The focus, and where one has scrolled to."""
    page = visit(tasks.url, viewport=PHONE)
    page.page.get_by_role("columnheader", name="Run p50").get_by_role("link").focus()
    page.page.evaluate("document.querySelector('.wide:has(#tasks)').scrollLeft = 77")
    asked = len(tasks.requests)
    tasks.status = statuses.status(tasks=[*tasks.status.tasks, statuses.task("d", 1.0)])
    eventually(lambda: len(tasks.requests) > asked + 1, 20)
    eventually(lambda: page.row("tasks", "d"))
    assert page.page.evaluate("document.activeElement.textContent") == "Run p50"
    assert page.page.evaluate("document.querySelector('.wide:has(#tasks)').scrollLeft") == 77


# -- when there is no news ---------------------------------------------------------------------------------


def test_no_news_is_said_and_goes_away_by_itself(tmp_path, visit, running):
    """Of an exporter that hangs, one that has ended, and one that is back."""
    exporter = running(Exporter(tmp_path, unreachable_url()))
    page = visit(f"http://127.0.0.1:{exporter.port}/")
    page.page.evaluate("window.kept = 'not loaded anew'")
    fresh = page.page.locator("#fresh")
    loaded = fresh.inner_text()
    eventually(lambda: fresh.inner_text() != loaded, 10)
    assert "No news" not in fresh.inner_text()
    exporter.pause()
    eventually(lambda: "Refresh failed" in fresh.inner_text(), 20)
    assert fresh.get_attribute("class") == "stale"
    exporter.resume()
    eventually(lambda: "No news" not in fresh.inner_text(), 20)
    exporter.stop_cleanly()
    eventually(lambda: "Refresh failed" in fresh.inner_text(), 20)
    at = page.page.locator("#at").inner_text()
    exporter.start().wait_ready()
    eventually(lambda: "No news" not in fresh.inner_text(), 20)
    assert page.page.locator("#at").inner_text() > at
    assert fresh.get_attribute("class") == ""
    assert page.page.evaluate("window.kept") == "not loaded anew"


# -- how it looks ------------------------------------------------------------------------------------------


PARTS = ("#at", "#exporter", "#broker", "#findings", "#workers", "#queues", "#tasks", "#failures")


def outlines(visitor: BrowserPage) -> list[str]:
    """Return the parts as they stand in the page, attributes and all, and the counts beside them."""
    parts = [visitor.page.locator(part).evaluate("each => each.outerHTML") for part in PARTS]
    texts = visitor.page.locator("h2, .more").all_text_contents()
    return [visitor.page.title(), *texts, *itertools.chain.from_iterable(map(str.splitlines, parts))]


@pytest.mark.parametrize(
    "made",
    [
        statuses.full_status(),
        statuses.small_status(),
        statuses.status(broker=statuses.broker(up=False)),
    ],
    ids=["everything", "ordinary", "broker down"],
)
def test_the_script_says_what_the_server_says(visit, made):
    """To the letter, of each kind of value. A page that was of another status is made one of this."""
    with serve_status(statuses.status(tasks=[statuses.task("before")])) as source:
        page = visit(source.url)
        source.status = made
        until_equal(lambda: page.row("tasks", "before"), {})
        plain = visit(source.url, java_script_enabled=False)
        theirs, ours = ("\n".join(outlines(one)).split("<td") for one in (page, plain))
        assert theirs == ours


@pytest.mark.parametrize(
    "made",
    [statuses.small_status(), statuses.status(), statuses.status(broker=statuses.broker(up=False))],
    ids=["findings", "empty", "broker down"],
)
def test_axe_finds_nothing_serious(visit, made):
    """In light and dark, on a desk and on a phone."""
    with serve_status(made) as source:
        page = visit(source.url)
        for scheme, window in itertools.product(("light", "dark"), (WIDE, PHONE)):
            page.page.emulate_media(color_scheme=scheme)
            page.page.set_viewport_size(window)
            assert page.axe() == []


def test_axe_would_find_what_cannot_be_read_or_told(visit):
    with serve_status(statuses.small_status()) as source:
        page = visit(source.url)
        page.page.evaluate("document.querySelector('label').replaceWith(document.createElement('input'))")
        page.page.evaluate("document.querySelector('h1').style.color = '#eee'")
        assert {found.partition(":")[0] for found in page.axe()} == {
            "critical label",
            "serious color-contrast",
        }


@pytest.mark.parametrize("scripted", [True, False], ids=["script", "no script"])
def test_a_phone_scrolls_tables_and_not_the_page(visit, scripted):
    with serve_status(statuses.full_status()) as source:
        page = visit(source.url, viewport=PHONE, java_script_enabled=scripted)
        assert page.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        wide = page.page.locator(".wide").evaluate_all("all => all.map(each => each.scrollWidth)")
        assert min(wide) > PHONE["width"]


def test_what_is_bad_does_not_look_good(visit):
    with serve_status(statuses.small_status()) as source:
        page = visit(source.url)
        cells = page.page.locator("#workers td.up")
        up, down, _ = cells.evaluate_all("all => all.map(each => getComputedStyle(each).color)")
        assert page.column("workers", "State") == ["up", "down", "up"]
        assert up != down


def test_long_names_do_not_push_the_other_columns_away(visit):
    with serve_status(statuses.status(failures=[statuses.failure("x" * 250, exception="y" * 250)])) as source:
        page = visit(source.url)
        assert page.page.locator("#failures td").last.bounding_box()["x"] < WIDE["width"]


def test_a_phone_keeps_names_in_sight_and_has_no_text_cut_off(visit):
    with serve_status(statuses.small_status()) as source:
        page = visit(source.url, viewport=PHONE)
        page.page.evaluate("document.querySelector('.wide:has(#tasks)').scrollLeft = 300")
        box = page.page.locator("#tasks td").first.bounding_box()
        assert 0 <= box["x"] < PHONE["width"]
        source.status = statuses.status()
        until_equal(lambda: page.column("queues", "Queue"), [TABLES[1].empty])
        said = page.page.locator("#queues td").bounding_box()
        assert said["height"] > 1.5 * page.page.locator("#workers td").bounding_box()["height"], "two lines"


def test_no_table_needs_scrolling_on_a_desk(visit):
    with serve_status(statuses.small_status()) as source:
        page = visit(source.url)
        spare = "all => all.map(each => each.scrollWidth - each.clientWidth)"
        assert page.page.locator(".wide").evaluate_all(spare) == [0] * len(TABLES)


# -- who gets it -------------------------------------------------------------------------------------------


def test_what_is_sent_with_it_keeps_scripts_of_others_out(cluster):
    page = cluster.exporter.get("/")
    assert page.headers["content-security-policy"] == POLICY
    assert "unsafe-inline" not in POLICY
    for path in ("/", API, "/static/status.js", "/static/status.css", "/static/icon.svg"):
        answer = cluster.exporter.get(path)
        assert (answer.status, answer.headers["x-content-type-options"]) == (200, "nosniff")
        assert cluster.exporter.get(path, method="POST").status == 405
    assert cluster.exporter.get("/static/nosuch").status == 404
    assert cluster.exporter.get("/static/../page.py").status == 404


def test_the_api_answers_by_its_published_schema(cluster):
    answer = status(cluster)
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(answer, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**answer, "at": None}, schema)


def test_the_api_compresses_its_answer(cluster):
    found = status(cluster)
    assert found["version"] == 1
    assert found["exporter_version"] == __version__
    assert {one["name"] for one in found["workers"]} >= {"one@test", "two@test"}
    plain, zipped = (cluster.exporter.get(API, headers) for headers in ({}, {"Accept-Encoding": "gzip"}))
    assert plain.headers["content-type"] == zipped.headers["content-type"] == "application/json"
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(zipped.body)).keys() == found.keys()


def test_it_can_be_switched_off(tmp_path, running):
    exporter = running(Exporter(tmp_path, unreachable_url(), "--no-status-page"))
    assert exporter.get(API).status == 404
    assert exporter.get("/runbooks").status == exporter.get("/static/status.css").status == 200
    landing = exporter.get("/")
    assert (landing.status, "<table" in landing.text, "/metrics" in landing.text) == (200, False, True)
    assert landing.headers["content-security-policy"].startswith("default-src 'none';")
    assert landing.headers["x-content-type-options"] == "nosniff"


def test_it_wants_the_password_as_the_rest_does(tmp_path, visit, running):
    exporter = running(WebConfigExporter(tmp_path, basic_auth_users={"prometheus": HASH}))
    for path in ("/", API, "/static/status.js", "/static/status.css", "/static/icon.svg"):
        assert exporter.get(path).status == 401
        assert exporter.get(path, LOGIN).status == 200
    credentials = {"username": "prometheus", "password": PASSWORD}
    page = visit(f"http://127.0.0.1:{exporter.port}/", http_credentials=credentials)
    at = page.page.locator("#at").inner_text()
    eventually(lambda: page.page.locator("#at").inner_text() > at, 10, what="an update behind the login")
