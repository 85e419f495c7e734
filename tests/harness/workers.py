"""Celery workers as processes, and clients that send them tasks."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from celery import Celery

from harness import tasks
from harness.outcomes import RecordedOutcomes
from harness.processes import TESTS, Process


class Worker(Process):
    """`celery worker` on the tests' app."""

    name = "worker"
    deadline = 40.0

    def __init__(
        self,
        folder: Path,
        url: str,
        node: str = "worker@test",
        *,
        queues: str = "celery",
        pool: str = "prefork",
        concurrency: int = 2,
        events: bool = True,
        outcomes: RecordedOutcomes | None = None,
        environment: dict[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        **configuration: Any,
    ) -> None:
        super().__init__(folder)
        self.name = node
        self.url = url
        self.arguments = [
            *("--hostname", node, "--queues", queues, "--pool", pool, "--concurrency", str(concurrency)),
            *(["--task-events"] if events else []),
            *("--loglevel", "INFO", "--without-mingle"),  # mingle waits a second for other workers
            *arguments,
        ]
        self.extra = {
            **({tasks.OUTCOMES: outcomes.location} if outcomes else {}),
            tasks.CONFIGURATION: json.dumps(configuration),
            **(environment or {}),
        }

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery", "--app", "harness.tasks", "worker", *self.arguments]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(TESTS), tasks.BROKER_URL: self.url, **self.extra}

    def ready(self) -> bool:
        return f"{self.name} ready." in self.text()


class Beat(Process):
    """`celery beat` on the tests' app, which replies to ping."""

    name = "beat"

    def __init__(self, folder: Path, url: str, **configuration: Any) -> None:
        super().__init__(folder)
        self.url = url
        self.configuration = {"beat_enable_remote_control": True, **configuration}

    def command(self) -> list[str]:
        options = ("--loglevel", "INFO", "--pidfile=", "--schedule", "schedule")
        return [sys.executable, "-m", "celery", "--app", "harness.tasks", "beat", *options]

    def environment(self) -> dict[str, str]:
        settings = {tasks.BROKER_URL: self.url, tasks.CONFIGURATION: json.dumps(self.configuration)}
        return {**os.environ, "PYTHONPATH": str(TESTS), **settings}

    def ready(self) -> bool:
        return "beat: Starting..." in self.text()


def client(url: str, **configuration: Any) -> Celery:
    """Return an app that sends tasks and, by default, task-sent events (`task_send_sent_event`)."""
    return tasks.make_app(url, **configuration)
