"""The HTTP endpoints, with a broker that requires a password."""

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

#: The families of the native profile, except those that need RabbitMQ or other conditions.
NATIVE = """
celery_tasks_total celery_task_failures_total celery_task_runtime_seconds celery_task_queue_wait_seconds
celery_task_prefetch_wait_seconds celery_tasks_in_flight celery_task_oldest_timestamp_seconds
celery_task_last_timestamp_seconds celery_task_redeliveries_total celery_workers_online celery_worker_up
celery_worker_active_tasks celery_worker_pool_size celery_worker_prefetch_limit
celery_worker_processed_tasks_total celery_worker_restarts_total celery_worker_load_average
celery_worker_last_heartbeat_timestamp_seconds celery_worker_clock_skew_seconds
celery_worker_max_resident_memory_bytes celery_worker_info celery_worker_task_events_enabled
celery_queue_length celery_queue_consumers celery_queue_worker_processes celery_broker_up
celery_queue_unacked_messages celery_broker_unacked_messages
celery_exporter_build_info celery_exporter_events_total
celery_exporter_events_malformed_total celery_exporter_events_missed_total celery_exporter_event_lag_seconds
celery_exporter_last_event_timestamp_seconds celery_exporter_reconnects_total celery_exporter_tasks_tracked
celery_exporter_tasks_evicted_total celery_exporter_label_fallbacks_total celery_exporter_series
celery_exporter_series_overflow_total celery_exporter_collector_success
celery_exporter_collector_duration_seconds celery_exporter_collector_last_success_timestamp_seconds
process_cpu_seconds_total process_resident_memory_bytes process_start_time_seconds
""".split()  # noqa: SIM905  a list literal would take 40 lines


def test_the_runbook_links_of_alerts_lead_to_sections_of_the_page(app):
    """By default they lead to an exporter on the same machine. The page loads nothing from other hosts."""
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
    """Return an exporter that has counted successes, failures and a backlog."""
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
        until_equal(lambda: exporter.value("celery_worker_pool_size", worker="worker@test"), 1)
        yield exporter


def test_metrics_are_prometheus_text(app):
    """The default format is text 0.0.4, which ends with a newline."""
    answer = app.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert answer.body.endswith(b"\n")
    assert "content-encoding" not in answer.headers


def test_each_native_family_has_a_type_and_a_help_text(app):
    """Counters, and only they, end in _total."""
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
        ("/healthcheck", 200, "OK"),  # as for Flower
        ("/nosuch", 404, ""),
        ("/metrics/more", 404, ""),
        ("/-/", 404, ""),
    ],
)
def test_paths_return_their_status_and_text(app, path, status, part):
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
        ("application/openmetrics-text; version=2.0.0", True),  # a later version is answered with 1.0.0
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", True),
        ("application/openmetrics-text;version=1.0.0;q=0.2,text/plain;version=0.0.4;q=0.3", False),
        ("application/openmetrics-text;version=1.0.0;q=0", False),
        ("text/html,*/*", False),
        ("*/*", False),
        ("text/plain", False),
        (";;;q=,", False),
    ],
)
def test_the_accept_header_selects_the_format(app, accept, openmetrics):
    answer = app.get("/metrics", {"Accept": accept})
    assert answer.status == 200
    kind = answer.headers["content-type"]
    if openmetrics:
        assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert answer.text.endswith("\n# EOF\n")
    else:
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        assert "# EOF" not in answer.text


def test_both_formats_have_the_same_series_and_counts(app):
    """All own series are compared. Between two scrapes, one of a worker's inspection may appear."""

    def in_one_format() -> set:
        text, openmetrics = app.samples(), app.openmetrics()
        return {series for series in text.keys() ^ openmetrics.keys() if series[0].startswith("celery_")}

    until_equal(in_one_format, set())
    assert app.samples().matching("celery_tasks_total") == app.openmetrics().matching("celery_tasks_total")


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
def test_gzip_is_used_on_request(app, accept):
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
def test_a_header_of_more_than_1_kb_is_refused(app, path, header):
    """Parsing it would block the event loop."""
    assert app.get(path, {header: "," * 1_024}).status == 200
    for length in (1_025, 30_000):
        answer = app.get(path, {header: "," * length})
        assert (answer.status, answer.text) == (
            431,
            f"header {header.lower()} has {length} bytes; the limit is 1024\n",
        )


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/"])
def test_a_query_of_more_than_1_kb_is_refused(app, path):
    assert app.get(f"{path}?{'a&' * 512}").status == 200
    assert app.get(f"{path}?{'a&' * 513}").status == 414


def test_a_cookie_of_8_kb_is_accepted(app):
    """A proxy before the exporter may need one."""
    assert app.get("/", {"Cookie": "session=" + "x" * 8_000}).status == 200


@pytest.mark.parametrize("path", PAGES)
def test_pages_have_the_nosniff_header(app, path):
    assert app.get(path).headers["x-content-type-options"] == "nosniff"


def test_promtool_check_metrics_reports_nothing(app):
    """It checks names, units, types and help texts."""
    check = subprocess.run(
        [need("promtool"), "check", "metrics"],
        input=app.get("/metrics").body,
        capture_output=True,
        check=False,
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, b"")


def test_lines_have_the_format_of_the_guide(app):
    """Labels and numbers have the format of prometheus_client."""
    lines = app.get("/metrics").text.splitlines()
    for shape in (
        r'celery_tasks_total\{queue_name="celery",state="SUCCESS",task_name="tasks\.succeed"\} 3.0',
        r"celery_workers_online 1.0",
        r'celery_queue_length\{queue_name="celery"\} 0.0',
    ):
        assert [line for line in lines if re.fullmatch(shape, line)], shape


def test_a_scrape_does_not_poll_the_broker(app):
    """Two scrapes in a row have the same poll times, unless a poll runs between them."""

    def stamps() -> dict:
        return app.samples(SCRAPER).matching("celery_exporter_collector_last_success_timestamp_seconds")

    eventually(lambda: (first := stamps()) and first == stamps())


def test_the_password_is_on_no_page_and_not_in_the_log(app):
    """Neither plain nor percent-encoded, in both formats, and at log level debug."""
    pages = [app.get(path).text for path in (*PAGES, "/nosuch")]
    pages += [app.get("/metrics", {"Accept": OPENMETRICS}).text, app.text()]
    for secret in (PASSWORD, "p%40ss", "w0rd"):
        assert not [page for page in pages if secret in page], secret


@pytest.mark.parametrize(
    "request_bytes",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET /metrics HTTP/9.9\r\n\r\n", b"A" * 100_000],
    ids=["nothing", "half", "TLS", "version", "long"],
)
def test_invalid_requests_do_not_affect_others(app, request_bytes):
    """The next request is served."""
    with socket.create_connection(("127.0.0.1", app.port), timeout=ANSWER_TIMEOUT) as client_socket:
        client_socket.sendall(request_bytes)
        assert app.get("/-/healthy").status == 200
    assert app.alive()
