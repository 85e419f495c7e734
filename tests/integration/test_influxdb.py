"""Points in real servers: InfluxDB 1.6, and VictoriaMetrics on the paths of versions 1 and 2.

Debian has no server of version 3. An HTTP server stands in for it, and the lines that it gets are checked
against the documented rules of version 3.
"""

from __future__ import annotations

import calendar
import json
import re
import time
from collections import Counter, defaultdict
from typing import Any

import pytest
from celery import chain
from harness.processes import ROOT
from harness.receiver import Answer, Receiver
from harness.servers import InfluxServer, VictoriaMetrics
from harness.waiting import eventually, until_equal
from unit.sinks.configs import sinks_config
from unit.sinks.line_reader import read

from celery_exporter.core.records import MeasuredRecord, Measurements, Record
from celery_exporter.core.types import State
from celery_exporter.sinks.base import DELIVERED, REJECTED, PermanentError, TemporaryError
from celery_exporter.sinks.factory import pushers_for, sinks_for
from celery_exporter.sinks.http_request import HttpRequest
from celery_exporter.sinks.pusher import Pusher

PASSWORD = "p@ss: 'word"
SERVICE = "shop"
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
both_layouts = pytest.mark.parametrize("layout", ["fields", "luna"])


@pytest.fixture(scope="module")
def influx_server(tmp_path_factory):
    with InfluxServer(tmp_path_factory.mktemp("influxdb"), password=PASSWORD.replace("'", "")) as server:
        yield server


@pytest.fixture
def influx(influx_server):
    """Return an InfluxDB with an empty database."""
    influx_server.query("DROP DATABASE celery")
    influx_server.query("CREATE DATABASE celery")
    return influx_server


@pytest.fixture
def login(influx_server, tmp_path) -> dict[str, str]:
    """Return the options of the sink for InfluxDB 1."""
    (tmp_path / "password").write_text(f"{influx_server.password}\n")
    return {
        "influx_url": influx_server.url,
        "influx_version": "1",
        "influx_database": "celery",
        "influx_user": influx_server.user,
        "influx_password_file": str(tmp_path / "password"),
    }


def arguments(options: dict[str, str]) -> list[str]:
    return [f"--{name.replace('_', '-')}={text}" for name, text in options.items()]


# -- an exporter with a real worker ------------------------------------------------------------------------


@on_redis
@both_layouts
def test_every_row_of_the_table_can_be_queried(
    running, exporter, worker, client, influx, login, tmp_path, layout
):
    """The values are those of the event log, which the same exporter writes."""
    log = tmp_path / "events.jsonl"
    options = {**login, "influx_layout": layout, "service_name": SERVICE, "static_label": "env=test"}
    app = running(
        exporter(*arguments(options), f"--event-log={log}", "--sink-flush-interval=0.2")
    ).connected()
    running(worker())
    client.send_task("tasks.succeed", queue="celery", expires=-1)  # the worker revokes it, unreceived
    for name in ("tasks.succeed", "tasks.fail_with_value_error", "tasks.fail_with_inner_error"):
        client.send_task(name, queue="celery")
    client.send_task("tasks.retry_once", queue="celery")
    for outcome in ("", "fail"):
        client.send_task("tasks.measure", ({"orders": 2}, {"model": "v2"}, outcome), queue="celery")
    steps = [client.signature("tasks.succeed", immutable=True, queue="celery") for _ in range(2)]
    last = chain(*steps).apply_async()
    assert app.get("/nothing").status == 404

    def count(measurement: str) -> int:
        return len(influx.query(f"SELECT * FROM {measurement}"))

    until_equal(lambda: count("subtask_final"), 9, 30)
    until_equal(lambda: (count("worker_requests"), count("worker_queue"), count("subtask_errors")), (9, 9, 3))
    until_equal(lambda: count("subtask_execution"), 2)
    until_equal(lambda: count("errors WHERE route = 'GET:other'"), 1)  # `connected` may get some 503

    def logged() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text().splitlines()]

    ends = {"SUCCESS", "FAILURE", "REVOKED"}  # they are written by another thread
    until_equal(lambda: sum(line["state"] in ends for line in logged()), 9, 30)
    lines = logged()
    by_state = defaultdict(list)
    for line in lines:
        by_state[line["state"]].append(line)
    check_transport_times(influx, "worker_requests", by_state["PENDING"], by_state["RECEIVED"])
    check_transport_times(influx, "worker_queue", by_state["RECEIVED"], by_state["STARTED"])
    check_ends(influx, [line for state in ("SUCCESS", "FAILURE", "REVOKED") for line in by_state[state]])
    check_errors(influx, by_state["FAILURE"])
    check_measurements(influx)
    check_tags(influx, layout)
    check_requests(influx)
    rows = influx.query("SELECT transport_time, task_id, subtask_id FROM worker_queue")
    roots = {row["subtask_id"]: row["task_id"] for row in rows}
    assert set(roots) == {line["uuid"] for line in by_state["STARTED"]}
    assert roots[last.id] == last.parent.id == roots[last.parent.id]


def check_transport_times(
    influx: InfluxServer, measurement: str, first: list[dict[str, Any]], second: list[dict[str, Any]]
) -> None:
    """Check the times of points, and the durations from one event to the next, within 1 us and 10 us."""
    begins = {(line["uuid"], line["retries"]): microseconds(line) for line in first}
    ends = sorted((microseconds(line), line["uuid"], line["retries"]) for line in second)
    rows = influx.query(f"SELECT transport_time FROM {measurement} ORDER BY time")
    assert [row["time"] // 1_000 for row in rows] == pytest.approx([end for end, *_ in ends], rel=0, abs=1)
    waits = [max(0.0, (end - begins[tuple(attempt)]) / 1e6) for end, *attempt in ends]
    assert [row["transport_time"] for row in rows] == pytest.approx(waits, abs=1e-5)


def microseconds(line: dict[str, Any]) -> int:
    """Return the time of a line of the event log, such as 2026-07-01T12:00:00.123456Z."""
    whole, _, fraction = line["time"].rstrip("Z").partition(".")
    seconds = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
    return seconds * 1_000_000 + int(fraction.ljust(6, "0") or 0)


def check_ends(influx: InfluxServer, lines: list[dict[str, Any]]) -> None:
    rows = influx.query(
        "SELECT execution_time, status::tag AS indexed, status::field AS stored, task_type FROM subtask_final"
    )
    assert all(row["indexed"] == row["stored"] for row in rows)
    ends = Counter((row["task_type"], row["indexed"], rounded(row["execution_time"])) for row in rows)
    assert ends == Counter(
        (line["task_name"], line["state"], rounded(line.get("runtime_seconds"))) for line in lines
    )
    assert Counter(row["indexed"] for row in rows) == {"SUCCESS": 5, "FAILURE": 3, "REVOKED": 1}


def rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def check_errors(influx: InfluxServer, lines: list[dict[str, Any]]) -> None:
    rows = influx.query(
        "SELECT error_code::tag AS indexed, error_code::field AS stored, task_type FROM subtask_errors"
    )
    assert all(row["indexed"] == row["stored"] for row in rows)
    assert {(row["task_type"], row["indexed"]) for row in rows} == {
        (line["task_name"], line["exception"]) for line in lines
    }


def check_measurements(influx: InfluxServer) -> None:
    """Check what two tasks measured, of which one failed: on its own, and at their ends."""
    fields = "orders, block_seconds, model, task_type, task_id, subtask_id"
    of_both = influx.query(f"SELECT {fields} FROM subtask_execution")
    ends = influx.query(f"SELECT {fields} FROM subtask_final WHERE task_type = 'tasks.measure'")
    errors = influx.query(f"SELECT {fields} FROM subtask_errors WHERE task_type = 'tasks.measure'")
    assert (len(of_both), len(ends), len(errors)) == (2, 2, 1)
    values = {row["subtask_id"]: row["block_seconds"] for row in of_both}
    assert all(0 < seconds < 60 for seconds in values.values())
    for row in (*of_both, *ends, *errors):
        assert (row["orders"], row["model"], row["task_id"]) == (2, "v2", row["subtask_id"])
        assert row["block_seconds"] == values[row["subtask_id"]]


TAG_KEYS = {
    "worker_requests": set(),
    "worker_queue": {"task_type"},
    "subtask_errors": {"task_type", "error_code", "model"},
    "subtask_final": {"task_type", "status", "model"},
    "requests": {"route", "status_code"},
    "errors": {"route", "status_code", "error_code"},
}


def check_tags(influx: InfluxServer, layout: str) -> None:
    added = {"fields": {"queue", "task_type"}, "luna": {"task_id", "subtask_id"}}[layout]
    for measurement, tags in TAG_KEYS.items():
        keys = {row["tagKey"] for row in influx.query(f"SHOW TAG KEYS FROM {measurement}")}
        is_of_tasks = measurement not in {"requests", "errors"}
        assert keys == {"service", "env", *tags, *(added if is_of_tasks else ())}, measurement
    services = {row["value"] for row in influx.query("SHOW TAG VALUES WITH KEY = service")}
    assert services == {SERVICE}
    if layout == "fields":
        assert {row["value"] for row in influx.query("SHOW TAG VALUES WITH KEY = queue")} == {"celery"}
        series = influx.query("SHOW SERIES FROM worker_requests")
        assert len(series) == 5, "a series for each task name, not for each task"


def check_requests(influx: InfluxServer) -> None:
    (error,) = influx.query("SELECT * FROM errors WHERE route = 'GET:other'")
    assert (error["route"], error["status_code"], error["error_code"]) == ("GET:other", "404", "404")
    assert len(error["request_id"]) == 32
    requests = influx.query("SELECT execution_time, request_id, route FROM requests")
    assert {"GET:/metrics", "GET:/-/ready", "GET:other"} <= {row["route"] for row in requests}
    assert len({row["request_id"] for row in requests}) == len(requests)
    assert all(0 < row["execution_time"] < 60 for row in requests)


@on_redis
@pytest.mark.parametrize("version", [1, 2])
def test_victoria_metrics_takes_the_write_paths_of_both_versions(
    running, exporter, worker, client, tmp_path, version
):
    server = running(VictoriaMetrics(tmp_path / "victoria-metrics"))
    target = {
        1: {"influx_database": "celery"},
        2: {"influx_org": "any", "influx_bucket": "any"},
    }[version]
    options = {"influx_url": server.url, "influx_version": str(version), **target}
    app = running(exporter(*arguments(options), "--sink-flush-interval=0.2")).connected()
    running(worker())
    for _ in range(20):
        client.send_task("tasks.succeed", queue="celery")

    def values(metric: str) -> list[float]:
        series = server.export(f'{metric}{{task_type="tasks.succeed",queue="celery",service="celery"}}')
        return [value for one in series for value in one["values"]]

    until_equal(lambda: len(values("subtask_final_execution_time")), 20, 30)
    samples = app.samples()
    runtime = samples.value("celery_task_runtime_seconds_sum", task_name="tasks.succeed", state="SUCCESS")
    assert sum(values("subtask_final_execution_time")) == pytest.approx(runtime, abs=1e-6)
    for metric in ("worker_requests_transport_time", "worker_queue_transport_time"):
        until_equal(lambda metric=metric: len(values(metric)), 20)
        assert all(0 <= seconds < 60 for seconds in values(metric))


# -- the sink with a real server ---------------------------------------------------------------------------


def record(state: State, **fields: Any) -> Record:
    now = time.time()
    task = {"uuid": "u", "root": "r", "parent": None, "name": "tasks.add", "queue": "q", "worker": "w@h"}
    attempt = {"client": None, "attempt": 0, "generation": 0, "timestamp": now, "sent": now - 1}
    end = {"received": now - 0.5, "is_final": state in {State.SUCCESS, State.FAILURE}}
    return Record(state=state, **{**task, **attempt, **end, **fields})


@pytest.fixture
def pusher():
    """`pusher(options)` returns a running pusher for InfluxDB."""
    pushers = []

    def start(options: dict[str, str]) -> Pusher:
        (pusher,) = pushers_for(sinks_config(**options, sink_flush_interval="0.1"))
        pushers.append(pusher)
        pusher.start()
        return pusher

    yield start
    for pusher in pushers:
        pusher.stop()
        pusher.join()


def outcomes(pusher: Pusher) -> dict[str, int]:
    """Return the outcomes when all records have one."""
    eventually(lambda: pusher.view().buffered == 0, 20)
    return {outcome: count for outcome, count in pusher.view().outcomes.items() if count}


@both_layouts
def test_measurements_of_applications_are_points(influx, login, pusher, layout):
    now = time.time()
    measured = Measurements(
        {"model": "v2"}, {"match_time": 2, "score": 0.5, "cached": True, "note": 'say "x"', "status": 1.0}
    )
    writer = pusher({**login, "influx_layout": layout})
    writer.put([MeasuredRecord("u", "r", "tasks.add", "w@h", now, measured)])
    writer.put([record(State.SUCCESS, measurements=measured, runtime=0.25)])
    assert outcomes(writer) == {DELIVERED: 2}
    names = "match_time, score, cached, note, measured_status, model, task_type, task_id, subtask_id"
    for measurement in ("subtask_execution", "subtask_final"):
        (row,) = influx.query(f"SELECT {names} FROM {measurement}")
        del row["time"]
        tags = {"model": "v2", "task_type": "tasks.add", "task_id": "r", "subtask_id": "u"}
        fields = {"match_time": 2, "score": 0.5, "cached": True, "note": 'say "x"', "measured_status": 1}
        assert row == {**tags, **fields}


HOSTILE = [
    'a b,c=d "e"',
    "C:\\dir",
    "käse 🚀",
    "#comment",
    "'; DROP",
    "tab\there",
    "two\nlines",
    "end\\",
    "\0",
]


@both_layouts
def test_hostile_texts_are_stored_as_texts(influx, login, pusher, layout):
    writer = pusher({**login, "influx_layout": layout})
    names = [f"{number}{text}" for number, text in enumerate(HOSTILE)]
    writer.put([record(State.STARTED, name=text, uuid=text, root=text) for text in names])
    assert outcomes(writer) == {DELIVERED: len(names)}
    rows = influx.query("SELECT transport_time, task_type, subtask_id, task_id FROM worker_queue")
    in_tag = {text.replace("\t", "\\t").replace("\n", "\\n").replace("end\\", "end/") for text in names}
    in_field = {text.replace("\n", "\\n") for text in names}
    assert {row["task_type"] for row in rows} == in_tag
    assert {row["subtask_id"] for row in rows} == (in_field if layout == "fields" else in_tag)
    assert {row["task_id"] for row in rows} == (in_field if layout == "fields" else in_tag)


@both_layouts
def test_tasks_with_equal_tags_and_times_are_all_stored(influx, login, pusher, layout):
    now = time.time()
    writer = pusher({**login, "influx_layout": layout})
    writer.put([record(State.RECEIVED, uuid=f"u{number}", timestamp=now) for number in range(3_000)])
    writer.put([HttpRequest(now, "GET:/metrics", 200, 0.1, f"r{number}") for number in range(500)])
    assert outcomes(writer) == {DELIVERED: 3_500}
    (row,) = influx.query("SELECT count(transport_time) AS count FROM worker_requests")
    assert row["count"] == 3_000
    (row,) = influx.query("SELECT count(request_id) AS count FROM requests")
    assert row["count"] == 500


def test_a_payload_that_is_sent_twice_changes_nothing(influx, login):
    (sink,) = sinks_for(sinks_config(**login))
    body = sink.encode([record(State.FAILURE, uuid=f"u{number}", exception="E") for number in range(10)]).body
    sink.send(body, 10.0)
    sink.send(body, 10.0)
    sink.close()
    for measurement in ("subtask_errors", "subtask_final"):
        assert len(influx.query(f"SELECT * FROM {measurement}")) == 10


def test_of_a_partial_write_the_rejected_points_are_counted(influx, login, pusher):
    """Another program has written the field with another type."""
    (other,) = sinks_for(sinks_config(**login))
    other.send(b'worker_queue transport_time="slow" %d\n' % time.time_ns(), 10.0)
    other.close()
    writer = pusher(login)
    writer.put([record(State.STARTED, uuid=f"u{number}") for number in range(5)])
    writer.put([record(State.RECEIVED, uuid=f"u{number}") for number in range(7)])
    assert outcomes(writer) == {DELIVERED: 7, REJECTED: 5}
    assert "field type conflict" in writer.view().error
    assert len(influx.query("SELECT * FROM worker_requests")) == 7


def test_points_wait_for_the_right_password_and_for_the_database(influx, login, pusher, tmp_path):
    (tmp_path / "password").write_text("wrong")
    influx.query("DROP DATABASE celery")
    writer = pusher(login)
    writer.put([record(State.STARTED)])
    eventually(lambda: "status 401" in writer.view().error)
    (tmp_path / "password").write_text(influx.password)
    eventually(lambda: "database not found" in writer.view().error)
    influx.query("CREATE DATABASE celery")
    assert outcomes(writer) == {DELIVERED: 1}
    assert len(influx.query("SELECT * FROM worker_queue")) == 1
    assert influx.password not in writer.view().error


def test_a_probe_finds_a_wrong_login_and_a_missing_database_and_writes_nothing(influx, login, tmp_path):
    (sink,) = sinks_for(sinks_config(**login))
    sink.probe(10.0)
    assert influx.query("SHOW MEASUREMENTS") == []
    (missing,) = sinks_for(sinks_config(**{**login, "influx_database": "nothing"}))
    with pytest.raises(TemporaryError, match="database not found"):
        missing.probe(10.0)
    (tmp_path / "password").write_text("wrong")
    with pytest.raises(TemporaryError, match="authorization failed"):
        sink.probe(10.0)
    sink.close()
    missing.close()


def test_the_queries_of_the_guide_find_points(influx, login, pusher):
    writer = pusher(login)
    names = {"name": "emails.send", "root": "c0a8e0f2-7c0e-4a52-9a39-6a2f6d1b9e02"}
    writer.put(
        [
            record(State.STARTED, **names),
            record(State.SUCCESS, runtime=0.5, **names),
            record(State.FAILURE, exception="ValueError", runtime=0.5, **names),
            HttpRequest(time.time(), "GET:/metrics", 200, 0.1, "id"),
        ]
    )
    assert outcomes(writer) == {DELIVERED: 4}
    page = (ROOT / "docs" / "how-to" / "influxdb.md").read_text()
    queries = re.findall(r"^```influxql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(queries) == 6
    for query in queries:
        assert influx.query(query), query


# -- version 3, by its documentation -----------------------------------------------------------------------

V3 = {"influx_version": "3", "influx_database": "celery"}


@pytest.fixture
def version_3():
    with Receiver() as receiver:
        yield receiver


@both_layouts
def test_version_3_gets_what_its_documentation_asks_for(version_3, pusher, tmp_path, layout):
    """One type for each column, and no column that is both a tag and a field; names begin with a letter."""
    (tmp_path / "token").write_text("apiv3_x\n")
    token = {"influx_token_file": str(tmp_path / "token")}
    writer = pusher({"influx_url": version_3.url, "influx_layout": layout, **V3, **token})
    measured = Measurements({"status": "a"}, {"count": 1, "_hidden": 2, "time": 3, "status": 4})
    writer.put(
        [
            *(record(state) for state in (State.RECEIVED, State.STARTED, State.SUCCESS)),
            record(State.FAILURE, exception="E", runtime=1.0, measurements=measured),
            MeasuredRecord("u", "r", "tasks.add", "w@h", time.time(), measured),
            HttpRequest(time.time(), "GET:other", 404, 0.1, "id"),
        ]
    )
    assert outcomes(writer) == {DELIVERED: 6}
    (request,) = version_3.requests
    assert request.path == "/api/v3/write_lp?db=celery&precision=nanosecond"
    assert request.headers["authorization"] == "Bearer apiv3_x"
    columns: dict[tuple[str, str], set[str]] = defaultdict(set)
    points = read(request.body, pairs=True)
    for point in points:
        for name in point.tags:
            columns[point.measurement, name].add("tag")
        for name, value in point.fields.items():
            columns[point.measurement, name].add(type(value).__name__)
    assert len(points) == 8
    assert all(len(types) == 1 for types in columns.values()), columns
    assert all(name[0].isalpha() and name != "time" for _, name in columns)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [([2], {DELIVERED: 4, REJECTED: 1}), ([1, 2, 3, 4, 5], {REJECTED: 5})],
)
def test_lines_that_version_3_rejects_are_counted(version_3, pusher, listed, expected):
    lines = [{"original_line": "…", "line_number": number, "error_message": "…"} for number in listed]
    text = json.dumps({"error": "partial write of line protocol occurred", "data": lines})
    version_3.answer = Answer(400, text.encode())
    writer = pusher({"influx_url": version_3.url, **V3})
    writer.put([record(State.STARTED, uuid=f"u{number}") for number in range(5)])
    assert outcomes(writer) == expected


def test_a_probe_of_version_3_takes_an_answer_to_an_empty_payload_for_a_sign_of_life(version_3):
    (sink,) = sinks_for(sinks_config(influx_url=version_3.url, **V3))
    for status in (204, 400):
        version_3.answer = Answer(status, b"")
        sink.probe(10.0)
    for status, kind in (
        (401, TemporaryError),
        (404, TemporaryError),
        (500, TemporaryError),
        (302, TemporaryError),
        (405, PermanentError),
    ):
        version_3.answer = Answer(status, b"")
        with pytest.raises(kind):
            sink.probe(10.0)
    sink.close()
