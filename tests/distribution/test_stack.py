"""`make stack`: all of it comes up, is found up by Prometheus, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.request

import psutil
import pytest
import yaml
from harness.exporter import clean_environment
from harness.processes import ROOT, Process, need
from harness.waiting import ANSWER_TIMEOUT, eventually

RULES = yaml.safe_load((ROOT / "alerts/celery.rules.yml").read_text())
#: What it is made of, besides Python.
PROGRAMS = (
    *("redis-server", "prometheus", "prometheus-alertmanager"),
    *("prometheus-node-exporter", "prometheus-redis-exporter"),
)


class Stack(Process):
    """The program, not make, which answers Ctrl-C with an error of its own."""

    name = "stack"
    deadline = 60.0

    def command(self):
        return [sys.executable, ROOT / "deploy/stack.py"]

    def environment(self):
        for program in PROGRAMS:
            need(program)
        return clean_environment({"PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder)})

    def ready(self):
        return "Ctrl-C stops everything." in self.text()

    def ask(self, name, path):
        """Return what a part of it answers."""
        address = re.search(rf"^  {name} +(http://\S+)/$", self.text(), re.MULTILINE)
        assert address, self.text()
        with urllib.request.urlopen(address[1] + path, timeout=ANSWER_TIMEOUT) as answer:
            return json.load(answer)

    def parts(self):
        return psutil.Process(self.pid).children(recursive=True)


@pytest.fixture
def stack(tmp_path, running):
    return running(Stack(tmp_path))


def no_trace(stack, parts):
    """Hold that no process and no file is left."""
    assert [part for part in parts if part.is_running() and part.status() != psutil.STATUS_ZOMBIE] == []
    assert [path.name for path in stack.folder.iterdir() if path != stack.log] == []


def test_it_comes_up_and_goes(stack):
    targets = stack.ask("prometheus", "/api/v1/targets")["data"]["activeTargets"]
    assert {target["labels"]["job"]: target["health"] for target in targets} == dict.fromkeys(
        ("celery", "prometheus", "alertmanager", "node", "redis"), "up"
    )

    groups = stack.ask("prometheus", "/api/v1/rules")["data"]["groups"]
    assert {group["name"]: len(group["rules"]) for group in groups} == {
        group["name"]: len(group["rules"]) for group in RULES["groups"]
    }
    assert {rule.get("lastError", "") for group in groups for rule in group["rules"]} == {""}

    managers = stack.ask("prometheus", "/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
    assert len(managers) == 1
    original = yaml.safe_load((ROOT / "deploy/alertmanager/alertmanager.yml").read_text())
    in_force = yaml.safe_load(stack.ask("alertmanager", "/api/v2/status")["config"]["original"])
    assert [receiver["name"] for receiver in in_force["receivers"]] == [
        receiver["name"] for receiver in original["receivers"]
    ]

    def some_succeeded():
        query = "/api/v1/query?query=sum(celery_tasks_total%7Bstate=%22SUCCESS%22%7D)%3E0"
        return stack.ask("prometheus", query)["data"]["result"]

    eventually(some_succeeded, 30)

    parts = stack.parts()
    assert len(parts) >= 8
    assert stack.stop(signal.SIGINT) == 0
    no_trace(stack, parts)


def test_a_worker_that_does_not_end_leaves_nothing_behind(stack):
    parts = stack.parts()
    for part in parts:
        if "celery_exporter.demo.tasks" in part.cmdline():
            part.suspend()
    assert stack.stop(signal.SIGINT) == 0
    no_trace(stack, parts)


def test_a_part_that_dies_is_named_with_its_last_words(tmp_path):
    stack = Stack(tmp_path)
    try:
        stack.start()
        eventually(
            lambda: [log for log in tmp_path.glob("*/node-exporter.log") if "Listening" in log.read_text()],
            30,
        )
        parts = stack.parts()
        (part,) = [part for part in parts if "prometheus-node-exporter" in part.cmdline()[0]]
        part.kill()
        assert stack.wait() == 1
    finally:
        stack.kill()
    assert "stack: node-exporter ended, exit code -9:\n" in stack.text()
    assert "Listening on" in stack.text()
    no_trace(stack, parts)


def test_make_starts_it():
    assert re.search(r"^stack:.*\n.*deploy/stack\.py", (ROOT / "Makefile").read_text(), re.MULTILINE)
