"""Real Celery workers as processes, clients that send them tasks, and the tasks' own ledger."""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from celery import Celery

from harness import tasks
from harness.processes import TESTS, Process


class Ledger:
    """What the tasks say that they did: lines `task|queue|state` in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def counts(self) -> Counter[tuple[str, str, str]]:
        """Return how many lines there are for each (task, queue, state)."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return Counter(tuple(line.split("|")) for line in lines)  # type: ignore[misc]

    def of(self, *states: str) -> dict[tuple[str, str, str], int]:
        """Return the counts of these states only."""
        return {key: count for key, count in self.counts().items() if key[2] in states}

    def total(self, *states: str) -> int:
        return sum(self.of(*states).values())

    def exceptions(self) -> dict[tuple[str, str, str], int]:
        """Return how many failures there are for each (task, queue, exception)."""
        mark = "exception="
        return {
            (task, queue, state.removeprefix(mark)): count
            for (task, queue, state), count in self.counts().items()
            if state.startswith(mark)
        }


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
        ledger: Ledger | None = None,
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
            *("--loglevel", "INFO", "--without-mingle"),  # mingle asks other workers, and waits a second
            *arguments,
        ]
        self.extra = {
            **({tasks.LEDGER_FILE: str(ledger.path)} if ledger else {}),
            tasks.CONFIGURATION: json.dumps(configuration),
            **(environment or {}),
        }

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery", "--app", "harness.tasks", "worker", *self.arguments]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(TESTS), tasks.BROKER_URL: self.url, **self.extra}

    def ready(self) -> bool:
        return f"{self.name} ready." in self.text()


def client(url: str, **configuration: Any) -> Celery:
    """Return an app that sends tasks and, unless told otherwise, says so (`task_send_sent_event`)."""
    return tasks.make_app(url, **configuration)
