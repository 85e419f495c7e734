"""The HTTP side, asked by a plain client, on a broker that wants a password."""

import gzip
import re
import socket
import subprocess
from contextlib import ExitStack

import pytest
from alerts.rulebook import ALERTS
from harness.exporter import OPENMETRICS, SCRAPER, Exporter
from harness.processes import need
from harness.servers import RedisServer
from harness.waiting import ANSWER_TIMEOUT, eventually, until_equal
from harness.workers import Worker
from harness.workers import client as make_client

PASSWORD = "p@ss/w0rd:secret"
PAGES = ("/metrics", "/-/healthy", "/healthcheck", "/-/ready", "/health", "/runbooks", "/")
TEXT = "text/plain"

# Section 6 of DESIGN.md; families that only RabbitMQ or other circumstances bring are left out.
NATIVE = """
celery_tasks_total celery_task_failures_total celery_task_runtime_seconds celery_task_queue_wait_seconds
celery_task_prefetch_wait_seconds celery_tasks_in_flight celery_task_oldest_timestamp_seconds
celery_task_last_timestamp_seconds celery_task_redeliveries_total celery_workers_online celery_worker_up
celery_worker_active_tasks celery_worker_pool_size celery_worker_prefetch_limit
celery_worker_processed_tasks_total celery_worker_restarts_total celery_worker_load_average
celery_worker_last_heartbeat_timestamp_seconds celery_worker_clock_skew_seconds
celery_worker_max_resident_memory_bytes celery_worker_info celery_worker_task_events_enabled
celery_queue_length celery_queue_consumers celery_queue_worker_processes celery_broker_up
celery_broker_unacked_messages celery_exporter_build_info celery_exporter_events_total
celery_exporter_events_malformed_total celery_exporter_events_missed_total celery_exporter_event_lag_seconds
celery_exporter_last_event_timestamp_seconds celery_exporter_reconnects_total celery_exporter_tasks_tracked
celery_exporter_tasks_evicted_total celery_exporter_label_fallbacks_total celery_exporter_series
celery_exporter_series_overflow_total celery_exporter_collector_success
celery_exporter_collector_duration_seconds celery_exporter_collector_last_success_timestamp_seconds
process_cpu_seconds_total process_resident_memory_bytes process_start_time_seconds
""".split()  # noqa: SIM905 - a list literal would take a screen


def test_runbook_links_of_alerts_exist(app):
    """By default, to an exporter on this machine; the page needs nothing from elsewhere."""
    page = app.get("/runbooks")
    text = page.body.decode()
    ids = set(re.findall(r'<h3 id="([^"]+)"', text))
    for name, alert in ALERTS.items():
        path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert (path, anchor in ids) == ("http://localhost:9808/runbooks", True), name
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Return an exporter that has seen successes, failures and a backlog."""
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(tmp_path_factory.mktemp("redis"), password=PASSWORD))
        exporter = Exporter(
            tmp_path_factory.mktemp("exporter"), server.url, "-Q", "backlog", "--log-level", "debug"
        )
        stack.enter_context(exporter).connected()
        stack.enter_context(Worker(tmp_path_factory.mktemp("worker"), server.url, pool="solo"))
        client = stack.enter_context(make_client(server.url))
        for _ in range(3):
            client.send_task("tasks.succeed", queue="celery")
            client.send_task("tasks.fail_with_value_error", queue="celery")
            client.send_task("tasks.succeed", queue="backlog")
        for state in ("SUCCESS", "FAILURE"):
            until_equal(lambda state=state: exporter.total("celery_tasks_total", state=state), 3, 15)
        until_equal(lambda: exporter.value("celery_queue_length", queue_name="backlog"), 3)
        until_equal(
            lambda: exporter.value("celery_worker_pool_size", worker="worker@test"), 1
        )  # it was asked
        yield exporter


def test_metrics_are_prometheus_text(app):
    """Text 0.0.4 by default, ended by a newline, and its headers say so."""
    answer = app.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert answer.body.endswith(b"\n")
    assert "content-encoding" not in answer.headers


def test_every_metric_of_the_design_is_there(app):
    """All families of the native profile are announced with a type and a help text, or have samples."""
    text = app.get("/metrics").text
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (\S.*)$", text, re.MULTILINE))
    assert set(NATIVE) - set(types) == set()
    assert set(types) == set(helps)
    assert not [name for name, kind in types.items() if name.endswith("_total") != (kind == "counter")]
    assert "_created" not in text
    assert types["celery_task_runtime_seconds"] == "histogram"


@pytest.mark.parametrize(
    ("path", "status", "part"),
    [
        ("/", 200, "celery-exporter"),
        ("/", 200, 'href="metrics"'),
        ("/-/healthy", 200, ""),
        ("/-/ready", 200, ""),
        ("/health", 200, ""),
        ("/healthcheck", 200, "OK"),  # Flower's
        ("/nosuch", 404, ""),
        ("/metrics/more", 404, ""),
        ("/-/", 404, ""),
    ],
)
def test_pages(app, path, status, part):
    answer = app.get(path)
    assert answer.status == status
    assert part in answer.text


@pytest.mark.parametrize("path", PAGES)
def test_head_is_get_without_the_body(app, path):
    answer, head = app.get(path), app.get(path, method="HEAD")
    assert (head.status, head.body) == (answer.status, b"")
    assert head.headers["content-type"] == answer.headers["content-type"]


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_other_methods_are_refused(app, path, method):
    answer = app.get(path, method=method)
    assert answer.status == 405
    assert {"GET", "HEAD"} <= set(re.split(r",\s*", answer.headers["allow"]))


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (OPENMETRICS, True),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=0.0.1", True),
        ("application/openmetrics-text; version=2.0.0", True),  # clamped to what we speak
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", True),
        ("application/openmetrics-text;version=1.0.0;q=0.2,text/plain;version=0.0.4;q=0.3", False),
        ("application/openmetrics-text;version=1.0.0;q=0", False),
        ("text/html,*/*", False),
        ("*/*", False),
        ("text/plain", False),
        (";;;q=,", False),
    ],
)
def test_format_is_negotiated(app, accept, openmetrics):
    answer = app.get("/metrics", {"Accept": accept})
    assert answer.status == 200
    kind = answer.headers["content-type"]
    if openmetrics:
        assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert answer.text.endswith("\n# EOF\n")
    else:
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        assert "# EOF" not in answer.text


def test_formats_have_the_same_samples(app):
    """Each series of ours is in both, and the counts of tasks are equal."""
    text, openmetrics = app.samples(), app.openmetrics()
    assert {series for series in text if series[0].startswith("celery_")} == {
        series for series in openmetrics if series[0].startswith("celery_")
    }
    assert text.matching("celery_tasks_total") == openmetrics.matching("celery_tasks_total")


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
def test_gzip_on_request(app, accept):
    packed = app.get("/metrics", {"Accept": accept, "Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) == len(packed.body)
    plain = app.get("/metrics", {"Accept": accept})
    assert len(packed.body) < len(plain.body) / 3
    names = re.compile(rb"^# TYPE .*$", re.MULTILINE)
    assert names.findall(gzip.decompress(packed.body)) == names.findall(plain.body)
    refused = app.get("/metrics", {"Accept": accept, "Accept-Encoding": "gzip;q=0, identity"})
    assert "content-encoding" not in refused.headers


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/"])
@pytest.mark.parametrize("header", ["Accept", "Accept-Encoding", "Authorization"])
def test_too_long_header_is_rejected(app, path, header):
    """It would be read on the event loop, that answers nobody else meanwhile."""
    assert app.get(path, {header: "," * 1_024}).status == 200
    for length in (1_025, 30_000):
        answer = app.get(path, {header: "," * length})
        assert (answer.status, answer.text) == (
            431,
            f"header {header.lower()} has {length} bytes; the limit is 1024\n",
        )


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/"])
def test_too_long_query_is_rejected(app, path):
    assert app.get(f"{path}?{'a&' * 512}").status == 200
    assert app.get(f"{path}?{'a&' * 513}").status == 414


def test_cookies_may_be_longer(app):
    """A proxy in front of the page has some."""
    assert app.get("/", {"Cookie": "session=" + "x" * 8_000}).status == 200


@pytest.mark.parametrize("path", PAGES)
def test_pages_have_nosniff(app, path):
    assert app.get(path).headers["x-content-type-options"] == "nosniff"


def test_promtool_has_nothing_to_say(app):
    """`promtool check metrics`: names, units, types and help texts are as they should be."""
    check = subprocess.run(
        [need("promtool"), "check", "metrics"],
        input=app.get("/metrics").body,
        capture_output=True,
        check=False,
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, b"")


def test_number_format_is_that_of_the_guide(app):
    """Lines of the shapes that people grep for, labels and numbers as prometheus_client writes them."""
    lines = app.get("/metrics").text.splitlines()
    for shape in (
        r'celery_tasks_total\{queue_name="celery",state="SUCCESS",task_name="tasks\.succeed"\} 3.0',
        r"celery_workers_online 1.0",
        r'celery_queue_length\{queue_name="celery"\} 0.0',
    ):
        assert [line for line in lines if re.fullmatch(shape, line)], shape


def test_scrape_sends_nothing_to_the_broker(app):
    """Two in a row have the same numbers of the broker's, unless the exporter asked it between them."""

    def stamps() -> dict:
        return app.samples(SCRAPER).matching("celery_exporter_collector_last_success_timestamp_seconds")

    eventually(lambda: (found := stamps()) and found == stamps())


def test_password_is_in_no_page_and_no_log_line(app):
    """Not on any page, in any format, in the log at level debug, nor quoted."""
    pages = [app.get(path).text for path in (*PAGES, "/nosuch")]
    pages += [app.get("/metrics", {"Accept": OPENMETRICS}).text, app.text()]
    for secret in (PASSWORD, "p%40ss", "w0rd"):
        assert not [page for page in pages if secret in page], secret


@pytest.mark.parametrize(
    "request_bytes",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET /metrics HTTP/9.9\r\n\r\n", b"A" * 100_000],
    ids=["nothing", "half", "TLS", "version", "long"],
)
def test_bytes_that_are_not_http(app, request_bytes):
    """Whoever speaks something else is turned away, and the next one is served."""
    with socket.create_connection(("127.0.0.1", app.port), timeout=ANSWER_TIMEOUT) as stranger:
        stranger.sendall(request_bytes)
        assert app.get("/-/healthy").status == 200
    assert app.alive()
