"""A pytest plugin for Celery's test process that records what the tasks do, one line of JSON for each change.

It runs in Celery's virtual environment, so it imports no module of this project. Pool processes are forked
from the test process and inherit the signal handlers. With O_APPEND, lines of several processes do not mix.
No record comes from an event.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from celery import signals

#: The file of the records, and a file that lets the worker stop when it exists.
OUTCOMES, STOP = os.environ["INTEGRATION_OUTCOMES"], os.environ["INTEGRATION_STOP"]
NODE = "integration@localhost"
#: Maximum time for which the worker runs after the last test.
STOP_DEADLINE_SECONDS = 1_800.0

_main_pid = os.getpid()
_test = ""


def _write(**line: Any) -> None:
    line["at"] = time.time()
    descriptor = os.open(OUTCOMES, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (json.dumps(line) + "\n").encode())
    os.close(descriptor)


def _write_state(state: str, name: str, task_id: str, **more: Any) -> None:
    _write(
        kind="task",
        state=state,
        name=name,
        id=task_id,
        test=_test if os.getpid() == _main_pid else "",
        **more,
    )


# -- signals -------------------------------------------------------------------------------------------


@signals.after_task_publish.connect(weak=False)
def _published(sender: str, headers: dict[str, Any], **_: Any) -> None:
    more = {name: headers.get(name) for name in ("root_id", "parent_id", "retries", "eta")}
    _write_state("PENDING", sender, headers["id"], **more)


@signals.task_received.connect(weak=False)
def _received(request: Any, **_: Any) -> None:
    redelivered = bool(request.delivery_info.get("redelivered"))
    _write_state("RECEIVED", request.name, request.id, redelivered=redelivered)


@signals.task_prerun.connect(weak=False)
def _started(task_id: str, task: Any, **_: Any) -> None:
    if not task.request.is_eager:
        _write_state("STARTED", task.name, task_id)


@signals.task_postrun.connect(weak=False)
def _ended(task_id: str, task: Any, state: str, **_: Any) -> None:
    if not task.request.is_eager:
        _write_state(state, task.name, task_id)


@signals.task_failure.connect(weak=False)
def _failed(sender: Any, task_id: str, **_: Any) -> None:
    """Record a failure that the main process of the worker reports, because its pool process has ended."""
    if os.getpid() == _main_pid and not sender.request.is_eager:
        _write_state("FAILURE", sender.name, task_id)


@signals.task_revoked.connect(weak=False)
def _revoked(sender: Any, request: Any, **_: Any) -> None:
    _write_state("REVOKED", sender.name, request.id)


@signals.task_unknown.connect(weak=False)
def _unknown(name: str, id: str, **_: Any) -> None:  # noqa: A002  Celery's own name
    _write_state("FAILURE", name, id)


# -- pytest --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def celery_worker_parameters() -> dict[str, Any]:
    """Enable heartbeats, which Celery's test worker does not send by default."""
    return {"without_heartbeat": False, "hostname": NODE}


@pytest.fixture(scope="session", autouse=True)
def _keep_worker(celery_session_worker: Any) -> Any:  # noqa: ARG001  the worker stops after this fixture
    """Keep the worker after the last test until all its tasks have ended and are counted."""
    yield
    _write(kind="finished")
    end = time.monotonic() + STOP_DEADLINE_SECONDS
    while not Path(STOP).exists() and time.monotonic() < end:
        time.sleep(0.1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid: str) -> None:
    global _test  # noqa: PLW0603  this process runs one test at a time
    _test = nodeid


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _write(kind="result", test=report.nodeid, outcome=report.outcome)
