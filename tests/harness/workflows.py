"""Tasks that write who they are, to compare traces with. Workers load them by Celery's setting `include`.

A line has values of the message of its task, and none of an event.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from celery import Task

from harness.tasks import app

#: The variable with the path of the file.
IDENTITIES = "TEST_IDENTITIES"


@dataclass(frozen=True)
class Identity:
    """Who a task is, by the request of one of its executions."""

    uuid: str
    parent: str | None
    root: str | None
    name: str
    retries: int


class IdentifiedTask(Task):  # type: ignore[misc]
    """Writes a line before its body is executed. O_APPEND keeps lines whole when several processes write."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        identity = Identity(request.id, request.parent_id, request.root_id, self.name, request.retries)
        file = os.open(os.environ[IDENTITIES], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{json.dumps(asdict(identity))}\n".encode())
        os.close(file)
        return super().__call__(*args, **kwargs)


def identities(path: Path) -> list[Identity]:
    """Return what the tasks have written, in this order."""
    return [Identity(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


@app.task(bind=True, base=IdentifiedTask, name="flow.step")
def step(self: Task, *_: Any) -> int:  # noqa: ARG001
    return 1


@app.task(bind=True, base=IdentifiedTask, name="flow.fail")
def fail(self: Task, *_: Any) -> None:  # noqa: ARG001
    raise ValueError("a secret")


@app.task(bind=True, base=IdentifiedTask, name="flow.retry_once")
def retry_once(self: Task, *_: Any) -> None:
    if self.request.retries == 0:
        raise self.retry(countdown=0.5, exc=OSError("first time"))


@app.task(bind=True, base=IdentifiedTask, name="flow.replace")
def replace(self: Task, *_: Any) -> None:
    raise self.replace(step.si())


@app.task(bind=True, base=IdentifiedTask, name="flow.spawn")
def spawn(self: Task, *_: Any) -> None:  # noqa: ARG001
    step.delay()
