"""The demo on a broker of the tests, with an exporter and a Prometheus."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery_exporter.demo.runner import CONFIG
from harness.exporter import Exporter, clean_environment
from harness.processes import Process, side_by_side
from harness.servers import Prometheus
from harness.waiting import eventually

JOB = "celery"
QUEUES = ("emails", "reports")


class DemoProcess(Process):
    """A module of the demo, which reads the URL of the broker from its environment."""

    deadline = 40.0

    def __init__(self, folder: Path, url: str, *module: str, ready_text: str = "") -> None:
        super().__init__(folder)
        self.name = folder.name
        self.module = module
        self.url = url
        self.ready_text = ready_text  # in its log when it is ready

    def command(self) -> list[str]:
        return [sys.executable, "-m", *self.module]

    def environment(self) -> dict[str, str]:
        return clean_environment({"CELERY_BROKER_URL": self.url})

    def ready(self) -> bool:
        return self.ready_text in self.text()


def worker(folder: Path, url: str, queue: str) -> DemoProcess:
    """Return a worker as `celery-exporter demo` starts it."""
    command = (
        f"celery -A celery_exporter.demo.tasks worker -n {queue}@demo -Q {queue} -c 2 -E --loglevel INFO"
    )
    quiet = "--without-gossip --without-mingle"
    return DemoProcess(folder, url, *command.split(), *quiet.split(), ready_text=f"{queue}@demo ready.")


def beat(folder: Path, url: str) -> DemoProcess:
    """Return a beat as `celery-exporter demo` starts it."""
    command = "celery -A celery_exporter.demo.tasks beat --loglevel INFO --pidfile= --schedule schedule"
    return DemoProcess(folder, url, *command.split(), ready_text="beat: Starting...")


@contextmanager
def running_demo(folder: Path, url: str, *, with_problems: bool = True) -> Iterator[None]:
    """Run the workers, the beat and the client of the demo; the client sends tasks until the end."""
    workers = (worker(folder / queue, url, queue) for queue in QUEUES)
    options = ["--with-problems"] if with_problems else []
    client = DemoProcess(folder / "client", url, "celery_exporter.demo.client", *options)
    with side_by_side(*workers, beat(folder / "beat", url)), client:
        yield


@contextmanager
def scraped_demo(folder: Path, url: str, *options: str, rules: Path | None = None) -> Iterator[Prometheus]:
    """Yield a Prometheus with these rules that scrapes an exporter of the running demo with these options."""
    web_config = folder / "web.yml"
    web_config.write_text(json.dumps({"http_server_config": {"headers": {"X-Frame-Options": "deny"}}}))
    config = folder / "config.yml"
    config.write_text(f"log_format: json\n{CONFIG}")
    files = ("--web.config.file", str(web_config), "--config.file", str(config))
    files += ("--state-file", str(folder / "state"))
    records = ("--event-log", str(folder / "events.jsonl"), "--history-file", str(folder / "history"))
    exporter = Exporter(folder / "exporter", url, *files, *records, *options)
    prometheus = Prometheus(folder / "prometheus", f"127.0.0.1:{exporter.port}", job=JOB, rules=rules)
    with side_by_side(exporter, prometheus):
        exporter.connected()
        with running_demo(folder, url):
            eventually(lambda: prometheus.query("celery_workers_online == 2"), 30)
            yield prometheus
