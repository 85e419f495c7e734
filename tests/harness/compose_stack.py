"""docker-compose.yml as docker-compose runs it, on the API of podman."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from harness import compose, podman
from harness.processes import ROOT, free_port, need
from harness.stack import MonitoredServices
from harness.waiting import eventually

if TYPE_CHECKING:
    from typing import Self

SERVICE = "com.docker.compose.service"


class ComposeStack(MonitoredServices):
    """docker-compose in a copy of the repository, with its own secrets and ports.

    `names` are the services that it starts, `variables` those of .env.
    """

    name = "docker-compose"
    deadline = 60.0

    def __init__(self, folder: Path, socket: Path, names: Collection[str], **variables: str) -> None:
        super().__init__(folder)
        self.socket = socket
        self.names = names
        ports = {name: str(free_port()) for name in re.findall(r"\w+_PORT", compose.FILE.read_text())}
        self.variables = {**ports, **variables}
        self.services = compose.load(**self.variables)["services"]
        self.healthy = {name for name in names if "healthcheck" in self.services[name]}
        self.project = f"test{ports['EXPORTER_PORT']}"
        self._copy_files()

    def _copy_files(self) -> None:
        mounted = {
            source
            for name in self.names
            for source, _, _ in compose.volumes(self.services[name])
            if source.startswith("./")
        }
        for source in ("docker-compose.yml", "deploy/secrets.sh", *mounted):
            copy = self.folder / source
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, copy)
        subprocess.run([self.folder / "deploy/secrets.sh"], check=True)

    def command(self) -> list[str]:
        return [need("docker-compose"), "up", "--no-build", "--detach", *self.names]

    def environment(self) -> dict[str, str]:
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("COMPOSE")}
        return {
            **inherited,
            **self.variables,
            "COMPOSE_PROJECT_NAME": self.project,
            "DOCKER_HOST": f"unix://{self.socket}",
        }

    def wait_ready(self) -> Self:
        """Wait until docker-compose ends. It starts each service when those before it are healthy."""
        eventually(lambda: self.health() and not self.alive(), self.deadline, what="end of docker-compose up")
        assert self.exit_code() == 0, self.tail()
        return self

    def address(self, name: str) -> str:
        address, _, _ = self.services[name]["ports"][0].rpartition(":")
        return f"http://{address}"

    def containers(self) -> dict[str, str]:
        """Return the ids of the running containers by service."""
        text = podman.podman(
            *("ps", "--filter", f"label=com.docker.compose.project={self.project}"),
            *("--format", f'{{{{index .Labels "{SERVICE}"}}}} {{{{.ID}}}}'),
        ).stdout
        return dict(line.split() for line in text.splitlines())

    def health(self) -> dict[str, str]:
        """Run the health checks, for which podman needs systemd, and return their states by service."""
        containers = self.containers()
        return {name: podman.health(containers[name]) for name in self.healthy & containers.keys()}

    def kill(self) -> None:
        """Remove the containers, the networks and the volumes."""
        super().kill()
        command = [need("docker-compose"), "down", "--volumes", "--remove-orphans", "--timeout=5"]
        result = subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert self.containers() == {}
