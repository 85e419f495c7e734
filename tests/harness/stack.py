"""The services of docker-compose.yml with Prometheus, and `make stack`, which runs them without Docker."""

from __future__ import annotations

import json
import re
import sys
import urllib.parse
import urllib.request
from typing import Any

import psutil

from harness.exporter import clean_environment
from harness.processes import ROOT, Process, need
from harness.waiting import ANSWER_TIMEOUT

#: Programs that it starts, besides Python.
PROGRAMS = (
    *("redis-server", "prometheus", "prometheus-alertmanager"),
    *("prometheus-node-exporter", "prometheus-redis-exporter"),
)


class MonitoredServices(Process):
    """A process that starts Prometheus, Alertmanager and other services."""

    def address(self, name: str) -> str:
        """Return the URL of a service, without a path."""
        raise NotImplementedError

    def get_json(self, name: str, path: str) -> Any:
        """Return the JSON response of a service."""
        with urllib.request.urlopen(self.address(name) + path, timeout=ANSWER_TIMEOUT) as response:
            return json.load(response)

    def query(self, promql: str) -> list[dict[str, Any]]:
        """Return the result of an instant query of its Prometheus."""
        path = "/api/v1/query?" + urllib.parse.urlencode({"query": promql})
        result: list[dict[str, Any]] = self.get_json("prometheus", path)["data"]["result"]
        return result


class Stack(MonitoredServices):
    """The program of `make stack`. It runs without make, which exits with an error on Ctrl-C."""

    name = "stack"
    deadline = 60.0
    profiles = ""

    def command(self) -> list[str]:
        return [sys.executable, str(ROOT / "deploy/stack.py")]

    def environment(self) -> dict[str, str]:
        for program in PROGRAMS:
            need(program)
        variables = {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder), "COMPOSE_PROFILES": self.profiles}
        return clean_environment(variables)

    def ready(self) -> bool:
        return "Ctrl-C stops everything." in self.text()

    def address(self, name: str) -> str:
        address = re.search(rf"^  {name} +(http://\S+)/$", self.text(), re.MULTILINE)
        assert address, self.text()
        return address[1]

    def children(self) -> list[psutil.Process]:
        """Return the processes of the services."""
        return psutil.Process(self.pid).children(recursive=True)
