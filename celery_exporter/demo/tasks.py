"""The tasks of the demo's workers: `python -m celery -A celery_exporter.demo.tasks worker`.

The arguments of a task determine its outcome, so tasks are deterministic.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from celery import Celery, signals

from celery_exporter.demo.outcomes import OutcomeStore
from celery_exporter.instrumentation import Measurements, monitor_time

Decorator: TypeAlias = Callable[[Callable[..., None]], Any]

# Celery reads the first two variables itself, but not from files, which docker-compose.yml uses for
# passwords.
for setting in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "DEMO_OUTCOMES_URL"):
    if file := os.environ.get(f"{setting}_FILE"):
        os.environ[setting] = Path(file).read_text().strip()

app = Celery("demo")
app.conf.update(
    task_send_sent_event=True,  # the only event that names the queue
    task_ignore_result="CELERY_RESULT_BACKEND" not in os.environ,
    worker_prefetch_multiplier=2,  # so that a backlog stays in the queue, where it is counted
    broker_connection_retry_on_startup=True,
    beat_enable_remote_control=True,  # it replies to ping then
)


class MailboxFullError(Exception):
    """An exception class of the application."""


#: Retries of a task that is retried.
MAX_RETRIES = 2

FAILURES = {
    kind.__name__: kind for kind in (ValueError, TimeoutError, ConnectionRefusedError, MailboxFullError)
}


def task(name: str) -> Decorator:
    """Return a typed `app.task`. `throws` keeps the tracebacks of intended failures out of the log."""
    decorator: Decorator = app.task(name=name, bind=True, throws=(Exception,))
    return decorator


@task("mail.send")
def send_mail(_self: Any, seconds: float, failure: str | None = None) -> None:
    """Take this many seconds, and fail with an exception class if one is named."""
    time.sleep(seconds)
    if failure:
        raise FAILURES[failure](f"{failure} was requested")


@task("mail.sync_contacts")
def sync_contacts(self: Any, retries: int) -> None:
    """Succeed after this many retries, or fail if these are more than MAX_RETRIES."""
    if self.request.retries < retries:
        error = ConnectionResetError("connection reset by peer")
        raise self.retry(countdown=0.5, exc=error, max_retries=MAX_RETRIES)


@task("report.build")
def build_report(self: Any, pages: int) -> None:
    """Take 30 ms for each page, and fail on the 14th. Measure how many pages there are, and their time."""
    data = Measurements(tags={"size": "long" if pages > 10 else "short"}, fields={"pages": pages})
    try:
        with monitor_time(data, "render_seconds"):
            for page in range(pages):
                time.sleep(0.03)
                if page == 13:
                    raise ZeroDivisionError("no sales on this page")
    finally:
        data.send(self)


@task("audit.log")
def log_audit(_self: Any) -> None:
    """Do nothing. The client sends it to both queues, so one task name has two label sets."""


@cache
def outcome_store() -> OutcomeStore:
    """Return the store of this process. redis-py opens new connections in a forked process."""
    return OutcomeStore(os.environ.get("DEMO_OUTCOMES_URL") or os.environ["CELERY_BROKER_URL"])


def record(outcome: str, sender: Any, request: Any = None, **_: Any) -> None:
    """Record an outcome in the process that decides it.

    That is a pool process, or for REVOKED the main process.

    Celery sends the signal `task_revoked` where it publishes `task-revoked`, also for expired tasks. Only
    this signal and `task_retry` have a request; for the others it is that of the running task.
    """
    queue = (request or sender.request).delivery_info["routing_key"]
    outcome_store().add_outcome(sender.name, queue, outcome)


signals.task_success.connect(partial(record, "SUCCESS"), weak=False)
signals.task_failure.connect(partial(record, "FAILURE"), weak=False)
signals.task_retry.connect(partial(record, "RETRY"), weak=False)
signals.task_revoked.connect(partial(record, "REVOKED"), weak=False)
signals.worker_ready.connect(lambda sender, **_: outcome_store().add_worker(sender.hostname), weak=False)
