"""docker-compose.yml as docker-compose runs it, on the API of podman."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from harness import compose, compose_images, podman
from harness.processes import ROOT, free_port, need
from harness.stack import MonitoredServices
from harness.waiting import eventually

if TYPE_CHECKING:
    from typing import Self

SERVICE = "com.docker.compose.service"
VARIABLES = {"COMPOSE_PROFILES": "monitoring,rabbitmq", "CELERY_TARGETS": "celery-rabbitmq"}
#: Services of these profiles that no Debian package contains. Alloy reads logs of Docker.
LEFT_OUT = {"alloy", "grafana", "loki"}


def services() -> list[str]:
    """Return the names of the services that this module starts."""
    profiles = set(VARIABLES["COMPOSE_PROFILES"].split(","))
    content = compose.load()["services"]
    return [
        name
        for name, service in content.items()
        if profiles.intersection(service.get("profiles", profiles)) and name not in LEFT_OUT
    ]


class ComposeStack(MonitoredServices):
    """docker-compose in a copy of the repository, with its own secrets and ports."""

    name = "docker-compose"
    deadline = 60.0

    def __init__(self, folder: Path, socket: Path) -> None:
        super().__init__(folder)
        compose_images.build_images()
        self.socket = socket
        ports = {name: str(free_port()) for name in re.findall(r"\w+_PORT", compose.FILE.read_text())}
        self.variables = {**VARIABLES, **ports, "COMPOSE_PROJECT_NAME": f"test{ports['EXPORTER_PORT']}"}
        content = compose.load(**self.variables)["services"]
        self.services = {name: content[name] for name in services()}
        self.health_checked = [name for name, service in self.services.items() if "healthcheck" in service]
        self._copy_files()

    def _copy_files(self) -> None:
        mounted = {
            source
            for service in self.services.values()
            for source, _, _ in compose.volumes(service)
            if source.startswith("./")
        }
        for source in ("docker-compose.yml", "deploy/secrets.sh", *mounted):
            copy = self.folder / source
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, copy)
        subprocess.run([self.folder / "deploy/secrets.sh"], check=True)

    def command(self) -> list[str]:
        return [need("docker-compose"), "up", "--no-build", "--detach", *self.services]

    def environment(self) -> dict[str, str]:
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("COMPOSE")}
        return {**inherited, **self.variables, "DOCKER_HOST": f"unix://{self.socket}"}

    def wait_ready(self) -> Self:
        """Wait until all services are healthy, and until Prometheus has scraped them.

        docker-compose starts each service when those before it are healthy.
        """

        def ended() -> bool:
            self.health()
            return not self.alive()

        eventually(ended, self.deadline, what="end of docker-compose up")
        assert self.exit_code() == 0, self.tail()
        eventually(self.all_healthy, self.deadline, every=1)
        eventually(self.all_scraped, self.deadline, every=1)
        return self

    def all_healthy(self) -> bool:
        """Return True; raise AssertionError with the states if a service does not run, or is unhealthy."""
        states = dict.fromkeys(self.containers(), "running") | self.health()
        expected = {name: "healthy" if name in self.health_checked else "running" for name in self.services}
        assert states == expected
        return True

    def all_scraped(self) -> bool:
        """Return True; raise AssertionError if a target that should be up is not, or the reverse."""
        targets = self.get_json("prometheus", "/api/v1/targets?state=active")["data"]["activeTargets"]
        down = {target["labels"]["job"] for target in targets if target["health"] != "up"}
        assert targets
        assert down == LEFT_OUT & {target["labels"]["job"] for target in targets}
        return True

    def address(self, name: str) -> str:
        address, _, _ = self.services[name]["ports"][0].rpartition(":")
        return f"http://{address}"

    def containers(self) -> dict[str, str]:
        """Return the ids of the running containers by service."""
        text = podman.podman(
            *("ps", "--filter", f"label=com.docker.compose.project={self.variables['COMPOSE_PROJECT_NAME']}"),
            *("--format", f'{{{{index .Labels "{SERVICE}"}}}} {{{{.ID}}}}'),
        ).stdout
        return dict(line.split() for line in text.splitlines())

    def health(self) -> dict[str, str]:
        """Run the health checks, for which podman needs systemd, and return their states by service."""
        containers = self.containers()
        return {name: podman.health(containers[name]) for name in self.health_checked if name in containers}

    def kill(self) -> None:
        """Remove the containers, the networks and the volumes."""
        super().kill()
        command = [need("docker-compose"), "down", "--volumes", "--remove-orphans", "--timeout=5"]
        result = subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert self.containers() == {}
