"""The Celery app of the tests. Each task records its own outcome, independent of events.

Tests compare the exporter with these outcomes. Workers read their settings from the environment (see
`workers.Worker`).
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

from celery_exporter.instrumentation import Measurements, monitor_time
from harness.delayed_events import DelayedDispatcher
from harness.event_times import NotingRequest, note_events
from harness.outcomes import (
    RETRIES_EXCEEDED,
    Outcome,
    RedisOutcomes,
    attempt_of,
    outcomes_at,
    record_failure,
    record_signals,
)
from harness.waiting import eventually

OUTCOMES = "TEST_OUTCOMES"
BROKER_URL = "TEST_BROKER_URL"
CONFIGURATION = "TEST_CELERY_CONFIGURATION"
#: If it is set, the worker notes when it makes events, with its recorded outcomes.
EVENT_TIMES = "TEST_EVENT_TIMES"
GATE_TIMEOUT_SECONDS = 60.0


def make_app(broker_url: str, *, broadcast: str | None = None, **configuration: Any) -> Celery:
    """Return the app that workers and clients of the tests use. `broadcast` names a broadcast queue."""
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
app.set_current()  # a pool process of the worker uses the current app

outcomes = outcomes_at(os.environ[OUTCOMES]) if OUTCOMES in os.environ else None
if outcomes:
    record_signals(outcomes)
if EVENT_TIMES in os.environ:
    assert isinstance(outcomes, RedisOutcomes)
    note_events(app, outcomes)


class RecordingTask(Task):  # type: ignore[misc]
    """Records the start and the end of its body. Celery's signal records a retry (see `outcomes`)."""

    if EVENT_TIMES in os.environ:
        Request = NotingRequest

    def record(self, state: str) -> None:
        if outcomes:
            outcomes.record(self.outcome(state), attempt_of(self.request))

    def record_failure(self, exception: str) -> None:
        if outcomes:
            record_failure(outcomes, self.outcome("FAILURE"), attempt_of(self.request), exception)

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Record that no retry is left; autoretry_for calls this method, too."""
        try:
            return super().retry(*args, **kwargs)
        except (Retry, Reject):
            raise
        except Exception:
            self.record(RETRIES_EXCEEDED)
            raise

    def outcome(self, state: str) -> Outcome:
        request = self.request
        return Outcome(self.name, str(request.delivery_info["routing_key"]), state, request.hostname)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.record("STARTED")
        try:
            result = super().__call__(*args, **kwargs)
        except (Retry, Ignore):
            raise
        except Reject as rejection:
            self.record("REJECTED")
            if not rejection.requeue:  # Celery from 5.7 on reports a failure as well
                self.record_failure(type(rejection).__name__)
            raise
        except Exception as error:
            self.record_failure(type(error).__name__)
            raise
        self.record("SUCCESS")
        return result


class Outer:
    """The outer class of an exception."""

    class InnerError(Exception):
        """An exception whose qualified name has a dot."""


@app.task(bind=True, base=RecordingTask, name="tasks.succeed")
def succeed(self: RecordingTask, seconds: float = 0) -> None:  # noqa: ARG001
    time.sleep(seconds)


@app.task(bind=True, base=RecordingTask, name="tasks.fail_with_value_error")
def fail_with_value_error(self: RecordingTask, text: str = "x") -> None:  # noqa: ARG001
    raise ValueError(text)


@app.task(bind=True, base=RecordingTask, name="tasks.fail_with_key_error")
def fail_with_key_error(self: RecordingTask) -> None:  # noqa: ARG001
    raise KeyError("a key, (with) 'quotes'")


@app.task(bind=True, base=RecordingTask, name="tasks.fail_with_inner_error")
def fail_with_inner_error(self: RecordingTask) -> None:  # noqa: ARG001
    raise Outer.InnerError("x", 1)


@app.task(bind=True, base=RecordingTask, name="tasks.retry_once")
def retry_once(self: RecordingTask, countdown: float = 0) -> None:
    if self.request.retries == 0:
        raise self.retry(countdown=countdown, exc=OSError("first time"))


@app.task(bind=True, base=RecordingTask, name="tasks.retry_elsewhere")
def retry_elsewhere(self: RecordingTask, queue: str) -> None:
    """Send the second attempt to another queue."""
    if self.request.retries == 0:
        raise self.retry(countdown=0, queue=queue, exc=OSError("not here"))


@app.task(bind=True, base=RecordingTask, name="tasks.retry_with_late_task_sent")
def retry_with_late_task_sent(self: RecordingTask) -> None:
    """Publish the task-sent event of the second attempt after its other events."""
    if self.request.retries == 0:
        raise self.retry(countdown=0, exc=OSError("first time"), event_dispatcher=delayed_dispatcher())


@functools.cache
def delayed_dispatcher() -> DelayedDispatcher:
    """Return the dispatcher of this process, which runs until the process ends."""
    return DelayedDispatcher(app, 0.5, 1.5).__enter__()


@app.task(bind=True, base=RecordingTask, name="tasks.retry_and_fail", max_retries=1)
def retry_and_fail(self: RecordingTask) -> None:
    raise self.retry(countdown=0, exc=TimeoutError("always"))


@app.task(bind=True, base=RecordingTask, name="tasks.retry_without_exc", max_retries=1)
def retry_without_exc(self: RecordingTask) -> None:
    """Fail with Celery's own exception."""
    raise self.retry(countdown=0)


@app.task(
    bind=True,
    base=RecordingTask,
    name="tasks.autoretry_and_fail",
    autoretry_for=(OSError,),
    retry_kwargs={"max_retries": 1, "countdown": 0},
)
def autoretry_and_fail(self: RecordingTask) -> None:  # noqa: ARG001
    raise ConnectionError("always")


@app.task(bind=True, base=RecordingTask, name="tasks.fail_after_retries", max_retries=None)
def fail_after_retries(self: RecordingTask, retries: int) -> None:
    """Fail with another exception after this many retries, of any number."""
    if self.request.retries < retries:
        raise self.retry(countdown=0, exc=OSError("not yet"))
    raise ValueError("it does not help")


@app.task(
    bind=True,
    base=RecordingTask,
    name="tasks.back_off",
    autoretry_for=(OSError,),
    retry_backoff=1,
    retry_jitter=False,
    max_retries=3,
)
def back_off(self: RecordingTask) -> None:
    """Succeed at the third attempt; the retries wait for 1 s and 2 s."""
    if self.request.retries < 2:
        raise ConnectionError("not yet")


@app.task(bind=True, base=RecordingTask, name="tasks.reject", acks_late=True)
def reject(self: RecordingTask) -> None:  # noqa: ARG001
    raise Reject("no", requeue=False)


@app.task(bind=True, base=RecordingTask, name="tasks.requeue_once", acks_late=True)
def requeue_once(self: RecordingTask) -> None:
    if not self.request.delivery_info["redelivered"]:
        raise Reject("later", requeue=True)


@app.task(bind=True, base=RecordingTask, name="tasks.hold")
def hold(self: RecordingTask, gate: str) -> None:  # noqa: ARG001
    """Wait until the test opens the gate."""
    assert outcomes
    gates = outcomes
    eventually(lambda: gates.is_open(gate), GATE_TIMEOUT_SECONDS, every=0.05, what=f"gate {gate}")


@app.task(bind=True, base=RecordingTask, name="tasks.retry_and_hold")
def retry_and_hold(self: RecordingTask, gate: str) -> None:
    """Wait at the gate in the second attempt."""
    if self.request.retries == 0:
        raise self.retry(countdown=0, exc=OSError("first time"))
    hold.run(gate)


@app.task(bind=True, base=RecordingTask, name="tasks.hold_and_retry")
def hold_and_retry(self: RecordingTask, gate: str) -> None:
    """Wait at the gate in the first attempt."""
    if self.request.retries == 0:
        hold.run(gate)
        raise self.retry(countdown=0, exc=OSError("first time"))


@app.task(bind=True, base=RecordingTask, name="tasks.hold_late", acks_late=True)
def hold_late(self: RecordingTask, gate: str) -> None:  # noqa: ARG001
    """Wait until the test opens the gate, and acknowledge the message after that."""
    hold.run(gate)


@app.task(bind=True, base=RecordingTask, name="tasks.measure")
def measure(
    self: RecordingTask, fields: dict[str, Any], tags: dict[str, str] | None = None, outcome: str = ""
) -> None:
    """Measure these fields and the time of an empty block; then fail or retry once if `outcome` says so."""
    data = Measurements(tags or {}, fields)
    with monitor_time(data, "block_seconds"):
        pass
    data.send(self)
    if outcome == "fail":
        raise ValueError("measured before")
    if outcome == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0, exc=OSError("first time"))


@app.task(bind=True, base=RecordingTask, name="tasks.ignore")
def ignore(self: RecordingTask) -> None:  # noqa: ARG001
    """End without an event."""
    raise Ignore


@app.task(bind=True, base=RecordingTask, name="tasks.replace")
def replace(self: RecordingTask, name: str, queue: str) -> None:
    """Replace the task with another one, under the same id, in another queue."""
    raise self.replace(app.tasks[name].si().set(queue=queue))


@app.task(bind=True, base=RecordingTask, name="tasks.die")
def die(self: RecordingTask) -> None:  # noqa: ARG001
    """Kill the pool process."""
    os.kill(os.getpid(), signal.SIGKILL)
