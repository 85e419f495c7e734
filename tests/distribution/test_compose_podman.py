"""The services that docker-compose.yml starts by default run under podman, and their health checks pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import compose, podman
from harness.exporter import Exporter
from harness.processes import ROOT, Process, free_port, need
from harness.waiting import eventually, until_equal

SERVICES = {
    name: service for name, service in compose.load()["services"].items() if "profiles" not in service
}
HEALTHY = {name for name, service in SERVICES.items() if "healthcheck" in service}
FILES = ("docker-compose.yml", "deploy/secrets.sh", "deploy/redis/redis.conf")
UNITS = {"m": 2**20, "g": 2**30}


class Compose(Process):
    """docker-compose in a copy of the repository, with its own secrets, on the API of podman."""

    name = "docker-compose"

    def __init__(self, folder: Path, socket: Path) -> None:
        super().__init__(folder)
        self.socket = socket
        self.port = free_port()
        self.project = f"test{self.port}"
        for name in FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        subprocess.run([folder / "deploy/secrets.sh"], check=True)

    def command(self) -> list[str]:
        return [need("docker-compose"), "up", "--no-build", "--detach"]

    def environment(self) -> dict[str, str]:
        variables = {name: text for name, text in os.environ.items() if not name.startswith("COMPOSE")}
        return {
            **variables,
            "COMPOSE_PROJECT_NAME": self.project,
            "DOCKER_HOST": f"unix://{self.socket}",
            "EXPORTER_PORT": str(self.port),
        }

    def containers(self) -> dict[str, str]:
        """Return the ids of the running containers by service."""
        label = "com.docker.compose.service"
        text = podman.podman(
            *("ps", "--filter", f"label=com.docker.compose.project={self.project}"),
            *("--format", f'{{{{index .Labels "{label}"}}}} {{{{.ID}}}}'),
        ).stdout
        return dict(line.split() for line in text.splitlines())

    def health(self) -> dict[str, str]:
        """Run the health checks, for which podman needs systemd, and return their states by service."""
        containers = self.containers()
        return {name: podman.health(containers[name]) for name in HEALTHY & containers.keys()}

    def down(self) -> None:
        command = [need("docker-compose"), "down", "--volumes", "--timeout=5"]
        result = subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Return the running services. docker-compose starts each one when those before it are healthy."""
    podman.build_images()
    with podman.Service(tmp_path_factory.mktemp("podman")) as service:
        stack = Compose(tmp_path_factory.mktemp("stack"), service.socket)
        try:
            stack.start()
            eventually(lambda: stack.health() and not stack.alive(), 60, what="end of docker-compose up")
            yield stack
        finally:
            stack.kill()
            stack.down()
        assert stack.containers() == {}


def description(stack: Compose, name: str) -> dict[str, Any]:
    return podman.inspect(stack.containers()[name])


def test_all_services_start_and_become_healthy(stack):
    assert stack.exit_code() == 0, stack.tail()
    assert stack.containers().keys() == SERVICES.keys()
    until_equal(stack.health, dict.fromkeys(HEALTHY, "healthy"), 30)


def test_the_exporter_counts_the_tasks_of_the_client(stack):
    app = Exporter(stack.folder / "exporter", None, port=stack.port)
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
