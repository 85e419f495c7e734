"""The label set of a task and of each of its attempts.

Numbers of invariants are those of docs/explanation/architecture.md.
"""

from __future__ import annotations

import pytest

from celery_exporter.core.types import State
from celery_exporter.core.workers import WorkerInfo

from .cluster_driver import (
    ClusterDriver,
    driver_after,
    failed,
    heartbeat,
    received,
    retried,
    sent,
    started,
    succeeded,
)


def test_invariant_2_without_task_sent_the_only_queue_of_the_worker_is_the_fallback():
    driver = ClusterDriver()
    driver.apply(heartbeat())
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("mail",))}, driver.timestamp())
    driver.apply(received(), started(), succeeded())
    assert driver.counts() == {}, "counted before the window has passed"
    driver.wait(2.5)
    assert driver.counts() == {("add", "mail", state): 1 for state in ("RECEIVED", "STARTED", "SUCCESS")}
    assert driver.cluster.fallbacks["queue_name"] == 1


def test_invariant_2_the_only_queue_is_the_fallback_without_task_received_too():
    driver = ClusterDriver()
    driver.apply(heartbeat())
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("mail",))}, driver.timestamp())
    driver.apply(started())
    driver.wait(2.5)
    assert driver.counts() == {("unknown", "mail", "STARTED"): 1}


def test_invariant_2_a_worker_with_two_queues_leaves_the_queue_unknown():
    driver = ClusterDriver()
    driver.apply(heartbeat())
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("mail", "celery"))}, driver.timestamp())
    driver.apply(received())
    driver.wait(2.5)
    assert driver.counts() == {("add", "unknown", "RECEIVED"): 1}


def test_invariant_2_a_task_without_a_name_is_unknown_and_counted():
    driver = ClusterDriver()
    driver.apply(started("u1"), succeeded("u1"), started("u2"), succeeded("u2"))
    driver.wait(2.5)
    assert driver.counts() == {("unknown", "unknown", state): 2 for state in ("STARTED", "SUCCESS")}
    assert driver.cluster.fallbacks == {"task_name": 2, "queue_name": 2, "worker": 0}


def test_invariant_2_a_task_sent_without_a_name_is_unknown_in_its_own_queue():
    driver = ClusterDriver()
    driver.apply(sent(name=None))
    assert driver.counts() == {("unknown", "q", "PENDING"): 1}
    assert driver.cluster.fallbacks == {"task_name": 1, "queue_name": 0, "worker": 0}


def test_invariant_2_a_retry_that_is_sent_without_a_name_keeps_that_of_its_task():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), retried(), sent(at=0.4, retries=1, name=None))
    assert driver.by_state()["PENDING"] == 2
    assert {name for name, *_ in driver.counts()} == {"add"}


def test_invariant_2_other_work_under_an_id_from_a_worker_with_two_queues_is_unknown_and_counted():
    driver = driver_after(
        *(sent(), received(), started(), received(at=1, name="mul", **B), started(at=2, **B)),
        queues=("q", "r"),
    )
    assert driver.counts()["mul", "unknown", "RECEIVED"] == 1
    assert driver.cluster.fallbacks == {"task_name": 0, "queue_name": 1, "worker": 0}


def test_invariant_2_a_task_sent_after_the_window_names_later_transitions():
    driver = ClusterDriver()
    driver.apply(received(), started())
    driver.wait(2.5)
    driver.apply(sent(), succeeded())
    assert driver.counts() == {
        ("add", "unknown", "RECEIVED"): 1,
        ("add", "unknown", "STARTED"): 1,
        ("add", "q", "PENDING"): 1,
        ("add", "q", "SUCCESS"): 1,
    }
    assert driver.aggregate().queue_wait.counts == [0, 1, 0, 0]


def test_an_unregistered_task_keeps_its_name_without_task_sent():
    driver = ClusterDriver()
    driver.apply(failed(exception="NotRegistered('shop.pay')"))
    driver.wait(2.5)
    assert driver.counts() == {("shop.pay", "unknown", "FAILURE"): 1}


def test_invariant_2_each_attempt_is_counted_under_its_own_queue():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), sent(at=0.25, retries=1, queue="right"), retried(at=0.3))
    driver.apply(received(at=0.4, retries=1), started(at=0.5), failed(at=0.7))
    assert driver.counts() == {
        **{("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "RETRY")},
        **{("add", "right", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "FAILURE")},
    }
    assert driver.aggregate().runtime[State.RETRY].total == pytest.approx(0.1)
    assert driver.aggregate(queue="right").runtime[State.FAILURE].total == pytest.approx(0.2)
    assert driver.aggregate(queue="right").queue_wait.total == pytest.approx(0.25)


def test_invariant_2_a_late_start_is_counted_under_the_queue_of_its_attempt():
    driver = ClusterDriver()
    driver.apply(sent(), received(), sent(at=0.25, retries=1, queue="right"), started(), retried(at=0.3))
    assert driver.counts() == {
        **{("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "RETRY")},
        ("add", "right", "PENDING"): 1,
    }
    assert driver.aggregate().queue_wait.total == pytest.approx(0.2)


def test_invariant_2_a_retry_without_task_sent_has_the_queue_of_the_task():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), retried(), received(at=1, retries=1), started(at=1.1))
    assert driver.gauges() == {"RETRY": 1}, "counted before the window has passed"
    driver.wait(2.5)
    assert driver.gauges() == {"STARTED": 1}
    driver.apply(succeeded(at=2))
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 2, "STARTED": 2, "RETRY": 1, "SUCCESS": 1}


def test_a_late_task_sent_of_an_earlier_attempt_leaves_the_newest_one_in_its_queue():
    driver = ClusterDriver()
    driver.apply(received(), started(), retried(), received(at=0.4, retries=1))
    driver.wait(2.5)
    driver.apply(sent(), started(at=5))
    shown = [group for group in driver.cluster.tasks.in_states() if group.count]
    assert [(group.label_set.queue_name, group.state.name) for group in shown] == [("unknown", "STARTED")]
    driver.apply(succeeded(at=6))
    assert driver.counts()["add", "unknown", "SUCCESS"] == 1


A, B = {"host": "a@h"}, {"host": "b@h"}


@pytest.mark.parametrize("order", [(0, 0, 0, 1, 1, 1), (1, 1, 1, 0, 0, 0), (0, 1, 0, 1, 0, 1)])
def test_invariant_2_without_task_sent_each_attempt_has_the_only_queue_of_its_worker(order):
    workers = [
        [received(**A), started(**A), retried(**A)],
        [received(at=1, retries=1, **B), started(at=2, **B), succeeded(at=3, **B)],
    ]
    driver = ClusterDriver()
    driver.apply(heartbeat("a@h"), heartbeat("b@h"))
    infos = {"a@h": WorkerInfo(queues=("q",)), "b@h": WorkerInfo(queues=("right",))}
    driver.cluster.record_inspection(infos, driver.timestamp())
    driver.apply(*(workers[worker].pop(0) for worker in order))
    driver.wait(2.5)
    assert driver.counts() == {
        **{("add", "q", state): 1 for state in ("RECEIVED", "STARTED", "RETRY")},
        **{("add", "right", state): 1 for state in ("RECEIVED", "STARTED", "SUCCESS")},
    }


def test_invariant_2_a_retry_without_task_sent_has_the_only_queue_of_its_worker():
    driver = ClusterDriver()
    driver.apply(heartbeat("b@h"))
    driver.cluster.record_inspection({"b@h": WorkerInfo(queues=("right",))}, driver.timestamp())
    driver.apply(sent(), received(**A), started(**A), retried(**A))
    driver.apply(received(at=1, retries=1, **B), started(at=2, **B), succeeded(at=3, **B))
    driver.wait(2.5)
    assert driver.counts() == {
        **{("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "RETRY")},
        **{("add", "right", state): 1 for state in ("RECEIVED", "STARTED", "SUCCESS")},
    }


@pytest.mark.parametrize("processed", [0, 3])
@pytest.mark.parametrize("offline", [True, False])
def test_a_container_that_restarted_with_another_queue_is_inspected_before_its_tasks_are_counted(
    processed, offline
):
    """Its pid is the same, and it may have processed nothing before."""
    driver = ClusterDriver()
    driver.apply(heartbeat(kind="online"))
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("old",))}, driver.timestamp(), {"w@h": 0})
    driver.apply(heartbeat(at=4, processed=processed))
    if offline:
        driver.apply(heartbeat(at=5, kind="offline", processed=processed))
    driver.wait(30)
    driver.apply(heartbeat(at=34, kind="online"), received(at=34.1), started(at=34.2), succeeded(at=34.3))
    driver.wait(3)
    starts = driver.cluster.workers["w@h"].starts
    driver.cluster.record_inspection(
        {"w@h": WorkerInfo(queues=("new",))}, driver.timestamp(), {"w@h": starts}
    )
    driver.wait(12)
    assert {queue for _, queue, _ in driver.counts()} == {"new"}


# -- workers that have not replied yet -------------------------------------------------------------------


def driver_of_a_worker_with_two_queues() -> ClusterDriver:
    driver = ClusterDriver()
    driver.apply(heartbeat("b@h"))
    driver.cluster.record_inspection({"b@h": WorkerInfo(queues=("q", "right"))}, driver.timestamp())
    return driver


def test_a_redelivery_of_a_task_in_an_unknown_queue_awaits_the_reply_of_its_worker():
    driver = driver_of_a_worker_with_two_queues()
    driver.apply(received(**A))
    driver.wait(2.5)
    assert driver.counts() == {("add", "unknown", "RECEIVED"): 1}
    driver.apply(heartbeat("b@h", at=4, kind="online"), received(at=5, **B))
    assert driver.counts() == {("add", "unknown", "RECEIVED"): 1}, "counted before the worker has replied"
    driver.cluster.record_inspection({"b@h": WorkerInfo(queues=("right",))}, driver.timestamp())
    driver.wait(2.5)
    assert driver.counts() == {("add", "unknown", "RECEIVED"): 1, ("add", "right", "RECEIVED"): 1}


def test_a_redelivery_of_a_task_in_a_known_queue_awaits_no_reply():
    driver = driver_of_a_worker_with_two_queues()
    driver.apply(sent(), sent(at=0.05, retries=1), received(**A))
    driver.apply(heartbeat("b@h", at=4, kind="online"), received(at=5, retries=1, **B))
    assert driver.counts() == {("add", "q", "PENDING"): 2, ("add", "q", "RECEIVED"): 2}


# -- shadow names ----------------------------------------------------------------------------------------


def driver_of_a_worker_that_registers(*names: str) -> ClusterDriver:
    driver = ClusterDriver()
    driver.apply(heartbeat())
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("q",), registered=names)}, driver.timestamp())
    return driver


def test_a_shadow_name_stands_for_the_task_that_was_sent():
    driver = driver_of_a_worker_that_registers("add")
    driver.apply(sent(), received(name="nightly"), received("u2", name="nightly"))
    driver.wait(2.5)
    assert driver.counts() == {("add", "q", "PENDING"): 1, ("add", "q", "RECEIVED"): 2}


def test_a_shadow_name_does_not_stand_for_a_task_without_a_name():
    driver = driver_of_a_worker_that_registers("add")
    driver.apply(sent(name=None), received(name="nightly"), received("u2", name="nightly"))
    driver.wait(2.5)
    assert driver.counts()["nightly", "q", "RECEIVED"] == 1


def test_a_name_that_the_worker_registers_is_no_shadow_name():
    driver = driver_of_a_worker_that_registers("add", "mul")
    driver.apply(sent(), received(name="mul"), received("u2", name="mul"))
    driver.wait(2.5)
    assert driver.counts()["mul", "q", "RECEIVED"] == 2
