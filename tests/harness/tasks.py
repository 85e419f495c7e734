"""The Celery app of the tests. Each task writes down itself what it did, in a ledger that owes nothing to
events, and is what the exporter is held against.

Workers read their settings from the environment (see `workers.Worker`).
"""

import functools
import json
import os
import signal
import time
from typing import Any

import kombu
from celery import Celery, Task
from celery.exceptions import Ignore, Reject, Retry
from kombu.common import Broadcast

from harness.delayed_events import LateDispatcher
from harness.outcomes import Entry, RedisLedger, keep, ledger_at, note_failure
from harness.waiting import eventually

LEDGER = "TEST_LEDGER"
BROKER_URL = "TEST_BROKER_URL"
CONFIGURATION = "TEST_CELERY_CONFIGURATION"
PATIENCE = 60.0  # seconds for which a task waits at a gate


def make_app(broker_url: str, *, broadcast: str | None = None, **configuration: Any) -> Celery:
    """Build the app as workers and clients of the tests use it; `broadcast` names a queue of that kind."""
    if broadcast is not None:
        configuration["task_queues"] = (kombu.Queue("celery"), Broadcast(broadcast))
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

ledger = ledger_at(os.environ[LEDGER]) if LEDGER in os.environ else None
if ledger:
    keep(ledger)


class Noting(Task):  # type: ignore[misc]
    """Notes that its body began, and what it came to; a retry is noted by its signal (see `ledger`)."""

    def note(self, state: str) -> None:
        if ledger:
            ledger.note(Entry(self.name, self.queue_name, state, self.request.hostname))

    def note_failure(self, exception: str) -> None:
        if ledger:
            note_failure(ledger, self.name, self.queue_name, self.request.hostname, exception)

    @property
    def queue_name(self) -> str:
        return str(self.request.delivery_info["routing_key"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.note("STARTED")
        try:
            result = super().__call__(*args, **kwargs)
        except (Retry, Ignore):
            raise
        except Reject as rejection:
            self.note("REJECTED")
            if not rejection.requeue:  # it never runs again: since 5.7 Celery says that it failed as well
                self.note_failure(type(rejection).__name__)
            raise
        except Exception as error:
            self.note_failure(type(error).__name__)
            raise
        self.note("SUCCESS")
        return result


class Outer:
    """Only here to be around a class."""

    class InnerError(Exception):
        """An exception whose qualified name has a dot."""


@app.task(bind=True, base=Noting, name="tasks.succeed")
def succeed(self: Noting, seconds: float = 0) -> None:  # noqa: ARG001
    time.sleep(seconds)


@app.task(bind=True, base=Noting, name="tasks.fail_with_value_error")
def fail_with_value_error(self: Noting, text: str = "x") -> None:  # noqa: ARG001
    raise ValueError(text)


@app.task(bind=True, base=Noting, name="tasks.fail_with_key_error")
def fail_with_key_error(self: Noting) -> None:  # noqa: ARG001
    raise KeyError("a key, (with) 'quotes'")


@app.task(bind=True, base=Noting, name="tasks.fail_with_inner_error")
def fail_with_inner_error(self: Noting) -> None:  # noqa: ARG001
    raise Outer.InnerError("x", 1)


@app.task(bind=True, base=Noting, name="tasks.retry_once")
def retry_once(self: Noting, countdown: float = 0) -> None:
    if self.request.retries == 0:
        raise self.retry(countdown=countdown, exc=OSError("first time"))


@app.task(bind=True, base=Noting, name="tasks.retry_elsewhere")
def retry_elsewhere(self: Noting, queue: str) -> None:
    """Go to another queue for the second attempt."""
    if self.request.retries == 0:
        raise self.retry(countdown=0, queue=queue, exc=OSError("not here"))


@app.task(bind=True, base=Noting, name="tasks.retry_told_late")
def retry_told_late(self: Noting) -> None:
    """Have the second attempt overtake the word that it was sent."""
    if self.request.retries == 0:
        raise self.retry(countdown=0, exc=OSError("first time"), event_dispatcher=late_dispatcher())


@functools.cache
def late_dispatcher() -> LateDispatcher:
    """Return the one of this process, which has to live until all is said."""
    return LateDispatcher(app, 0.5, 1.5).__enter__()


@app.task(bind=True, base=Noting, name="tasks.retry_and_fail", max_retries=1)
def retry_and_fail(self: Noting) -> None:
    raise self.retry(countdown=0, exc=TimeoutError("always"))


@app.task(
    bind=True,
    base=Noting,
    name="tasks.back_off",
    autoretry_for=(OSError,),
    retry_backoff=1,
    retry_jitter=False,
    max_retries=3,
)
def back_off(self: Noting) -> None:
    """Succeed at the third attempt, 1 s and 2 s after the ones before."""
    if self.request.retries < 2:
        raise ConnectionError("not yet")


@app.task(bind=True, base=Noting, name="tasks.reject", acks_late=True)
def reject(self: Noting) -> None:  # noqa: ARG001
    raise Reject("no", requeue=False)


@app.task(bind=True, base=Noting, name="tasks.requeue_once", acks_late=True)
def requeue_once(self: Noting) -> None:
    if not self.request.delivery_info["redelivered"]:
        raise Reject("later", requeue=True)


@app.task(bind=True, base=Noting, name="tasks.hold")
def hold(self: Noting, gate: str) -> None:  # noqa: ARG001
    """Wait until the test opens the gate."""
    assert isinstance(ledger, RedisLedger)
    books = ledger
    eventually(lambda: books.is_open(gate), PATIENCE, every=0.05, what=f"gate {gate}")


@app.task(bind=True, base=Noting, name="tasks.hold_late", acks_late=True)
def hold_late(self: Noting, gate: str) -> None:  # noqa: ARG001
    """Wait likewise, and acknowledge after that only."""
    hold.run(gate)


@app.task(bind=True, base=Noting, name="tasks.ignore")
def ignore(self: Noting) -> None:  # noqa: ARG001
    """End without an event."""
    raise Ignore


@app.task(bind=True, base=Noting, name="tasks.replace")
def replace(self: Noting, name: str, queue: str) -> None:
    """Have other work done under the same id, in another queue; it ends as that does."""
    raise self.replace(app.tasks[name].si().set(queue=queue))


@app.task(bind=True, base=Noting, name="tasks.die")
def die(self: Noting) -> None:  # noqa: ARG001
    """Take the pool's process away."""
    os.kill(os.getpid(), signal.SIGKILL)
