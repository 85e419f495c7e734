"""Unknown is not 0: sent tasks without task-sent events, and rates while the broker is down."""

from __future__ import annotations

import html
import json
import threading
import time
from typing import Any

import pytest
from harness.broker_marks import on_redis
from harness.exporter import SCRAPER, Exporter, run_cli
from harness.servers import RabbitServer, RedisServer
from harness.waiting import eventually, until_equal
from harness.workers import Worker
from harness.workers import client as make_client
from unit.web.pages.test_site import Parsed

from celery_exporter.status.columns import UNKNOWN

#: For detecting a broken connection, and for the back-off before the next attempt.
RECONNECT_SECONDS = 45.0
TASK = "tasks.succeed"
PENDING = {"state": "PENDING", "task_name": TASK}


def status(app: Exporter) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(app.get("/api/v1/status").text)
    return answer


def task_of(app: Exporter) -> dict[str, Any]:
    """Return the status of the task; empty while it is unknown."""
    return next((task for task in status(app)["tasks"] if task["name"] == TASK), {})


def rates(app: Exporter) -> dict[str, float | None]:
    return task_of(app).get("rates", {})


def finding(app: Exporter, check: str) -> dict[str, Any]:
    return next((found for found in status(app)["findings"] if found["check"] == check), {})


@on_redis
def test_without_task_sent_events_no_surface_shows_0_sent_tasks(running, exporter, worker, broker):
    """A real worker with -E, and a client without task_send_sent_event; then another one that has it."""
    quiet = {"task_send_sent_event": False}
    app = running(exporter()).connected()
    running(worker("w@test", **quiet))
    # Without task-sent, the queue is that which the worker consumes.
    eventually(lambda: app.value("celery_worker_pool_size", worker="w@test"), 30)
    with make_client(broker.url, **quiet) as client:
        for _ in range(20):
            client.send_task(TASK)
        until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 20, 30)
        eventually(lambda: (rates(app).get("SUCCESS") or 0) > 0, 20)
        assert app.value("celery_tasks_total", **PENDING) is None
        assert app.value("celery_tasks_in_flight", **PENDING) is None
        assert app.value("celery_tasks_total", state="FAILURE", task_name=TASK) == 0, "which is known"
        assert app.total("celery_exporter_events_total", type="task-sent") == 0, "which is known, too"
        assert rates(app)["PENDING"] is None
        assert (rates(app)["RECEIVED"] or 0) > 0
        message = eventually(lambda: finding(app, "task-sent-events"), 20)["message"]
        assert "; no client publishes task-sent: " in message
        assert cells(app)["Sent"] == UNKNOWN

        stopping = threading.Event()

        def send() -> None:
            while not stopping.wait(0.1):
                client.send_task(TASK)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            command = run_cli("doctor", "--json", "--broker-url", broker.url, "--seconds", "20", deadline=60)
        finally:
            stopping.set()
            sender.join()
    (report,) = [
        found for found in json.loads(command.stdout)["findings"] if found["check"] == "task-sent-events"
    ]
    assert report["severity"] == "warning"
    assert "tasks a second; no client publishes task-sent: " in report["message"]

    for _ in range(3):
        app.samples(SCRAPER)
    with make_client(broker.url) as client:
        client.send_task(TASK)
        until_equal(lambda: app.value("celery_tasks_total", **PENDING), 1, 20)
        assert app.samples(SCRAPER).value("celery_tasks_total", **PENDING) == 0, "so increase() includes it"
        until_equal(lambda: app.samples(SCRAPER).value("celery_tasks_total", **PENDING), 1, 20)
        until_equal(lambda: app.value("celery_tasks_in_flight", **PENDING), 0, 20)
        eventually(lambda: (rates(app)["PENDING"] or 0) > 0, 20)
    until_equal(lambda: finding(app, "task-sent-events").get("severity"), "ok", 20)


def cells(app: Exporter) -> dict[str, str]:
    """Return the cells of the task on the overview by the titles of the columns, without a script."""
    titles, *rows = Parsed(app.get("/?rows=all").text).tables["tasks"]
    (row,) = [row for row in rows if row[0] == TASK]
    return dict(zip((title.removesuffix(" /s") for title in titles), row, strict=True))


@pytest.fixture(params=[RedisServer, RabbitServer])
def own_server(request, tmp_path):
    """Return a broker for one test, which has not started."""
    server = request.param(tmp_path / "server")
    yield server
    server.__exit__(None, None, None)


def test_while_the_broker_is_down_the_page_says_why_and_since_when_and_no_rate(running, tmp_path, own_server):
    """Rates become null at once: a mean over minutes of which some are unknown would only look current."""
    app = running(Exporter(tmp_path / "exporter", own_server.url))
    assert status(app)["broker"]["down_since"] >= status(app)["started"] - 1
    with own_server:
        app.connected(RECONNECT_SECONDS)
        running(Worker(tmp_path / "worker", own_server.url, "w@test", pool="solo"))
        with make_client(own_server.url) as client:
            for _ in range(5):
                client.send_task(TASK)
            eventually(lambda: (rates(app).get("SUCCESS") or 0) > 0, 60)
        up = status(app)["broker"]
        assert (up["up"], up["down_since"], up["error"]) == (True, None, None)
        assert up["events_per_second"] > 0
        assert '<p id="outage"></p>' in app.get("/").text

        before = time.time()
        own_server.stop()
        down = eventually(lambda: (broker := status(app)["broker"])["error"] and broker, RECONNECT_SECONDS)
        assert (down["up"], down["events_per_second"]) == (False, None)
        assert before - 10 <= down["down_since"] <= time.time()
        assert set(rates(app).values()) == {None}
        assert (task_of(app)["failure_share"], task_of(app)["runtime_p95"]) == (None, None)
        eventually(lambda: "refused" in status(app)["broker"]["error"], RECONNECT_SECONDS)
        assert status(app)["broker"]["down_since"] == down["down_since"], "attempts do not change it"
        page = html.unescape(app.get("/").text)
        since = time.strftime("%m-%d %H:%M:%S", time.gmtime(down["down_since"]))
        assert f"Not open since {since} UTC: " in page
        assert "refused" in page
        assert cells(app)["Sent"] == cells(app)["Succeeded"] == cells(app)["Run p95"] == UNKNOWN
        until_equal(
            lambda: finding(app, "subscription").get("severity"), "critical", 20
        )  # a warning right at the start
        message = finding(app, "subscription")["message"]
        assert message.startswith("no event subscription on the broker for ")
        assert "refused" in message

        own_server.start().wait_ready()
        app.connected(RECONNECT_SECONDS)
        eventually(lambda: (rates(app).get("SUCCESS") or 0) > 0, 20)
        assert (status(app)["broker"]["down_since"], status(app)["broker"]["error"]) == (None, None)
