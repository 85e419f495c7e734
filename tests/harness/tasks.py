"""The Celery app of the tests. Each task writes down itself what it did, in a file of lines
`task|queue|state`: that count owes nothing to events, and is what the exporter is held against.

Workers read their settings from the environment (see `workers.Worker`).
"""

import json
import os
import time
from typing import Any, NoReturn

from celery import Celery, Task
from celery.exceptions import Reject

LEDGER_FILE = "TEST_LEDGER_FILE"
BROKER_URL = "TEST_BROKER_URL"
CONFIGURATION = "TEST_CELERY_CONFIGURATION"


def make_app(broker_url: str, **configuration: Any) -> Celery:
    """Build the app as workers and the clients of the tests use it."""
    app = Celery("tests", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_send_sent_event=True,
        broker_connection_retry_on_startup=True,
        worker_proc_alive_timeout=30,
    )
    app.conf.update(configuration)
    return app


app = make_app(os.environ.get(BROKER_URL, "memory://"), **json.loads(os.environ.get(CONFIGURATION, "{}")))
app.set_current()  # in the worker; a pool process looks for it


def note(task: str, queue: str, state: str) -> None:
    """Append one line; O_APPEND makes that whole, whoever else writes."""
    path = os.environ.get(LEDGER_FILE)
    if path:
        ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(ledger, f"{task}|{queue}|{state}\n".encode())
        os.close(ledger)


class Noting(Task):  # type: ignore[misc]
    """Notes what the body of a task comes to."""

    def note(self, state: str) -> None:
        note(self.name, self.request.delivery_info["routing_key"], state)

    def raise_noted(self, error: Exception) -> NoReturn:
        self.note("FAILURE")
        self.note(f"exception={type(error).__name__}")
        raise error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.note("STARTED")
        return super().__call__(*args, **kwargs)


class Outer:
    """Only here to be around a class."""

    class InnerError(Exception):
        """An exception whose qualified name has a dot."""


@app.task(bind=True, base=Noting, name="tasks.succeed")
def succeed(self: Noting, seconds: float = 0) -> None:
    time.sleep(seconds)
    self.note("SUCCESS")


@app.task(bind=True, base=Noting, name="tasks.fail_with_value_error")
def fail_with_value_error(self: Noting, text: str = "x") -> None:
    self.raise_noted(ValueError(text))


@app.task(bind=True, base=Noting, name="tasks.fail_with_key_error")
def fail_with_key_error(self: Noting) -> None:
    self.raise_noted(KeyError("a key, (with) 'quotes'"))


@app.task(bind=True, base=Noting, name="tasks.fail_with_inner_error")
def fail_with_inner_error(self: Noting) -> None:
    self.raise_noted(Outer.InnerError("x", 1))


@app.task(bind=True, base=Noting, name="tasks.retry_once")
def retry_once(self: Noting, countdown: float = 0) -> None:
    if self.request.retries == 0:
        self.note("RETRY")
        raise self.retry(countdown=countdown, exc=OSError("first time"))
    self.note("SUCCESS")


@app.task(bind=True, base=Noting, name="tasks.retry_and_fail", max_retries=1)
def retry_and_fail(self: Noting) -> None:
    error = TimeoutError("always")
    if self.request.retries == 0:
        self.note("RETRY")
        raise self.retry(countdown=0, exc=error)
    self.raise_noted(error)


@app.task(bind=True, base=Noting, name="tasks.reject", acks_late=True)
def reject(self: Noting) -> None:
    self.note("REJECTED")
    # It never runs again, so Celery (since 5.7, request.py) says of it that it failed as well. The repr of
    # Reject, all that the event has, is a sentence without the name of the class.
    self.note("FAILURE")
    self.note("exception=unknown")
    raise Reject("no", requeue=False)


@app.task(bind=True, base=Noting, name="tasks.requeue_once", acks_late=True)
def requeue_once(self: Noting) -> None:
    if not self.request.delivery_info["redelivered"]:
        self.note("REJECTED")
        raise Reject("later", requeue=True)
    self.note("SUCCESS")
