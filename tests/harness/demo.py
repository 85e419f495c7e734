"""The demo on a broker of the tests, watched by an exporter that has all to show, and by Prometheus."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.exporter import Exporter, clean_environment
from harness.processes import Process, side_by_side
from harness.servers import Prometheus
from harness.waiting import eventually

JOB = "celery"
QUEUES = ("emails", "reports")


class Part(Process):
    """A module of the demo, which reads the broker's URL from its environment."""

    deadline = 40.0

    def __init__(self, folder: Path, url: str, *module: str, sign: str = "") -> None:
        super().__init__(folder)
        self.name = folder.name
        self.module = module
        self.url = url
        self.sign = sign  # what stands in its log when it is ready

    def command(self) -> list[str]:
        return [sys.executable, "-m", *self.module]

    def environment(self) -> dict[str, str]:
        return clean_environment({"CELERY_BROKER_URL": self.url})

    def ready(self) -> bool:
        return self.sign in self.text()


def worker(folder: Path, url: str, queue: str) -> Part:
    """Return one as `celery-exporter demo` starts it."""
    command = (
        f"celery -A celery_exporter.demo.tasks worker -n {queue}@demo -Q {queue} -c 2 -E --loglevel INFO"
    )
    quiet = "--without-gossip --without-mingle"
    return Part(folder, url, *command.split(), *quiet.split(), sign=f"{queue}@demo ready.")


@contextmanager
def at_work(folder: Path, url: str, *, with_problems: bool = True) -> Iterator[None]:
    """Run the demo's workers, and its client, who sends tasks all the time."""
    workers = (worker(folder / queue, url, queue) for queue in QUEUES)
    options = ["--with-problems"] if with_problems else []
    client = Part(folder / "client", url, "celery_exporter.demo.client", *options)
    with side_by_side(*workers), client:
        yield


@contextmanager
def watched_demo(folder: Path, url: str) -> Iterator[Prometheus]:
    """Yield a Prometheus that scrapes the exporter while the demo's client sends its tasks."""
    web = folder / "web.yml"
    web.write_text(json.dumps({"http_server_config": {"headers": {"X-Frame-Options": "deny"}}}))
    files = ("--web.config.file", str(web), "--state-file", str(folder / "state"))
    exporter = Exporter(folder / "exporter", url, *files)
    prometheus = Prometheus(folder / "prometheus", f"127.0.0.1:{exporter.port}", job=JOB)
    with side_by_side(exporter, prometheus):
        exporter.connected()
        with at_work(folder, url):
            eventually(lambda: prometheus.query("celery_workers_online == 2"), 30)
            yield prometheus
