"""Workers that are stopped, killed or replaced, or whose clock is wrong."""

from __future__ import annotations

import time
from uuid import uuid4

from harness.broker_marks import on_redis
from harness.exporter import Samples
from harness.faked_clock import clock_offset
from harness.waiting import until_equal

from .jobs import LATER, PLAIN, send_shuffled
from .scene import Scene, size

#: kombu redelivers unacknowledged messages after 2 s, and checks twice a second.
VISIBILITY = {"visibility_timeout": 2, "unacked_restore_interval": 0.5, "unacked_restore_throttle": 1}
CLOCK_ERROR_SECONDS = 420  # 7 minutes


def test_revoked_while_running(scene: Scene) -> None:
    """Two running tasks are terminated; the prefetched ones are revoked before they start."""
    scene.start(scene.exporter, scene.make_worker(concurrency=2))
    for _ in range(size(1, 10)):
        before = scene.total("STARTED")
        ids = [str(uuid4()) for _ in range(6)]
        for task_id in ids:
            scene.send("tasks.hold", "never", task_id=task_id)
        scene.await_total(before + 2, "STARTED")
        scene.client.control.revoke(ids, terminate=True)
        scene.await_ends()
    send_shuffled(scene, PLAIN)
    scene.await_ends()
    scene.assert_exact()
    assert scene.total("REVOKED") == size(6, 60)


def test_redelivered_from_a_worker_that_was_killed(scene: Scene) -> None:
    """With acks_late, the other worker receives all tasks, and runs started ones again."""
    killed = scene.make_worker("a@test")
    scene.start(scene.exporter, killed)
    scene.send("tasks.hold_late", "gate", times=6)
    scene.await_total(6, "RECEIVED")
    scene.await_total(2, "STARTED")
    scene.await_counted()
    killed.kill()
    scene.outcomes.open_gate("gate")
    options = VISIBILITY if scene.broker.kind == "redis" else {}
    scene.start(scene.make_worker("b@test", broker_transport_options=options))
    send_shuffled(scene, PLAIN)
    scene.await_ends()
    scene.assert_exact()
    assert scene.outcomes.of("redelivered")["tasks.hold_late", "celery", "redelivered"] == 6


def test_put_back_and_taken_by_another_worker(scene: Scene) -> None:
    """This takes milliseconds, so events of the second worker may overtake those of the first."""
    pools = (("a@test", "prefork"), ("b@test", "threads"))
    scene.start(scene.exporter, *(scene.make_worker(node, pool=pool) for node, pool in pools))
    scene.send("tasks.requeue_once", times=size(100, 1_000))
    scene.await_ends()
    scene.assert_exact()
    assert scene.total("REJECTED") == scene.total("redelivered") == scene.sent


@on_redis
def test_delivered_twice_at_a_time(scene: Scene) -> None:
    """A task that exceeds the visibility timeout is delivered again: it runs and ends twice."""
    workers = (scene.make_worker(node, broker_transport_options=VISIBILITY) for node in ("a@test", "b@test"))
    scene.start(scene.exporter, *workers)
    scene.send("tasks.hold_late", "gate", times=2)
    scene.await_total(2, "redelivered")
    scene.await_total(4, "STARTED")
    scene.outcomes.open_gate("gate")
    scene.await_total(scene.total("STARTED"), "SUCCESS")
    scene.assert_exact()


def test_two_workers_on_one_host_one_stopped(scene: Scene) -> None:
    """The counts of the stopped worker stay under its name. It is down, and the other worker is up."""
    stopped = scene.make_worker("b@host")
    scene.start(scene.exporter, scene.make_worker("a@host"), stopped)
    send_shuffled(scene, PLAIN)
    scene.await_ends()
    stopped.stop()
    until_equal(
        lambda: scene.exporter.samples().by("celery_worker_up", "worker", "hostname"),
        {("a@host", "host"): 1, ("b@host", "host"): 0},
    )
    send_shuffled(scene, PLAIN)
    scene.await_ends()
    samples = scene.assert_exact()
    assert samples.total("celery_tasks_total", worker="b@host", state="STARTED") > 0
    assert samples.total("celery_worker_processed_tasks_total") == scene.total("STARTED")


def test_killed_and_restarted(scene: Scene) -> None:
    """Its running tasks were acknowledged and do not end. The next process reports no running tasks."""
    killed = scene.make_worker()
    scene.start(scene.exporter, killed)
    send_shuffled(scene, PLAIN)
    scene.await_ends()
    before = scene.total("STARTED")
    scene.send("tasks.hold", "never", times=2)
    scene.await_total(before + 2, "STARTED")
    scene.await_counted()
    killed.kill()
    scene.start(scene.make_worker())
    send_shuffled(scene, PLAIN)
    scene.await_ends(lost=2)
    reconciled = "celery_exporter_tasks_reconciled_total"
    until_equal(lambda: scene.exporter.value(reconciled, reason="not_running"), 2)
    samples = scene.assert_exact()
    assert samples.by("celery_worker_restarts_total", "worker") == {("worker@test",): 1}


def test_clocks_seven_minutes_off_in_other_time_zones(scene: Scene) -> None:
    """Counts and the waits by one clock are exact. Negative waits are reported."""
    fast, slow = (
        clock_offset(CLOCK_ERROR_SECONDS, "Asia/Kolkata"),
        clock_offset(-CLOCK_ERROR_SECONDS, "America/New_York"),
    )
    scene.start(
        scene.exporter,
        scene.make_worker("fast@test", queues="fast", environment=fast),
        scene.make_worker("slow@test", queues="slow", environment=slow, pool="solo"),
    )
    send_shuffled(scene, PLAIN, ("fast", "slow"))
    send_shuffled(scene, LATER, ("fast",))  # for the slow clock, one second is 7 minutes in the future
    scene.send("tasks.succeed", times=2, queue="fast", expires=60)
    scene.await_ends()
    samples = scene.assert_exact()
    assert scene.total("REVOKED") == 2, "for the fast clock they had expired"
    skews = samples.by("celery_worker_clock_skew_seconds", "worker")
    assert abs(skews["fast@test",] - CLOCK_ERROR_SECONDS) < 5
    assert abs(skews["slow@test",] + CLOCK_ERROR_SECONDS) < 5
    for worker in ("fast@test", "slow@test"):
        assert is_within_a_minute(samples, "celery_task_prefetch_wait_seconds", worker)
    assert is_within_a_minute(samples, "celery_task_queue_wait_seconds", "slow@test"), "7 minutes less is 0"
    assert samples.value("celery_exporter_negative_waits_total") > 0
    newest = samples.by("celery_task_last_timestamp_seconds", "state", "task_name")
    assert max(newest.values()) <= time.time()


def is_within_a_minute(samples: Samples, histogram: str, worker: str) -> bool:
    """Return whether all values are at most 60 s; a clock error would add 7 minutes."""
    values = samples.total(f"{histogram}_count", worker=worker)
    return 0 < values == samples.total(f"{histogram}_bucket", worker=worker, le="60")
