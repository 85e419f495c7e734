"""The services of docker-compose.yml that alerts need run under podman, and Prometheus scrapes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import podman
from harness.compose_stack import ComposeStack, services
from harness.exporter import Exporter
from harness.processes import ROOT
from harness.waiting import eventually, until_equal

RULES = yaml.safe_load((ROOT / "alerts/celery.rules.yml").read_text())
UNITS = {"m": 2**20, "g": 2**30}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """Return the running services. All are healthy, and Prometheus has scraped them."""
    with (
        podman.Service(tmp_path_factory.mktemp("podman")) as service,
        ComposeStack(tmp_path_factory.mktemp("stack"), service.socket) as stack,
    ):
        yield stack


def description(stack: ComposeStack, name: str) -> dict[str, Any]:
    return podman.inspect(stack.containers()[name])


@pytest.mark.parametrize("name", ["exporter", "exporter-rabbitmq"])
def test_the_exporter_counts_the_tasks_of_the_client(stack, name):
    app = Exporter(stack.folder / name, None, port=int(stack.address(name).rpartition(":")[2]))
    eventually(lambda: app.total("celery_tasks_total", state="SUCCESS") > 0, 20)
    assert app.value("celery_broker_up") == 1
    worker = {"exporter": "demo@redis", "exporter-rabbitmq": "demo@rabbitmq"}[name]
    assert app.total("celery_worker_up", worker=worker) == 1


def test_prometheus_evaluates_the_rules(stack):
    def states():
        groups = stack.get_json("prometheus", "/api/v1/rules")["data"]["groups"]
        return {
            group["name"]: [(rule["health"], rule.get("lastError", "")) for rule in group["rules"]]
            for group in groups
        }

    until_equal(states, {group["name"]: [("ok", "")] * len(group["rules"]) for group in RULES["groups"]}, 30)


def test_prometheus_sends_alerts_to_alertmanager(stack):
    managers = stack.get_json("prometheus", "/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
    assert [manager["url"] for manager in managers] == ["http://alertmanager:9093/api/v2/alerts"]


@pytest.mark.parametrize("name", services())
def test_a_container_has_the_limits_and_no_privileges(stack, name):
    service, container = stack.services[name], description(stack, name)
    host = container["HostConfig"]
    size, unit = re.fullmatch(r"(\d+)([mg])", service["mem_limit"]).groups()
    assert host["Memory"] == int(size) * UNITS[unit]
    assert host["NanoCpus"] == service["cpus"] * 1e9
    assert host["PidsLimit"] == service["pids_limit"]
    assert host["ReadonlyRootfs"]
    status = Path(f"/proc/{container['State']['Pid']}/status").read_text()
    assert re.findall(r"^Cap\w+:\s+(\S+)$", status, re.MULTILINE) == ["0" * 16] * 5
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^Uid:\s+[1-9]", status, re.MULTILINE)
