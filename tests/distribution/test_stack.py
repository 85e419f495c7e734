"""`make stack` starts all services, Prometheus scrapes them, and no process or file stays behind."""

from __future__ import annotations

import re
import signal

import psutil
import pytest
import yaml
from harness import compose
from harness.processes import ROOT, need
from harness.stack import Stack
from harness.waiting import eventually

RULES = yaml.safe_load((ROOT / "alerts/celery.rules.yml").read_text())


@pytest.fixture
def stack(tmp_path, running):
    return running(Stack(tmp_path))


def assert_clean(stack, children):
    """Assert that no process and no file is left."""
    running = [child for child in children if child.is_running()]
    assert [child for child in running if child.status() != psutil.STATUS_ZOMBIE] == []
    assert [path.name for path in stack.folder.iterdir() if path != stack.log] == []


def test_it_names_what_it_leaves_out_starts_and_stops(stack):
    (names,) = re.findall(r"^left out, because they need Docker: (.*)$", stack.text(), re.MULTILINE)
    (started,) = re.findall(r"^starting (.*)$", stack.text(), re.MULTILINE)
    services = compose.load()["services"]
    wanted = {name for name, service in services.items() if service.get("profiles") in (None, ["monitoring"])}
    assert sorted([*names.split(", "), *started.split(", ")]) == sorted(wanted)

    targets = stack.get_json("prometheus", "/api/v1/targets")["data"]["activeTargets"]
    assert {target["labels"]["job"]: target["health"] for target in targets} == dict.fromkeys(
        ("celery", "prometheus", "alertmanager", "node", "redis"), "up"
    )

    groups = stack.get_json("prometheus", "/api/v1/rules")["data"]["groups"]
    assert {group["name"]: len(group["rules"]) for group in groups} == {
        group["name"]: len(group["rules"]) for group in RULES["groups"]
    }
    assert {rule.get("lastError", "") for group in groups for rule in group["rules"]} == {""}

    managers = stack.get_json("prometheus", "/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
    assert len(managers) == 1
    original = yaml.safe_load((ROOT / "deploy/alertmanager/alertmanager.yml").read_text())
    loaded = yaml.safe_load(stack.get_json("alertmanager", "/api/v2/status")["config"]["original"])
    assert [receiver["name"] for receiver in loaded["receivers"]] == [
        receiver["name"] for receiver in original["receivers"]
    ]

    def has_successes():
        return stack.query('sum(celery_tasks_total{state="SUCCESS"}) > 0')

    eventually(has_successes, 30)

    children = stack.children()
    assert len(children) >= 8
    assert stack.stop(signal.SIGINT) == 0
    assert_clean(stack, children)


class StackWithPoints(Stack):
    """The stack with the profiles of records of tasks, of which one has a program here."""

    profiles = "influxdb,tracing"

    def environment(self):
        need("influxd")
        return super().environment()


def test_a_profile_adds_influxdb_and_the_exporter_writes_points(tmp_path, running):
    stack = running(StackWithPoints(tmp_path))
    (names,) = re.findall(r"^left out, because they need Docker: (.*)$", stack.text(), re.MULTILINE)
    assert {"loki", "tempo"} <= set(names.split(", "))
    assert "influxdb" not in names

    def has_points():
        answer = stack.get_json(
            "influxdb", "/query?db=celery&q=SELECT+count(execution_time)+FROM+subtask_final"
        )
        return answer["results"][0].get("series")

    eventually(has_points, 30)
    children = stack.children()
    assert [child for child in children if child.name() == "influxd"]
    assert stack.stop(signal.SIGINT) == 0
    assert_clean(stack, children)


def test_a_worker_that_does_not_stop_is_killed(stack):
    children = stack.children()
    for child in children:
        if "celery_exporter.demo.tasks" in child.cmdline():
            child.suspend()
    assert stack.stop(signal.SIGINT) == 0
    assert_clean(stack, children)


def test_a_service_that_dies_is_named_with_its_last_log_lines(tmp_path):
    stack = Stack(tmp_path)
    try:
        stack.start()
        eventually(
            lambda: [log for log in tmp_path.glob("*/node-exporter.log") if "Listening" in log.read_text()],
            30,
        )
        children = stack.children()
        (child,) = [child for child in children if "prometheus-node-exporter" in child.cmdline()[0]]
        child.kill()
        assert stack.wait() == 1
    finally:
        stack.kill()
    assert "stack: node-exporter ended, exit code -9:\n" in stack.text()
    assert "Listening on" in stack.text()
    assert_clean(stack, children)


def test_make_starts_it():
    assert re.search(r"^stack:.*\n.*deploy/stack\.py", (ROOT / "Makefile").read_text(), re.MULTILINE)
