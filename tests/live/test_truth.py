"""What the exporter counts is what the tasks themselves counted, to the last one."""

import random
import time
from collections import Counter
from uuid import uuid4

from harness.events import one_task, publish_events
from harness.marks import on_redis
from harness.waiting import eventually, until_equal

QUEUES = ("left", "right")
MIX = {  # on each queue; with the revoked ones they are 1,000
    "tasks.succeed": 700,
    "tasks.fail_with_value_error": 80,
    "tasks.fail_with_key_error": 40,
    "tasks.fail_with_inner_error": 40,
    "tasks.retry_once": 60,
    "tasks.retry_and_fail": 20,
    "tasks.reject": 20,
    "tasks.requeue_once": 20,
}
REVOKED = 20  # on each queue
STATES = ("PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED", "REJECTED")


def revoke(client, count):
    """Have all workers refuse tasks that are sent later; return their ids."""
    ids = [str(uuid4()) for _ in range(count)]
    answers = client.control.revoke(ids, reply=True, timeout=5, limit=len(QUEUES))
    assert len(answers) == len(QUEUES), answers
    return ids


def send(client):
    """Send 2,000 tasks over two queues, in an order that is the same each time; return what was sent."""
    ids = revoke(client, REVOKED * len(QUEUES))
    jobs = [(task, queue, None) for queue in QUEUES for task, count in MIX.items() for _ in range(count)]
    jobs += [("tasks.succeed", QUEUES[number % 2], uuid) for number, uuid in enumerate(ids)]
    random.Random(2).shuffle(jobs)
    for task, queue, uuid in jobs:
        client.send_task(task, queue=queue, task_id=uuid)
    return Counter((task, queue) for task, queue, _ in jobs), Counter((t, q) for t, q, uuid in jobs if uuid)


def expected(sent, revoked, ledger):
    """Work out each transition that took place, from what client and tasks wrote down."""
    counts = Counter(ledger.of("STARTED", "SUCCESS", "FAILURE", "RETRY", "REJECTED"))
    for (task, queue, state), count in ledger.counts().items():
        if state == "STARTED":
            counts[task, queue, "RECEIVED"] += count  # each message that ran was received
        if state == "RETRY":
            counts[task, queue, "PENDING"] += count  # a retry is sent again
    for (task, queue), count in sent.items():
        counts[task, queue, "PENDING"] += count
    for (task, queue), count in revoked.items():
        counts[task, queue, "REVOKED"] += count
    return dict(counts)


def test_2000_tasks_over_two_queues_are_counted_exactly(running, exporter, worker, client, ledger):
    """Each (task, queue, state) sum equals the ledger; no `unknown`; nothing is left in a gauge."""
    app = running(exporter()).connected()
    running(worker("left@test", queues="left"), worker("right@test", queues="right"))
    eventually(lambda: app.value("celery_workers_online") == 2)

    sent, revoked = send(client)
    assert sum(sent.values()) == 2000
    until_equal(lambda: ledger.total("SUCCESS", "FAILURE"), 2000 - REVOKED * len(QUEUES), 60)

    want = expected(sent, revoked, ledger)

    def transitions():
        by = app.samples().by("celery_tasks_total", "task_name", "queue_name", "state")
        return {key: count for key, count in by.items() if count}

    until_equal(transitions, want, 20)
    samples = app.samples()
    assert sum(count for (*_, state), count in want.items() if state == "PENDING") == samples.total(
        "celery_tasks_total", state="PENDING"
    )

    for label in ("task_name", "queue_name"):
        assert "unknown" not in samples.label_values(label)
    assert not any(samples.by("celery_exporter_label_fallbacks_total", "label").values())
    assert not any(samples.by("celery_exporter_events_missed_total", "worker").values())
    assert not any(samples.by("celery_exporter_events_malformed_total", "reason").values())

    failures = samples.by("celery_task_failures_total", "task_name", "queue_name", "exception")
    assert {key: count for key, count in failures.items() if count} == ledger.exceptions()

    runs = samples.by("celery_task_runtime_seconds_count", "task_name", "queue_name", state="SUCCESS")
    assert {(*key, "SUCCESS"): count for key, count in runs.items() if count} == ledger.of("SUCCESS")
    assert samples.value("celery_workers_online") == 2
    assert samples.by("celery_worker_up", "worker") == {("left@test",): 1, ("right@test",): 1}
    open_tasks = samples.by("celery_tasks", "task_name", "queue_name", "state")
    assert {key: count for key, count in open_tasks.items() if count} == {}
    assert {key: n for key, n in samples.by("celery_tasks_total", "state").items() if n} == {
        (state,): sum(count for (*_, s), count in want.items() if s == state) for state in STATES
    }

    redelivered = samples.by("celery_task_redeliveries_total", "task_name")
    assert {key: n for key, n in redelivered.items() if n} == {
        ("tasks.requeue_once",): len(QUEUES) * MIX["tasks.requeue_once"]
    }
    until_equal(  # heartbeats tell how many tasks the pools took, whatever events said
        lambda: app.total("celery_worker_processed_tasks_total"), ledger.total("STARTED"), 15
    )


@on_redis
def test_waits_are_measured_from_sent_and_from_eta(running, exporter, worker, client, ledger):
    """A task with an eta has waited since its eta; each start gives one wait, none below zero."""
    app = running(exporter("--queue-wait-buckets", "0.5,2.5,10")).connected()
    for _ in range(3):
        client.send_task("tasks.succeed", queue="celery", countdown=4)
    late = running(worker())
    until_equal(lambda: ledger.total("SUCCESS"), 3, 20)
    labels = {"task_name": "tasks.succeed", "queue_name": "celery"}
    until_equal(lambda: app.value("celery_task_queue_wait_seconds_count", **labels), 3)
    samples = app.samples()
    # the worker looks at its timer about once a second; without the eta it would have been 4 s and more
    assert samples.value("celery_task_queue_wait_seconds_bucket", le="2.5", **labels) == 3
    assert 0 <= samples.value("celery_task_queue_wait_seconds_sum", **labels) < 6
    assert samples.value("celery_task_prefetch_wait_seconds_count", **labels) == 3
    assert late.alive()


@on_redis
def test_a_retry_told_after_its_next_attempt_ended(running, exporter, broker):
    """The pool process of the first attempt may report later than that of the second: nothing stays open."""
    app = running(exporter()).connected()
    sent, received, started, succeeded = one_task(1)
    retried = {**started, "type": "task-retried", "exception": "OSError('x')", "traceback": ""}
    attempts = [(sent, received, started), ({**sent, "retries": 1}, {**received, "retries": 1}, started)]
    events = [*attempts[0], *attempts[1], succeeded, retried]
    now = time.time()
    publish_events(
        broker.url, *({**event, "timestamp": now + number / 100} for number, event in enumerate(events))
    )
    labels = {"task_name": "made.up", "queue_name": "made"}
    until_equal(lambda: app.value("celery_tasks_total", state="RETRY", **labels), 1)
    by_state = app.samples().by("celery_tasks_total", "state", **labels)
    assert {state: n for (state,), n in by_state.items() if n} == {
        "PENDING": 2,
        "RECEIVED": 2,
        "STARTED": 2,
        "SUCCESS": 1,
        "RETRY": 1,
    }
    assert app.total("celery_tasks") == 0
