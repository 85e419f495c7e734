"""The services that docker-compose.yml starts by default run under podman, and their health checks pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import compose, podman
from harness.compose_stack import ComposeStack
from harness.exporter import Exporter
from harness.waiting import eventually, until_equal

SERVICES = {
    name: service for name, service in compose.load()["services"].items() if "profiles" not in service
}
UNITS = {"m": 2**20, "g": 2**30}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """Return the running services."""
    podman.build_images()
    with podman.Service(tmp_path_factory.mktemp("podman")) as service:
        folder = tmp_path_factory.mktemp("stack")
        with ComposeStack(folder, service.socket, SERVICES.keys()) as stack:
            yield stack


def description(stack: ComposeStack, name: str) -> dict[str, Any]:
    return podman.inspect(stack.containers()[name])


def test_all_services_start_and_become_healthy(stack):
    assert stack.containers().keys() == SERVICES.keys()
    until_equal(stack.health, dict.fromkeys(stack.healthy, "healthy"), 30)


def test_the_exporter_counts_the_tasks_of_the_client(stack):
    app = Exporter(stack.folder / "exporter", None, port=int(stack.address("exporter").rpartition(":")[2]))
    eventually(lambda: app.total("celery_tasks_total", state="SUCCESS") > 0, 20)
    assert app.value("celery_broker_up") == 1
    assert app.total("celery_worker_up", worker="demo@redis") == 1


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_the_limits_and_no_privileges(stack, name):
    service, container = SERVICES[name], description(stack, name)
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
