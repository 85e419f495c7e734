"""Celery / Task log uses the labels, metadata and fields that --loki-url pushes. Loki itself is not here."""

import json
import re

import pytest

from celery_exporter.core.records import Record
from celery_exporter.core.types import State
from celery_exporter.sinks.config import LokiConfig
from celery_exporter.sinks.loki import LokiSink
from dashboards.committed import BOARDS, label, panels, targets, variables

BOARD = BOARDS["celery-task-log"]
CONFIG = LokiConfig(
    loki_url=None, loki_tenant=None, loki_user=None, loki_password_file=None, loki_token_file=None
)
#: A record without an unknown value.
RECORD = Record(
    *("uuid", "root", "parent", "tasks.add", "emails", "w@box", "client", 0, 0, State.FAILURE, 7.0),
    exception="ValueError",
    **dict.fromkeys(("first_sent", "sent", "eta", "received", "started"), 1.0),
    **dict.fromkeys(("queue_wait", "prefetch_wait", "runtime"), 2.0),
)
(STREAM,) = json.loads(LokiSink("http://loki", CONFIG, "shop").encode([RECORD]).body)["streams"]
((_, LINE, STRUCTURED),) = STREAM["values"]
#: Labels of streams, which selectors may use; structured metadata, which only filters may use; fields.
LABELS, METADATA, FIELDS = STREAM["stream"].keys(), STRUCTURED.keys(), json.loads(LINE).keys()
every_target = pytest.mark.parametrize(
    "expr", [pytest.param(target["expr"], id=label(uid, p, target)) for uid, p, target in targets("loki")]
)


@every_target
def test_a_selector_uses_labels_of_streams_only(expr):
    selectors = re.findall(r"(?<!\{)\{([^{}]+)\}(?!\})", expr)
    assert len(selectors) == 1
    names = set(re.findall(r"(\w+)=", selectors[0]))
    assert {"service", "state"} <= names <= LABELS, "other programs may have a label `service`, too"


@every_target
def test_filters_and_lines_use_what_entries_have(expr):
    extracted = dict(re.findall(r'(\w+)="(\w+_seconds)"', expr))
    assert set(extracted.values()) <= FIELDS
    filters = set(re.findall(r"\| (\w+)(?:=~|=|!=)", expr))
    assert filters <= METADATA
    shown = set(re.findall(r"\.(\w+)", "".join(re.findall(r"\{\{(.*?)\}\}", expr))))
    assert shown <= LABELS | METADATA | extracted.keys()
    assert set(re.findall(r"by \((\w+)\)", expr)) <= LABELS | METADATA


@every_target
def test_states_exist(expr):
    assert set(re.findall(r'state="(\w+)"', expr)) <= {state.name for state in State}


def test_rates_are_over_a_step_of_the_graph():
    for _, panel, target in targets("loki"):
        windows = re.findall(r"\[(.*?)\]", target["expr"])
        assert windows == (["$__auto"] if panel["type"] == "timeseries" else [])


def test_variables_filter_by_task_state_worker_queue_and_uuid():
    assert {"service", "state", "queue", "task", "worker", "uuid"} <= variables(BOARD).keys()
    (expr,) = [target["expr"] for _, panel, target in targets("loki") if panel["title"] == "Log"]
    matched = dict(re.findall(r'(\w+)=~"\$(\w+)', expr))
    assert matched == {name: name for name in ("service", "state", "queue", "task", "worker", "uuid")}


def test_variables_of_labels_list_streams_of_the_exporter_only():
    for name in ("service", "state"):
        query = variables(BOARD)[name]["query"]
        assert query["label"] == name
        assert query["stream"] == '{state=~".+"}' or name == "state"
        assert query["type"] == 1


def test_an_empty_uuid_selects_no_entry():
    """Entries without the label have an empty value, such as those of other programs."""
    for uid, panel in panels():
        if uid == BOARD["uid"] and panel["title"] in {"Task", "Workflow"}:
            expr = panel["targets"][0]["expr"]
            (name,) = re.findall(r'\| (\w+)="\$uuid"', expr)
            assert f'| {name}!=""' in expr
            assert panel["links"][0]["title"] == "Trace"
