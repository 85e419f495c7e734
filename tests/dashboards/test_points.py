"""Each panel of Celery / Points has data in a real InfluxDB, in both layouts of points (--influx-layout).

The points are written here, by the table of the documentation; the tests of the sink compare that with what
the exporter writes.
"""

import re
import time

import pytest
from harness.influxdb import PointsServer

from dashboards.committed import BOARDS, label, panels, targets, variables

BOARD = BOARDS["celery-points"]
#: Measurement → its tags and fields in the layout `fields`, in line protocol. $ are uuids.
FIELDS = {
    "worker_requests": ("task_type,queue", "subtask_id,task_id,worker,transport_time"),
    "worker_queue": ("task_type,queue", "subtask_id,task_id,worker,transport_time"),
    "subtask_execution": ("task_type", "subtask_id,task_id,worker,match_time"),
    "subtask_errors": ("task_type,queue,error_code", "subtask_id,task_id,worker,error_code"),
    "subtask_final": ("task_type,queue,status", "subtask_id,task_id,worker,status,execution_time"),
    "requests": ("route,status_code", "request_id,execution_time"),
    "errors": ("route,status_code,error_code", "request_id,execution_time"),
}
#: The same in the layout `luna`.
LUNA = {
    "worker_requests": ("task_id,subtask_id", "transport_time"),
    "worker_queue": ("task_id,subtask_id,task_type", "transport_time"),
    "subtask_execution": ("task_id,subtask_id,task_type", "match_time"),
    "subtask_errors": ("task_id,subtask_id,task_type,error_code", "error_code"),
    "subtask_final": ("task_id,subtask_id,task_type,status", "execution_time,status"),
    "requests": FIELDS["requests"],
    "errors": FIELDS["errors"],
}
LAYOUTS = {"fields": FIELDS, "luna": LUNA}
TEXTS = {
    "service": "shop",
    "task_type": "mail.send",
    "queue": "emails",
    "worker": "emails@demo",
    "status": "FAILURE",
    "error_code": "ValueError",
    "route": "GET:/metrics",
    "status_code": "404",
    "task_id": "7f4d1e9c-0000-4000-8000-000000000001",
    "subtask_id": "7f4d1e9c-0000-4000-8000-000000000002",
    "request_id": "42",
}
NUMBERS = ("transport_time", "execution_time", "match_time")
SECONDS = 0.25  # of each duration
#: What Grafana puts in place of its macros and variables.
MACROS = {"timeFilter": "time > now() - 1h", "__interval_ms": "15000", "__interval": "15s"}
CHOICES = {
    "all": {"service": ".*", "task": ".*"},
    "one": {"service": "shop", "task": r"(mail\.send|report\.build)"},
}
every_target = pytest.mark.parametrize(
    ("panel", "target"),
    [pytest.param(p, t, id=label(uid, p, t)) for uid, p, t in targets("influxdb")],
)


def line(measurement: str, tags: str, fields: str) -> str:
    """Return a point in line protocol, from a minute ago."""
    tag_texts = ",".join(f"{name}={TEXTS[name]}" for name in ("service", *tags.split(",")))
    field_texts = ",".join(
        f"{name}={SECONDS}" if name in NUMBERS else f'{name}="{TEXTS[name]}"' for name in fields.split(",")
    )
    return f"{measurement},{tag_texts} {field_texts} {(int(time.time()) - 60) * 10**9}"


@pytest.fixture(scope="module", params=LAYOUTS)
def influxdb(request, tmp_path_factory):
    """Yield an InfluxDB with a point of each measurement."""
    with PointsServer(tmp_path_factory.mktemp("influxdb")) as server:
        server.write(*(line(name, *point) for name, point in LAYOUTS[request.param].items()))
        server.layout = request.param
        yield server


def expand(query: str, choice: str) -> str:
    """Return a query with values in place of Grafana's macros and variables."""
    values = {**MACROS, **CHOICES[choice]}
    return re.sub(r"\$(\w+)", lambda match: values[match[1]], query)


@every_target
@pytest.mark.parametrize("choice", CHOICES)
def test_a_panel_has_data(influxdb, panel, target, choice):
    if choice == "one" and influxdb.layout == "luna" and "worker_requests" in target["query"]:
        return  # these points have no task_type
    series = influxdb.series(expand(target["query"], choice))
    values = [value for one in series for row in one["values"] for value in row[1:]]
    assert any(values), "no value, or only 0"
    assert None not in values or "fill" in target["query"]
    tags = set().union(*(one.get("tags", {}) for one in series))
    columns = set().union(*(one["columns"] for one in series))
    assert set(re.findall(r"\$tag_(\w+)", target.get("alias", ""))) == tags
    named = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
    if panel["type"] == "table":
        sorted_by = {key["displayName"] for key in panel["options"].get("sortBy", [])}
        assert named | sorted_by <= {*columns, "Time"}  # Grafana's name of time
    if panel["title"] == "Measured by the application":
        assert columns == {"time", "mean_match_time"}
    elif panel["fieldConfig"]["defaults"]["unit"] == "s":
        assert SECONDS in values


@pytest.mark.parametrize(("variable", "value"), [("service", "shop"), ("task", "mail.send")])
def test_a_variable_has_values(influxdb, variable, value):
    (series,) = influxdb.series(expand(variables(BOARD)[variable]["query"], "all"))
    assert [row[1] for row in series["values"]] == [value]


def test_every_measurement_is_on_a_panel():
    queried = {re.search(r'FROM "(\w+)"', target["query"])[1] for _, _, target in targets("influxdb")}
    assert queried == FIELDS.keys()


@every_target
def test_a_query_uses_names_of_points_only(panel, target):  # noqa: ARG001
    query = target["query"]
    tags, fields = FIELDS[re.search(r'FROM "(\w+)"', query)[1]]
    names = set(re.findall(r'(?<!AS )"(\w+)"', query.replace("FROM ", "AS ")))
    assert names <= {"service", *tags.split(","), *fields.split(",")}


def test_a_query_over_time_has_a_minimum_interval():
    for uid, panel in panels():
        if uid == "celery-points" and panel["type"] == "timeseries":
            assert panel["interval"] == "15s"
