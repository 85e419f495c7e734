"""What the demo's workers do: `python -m celery -A celery_exporter.demo.tasks worker`.

The client says in the arguments how each call shall go, so that a task needs no dice of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from celery import Celery, signals

from celery_exporter.demo.outcomes import Ledger

Decorator: TypeAlias = Callable[[Callable[..., None]], Any]

# Celery reads the first two by itself, though not from files, which docker-compose.yml has for passwords.
for setting in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "DEMO_LEDGER_URL"):
    if file := os.environ.get(f"{setting}_FILE"):
        os.environ[setting] = Path(file).read_text().strip()

app = Celery("demo")
app.conf.update(
    task_send_sent_event=True,  # the only event that names the queue
    task_ignore_result="CELERY_RESULT_BACKEND" not in os.environ,
    worker_prefetch_multiplier=2,  # leaves the backlog in the queue, where it can be seen
    broker_connection_retry_on_startup=True,
)


class MailboxFullError(Exception):
    """An exception of the application's own, beside Python's."""


FAILURES = {
    kind.__name__: kind for kind in (ValueError, TimeoutError, ConnectionRefusedError, MailboxFullError)
}


def task(name: str) -> Decorator:
    """`app.task`, typed. `throws`: they are meant to fail, their tracebacks would only fill the log."""
    decorator: Decorator = app.task(name=name, bind=True, throws=(Exception,))
    return decorator


@task("mail.send")
def send_mail(_self: Any, seconds: float, failure: str | None = None) -> None:
    """Take so long, and fail if told to."""
    time.sleep(seconds)
    if failure:
        raise FAILURES[failure](f"{failure} was asked for")


@task("mail.sync_contacts")
def sync_contacts(self: Any, retries: int) -> None:
    """Succeed after so many retries."""
    if self.request.retries < retries:
        raise self.retry(countdown=0.5, exc=ConnectionResetError("the other side hung up"))


@task("report.build")
def build_report(_self: Any, pages: int) -> None:
    """Take 30 ms a page, and fail on the 14th."""
    for page in range(pages):
        time.sleep(0.03)
        if page == 13:
            raise ZeroDivisionError("no sales on this page")


@task("audit.log")
def log_audit(_self: Any) -> None:
    """Goes to both queues: one name, two sums."""


@cache
def ledger() -> Ledger:
    """Opened at the first use; redis-py opens new connections in a process that was forked."""
    return Ledger(os.environ.get("DEMO_LEDGER_URL") or os.environ["CELERY_BROKER_URL"])


def book(outcome: str, sender: Any, request: Any = None, **_: Any) -> None:
    """Count one outcome where it is decided: in the pool's process, or for REVOKED in the worker's own.

    Celery sends `task_revoked` from the one place that publishes `task-revoked`, expired tasks included.
    The request comes with that signal and with `task_retry`; else it is on the task, which still runs.
    """
    queue = (request or sender.request).delivery_info["routing_key"]
    ledger().add_outcome(sender.name, queue, outcome)


signals.task_success.connect(partial(book, "SUCCESS"), weak=False)
signals.task_failure.connect(partial(book, "FAILURE"), weak=False)
signals.task_retry.connect(partial(book, "RETRY"), weak=False)
signals.task_revoked.connect(partial(book, "REVOKED"), weak=False)
signals.worker_ready.connect(lambda sender, **_: ledger().add_worker(sender.hostname), weak=False)
