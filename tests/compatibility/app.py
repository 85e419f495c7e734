"""The Celery app of workers, beats and clients of any version of Celery. It imports nothing but Celery.

`python -m compatibility.app` sends the tasks of `SENT`, and with the argument `waiting` those of `WAITING`.
"""

import os
import sys

from celery import Celery

BROKER_URL = "TEST_BROKER_URL"
#: (task, queue, how many)
SENT = (("tasks.succeed", "celery", 5), ("tasks.fail", "celery", 3), ("tasks.retry_once", "other", 2))
WAITING = (("tasks.succeed", "celery", 4),)
#: A task that is revoked before it is sent.
REVOKED_ID = "b7f1d6b8-8f5e-4a39-9c1e-0a4c7bb0f2aa"

app = Celery("tests", broker=os.environ.get(BROKER_URL, "memory://"))
app.conf.update(
    task_ignore_result=True,
    task_send_sent_event=True,
    worker_send_task_events=True,
    beat_enable_remote_control=True,  # from Celery 5.7 on; others ignore it
)


@app.task(name="tasks.succeed")
def succeed():
    pass


@app.task(name="tasks.fail")
def fail():
    raise ValueError("made up")


@app.task(bind=True, name="tasks.retry_once")
def retry_once(self):
    if self.request.retries == 0:
        raise self.retry(countdown=0, exc=OSError("first time"))


def send(tasks):
    for name, queue, count in tasks:
        for _ in range(count):
            app.send_task(name, queue=queue)


def send_revoked():
    replies = app.control.revoke(REVOKED_ID, reply=True, timeout=60, limit=1)
    assert replies, "the worker did not reply to revoke"
    app.send_task("tasks.succeed", queue="celery", task_id=REVOKED_ID)


if __name__ == "__main__":
    if "waiting" in sys.argv:
        send(WAITING)
    else:
        send(SENT)
        send_revoked()
