"""One uuid, several executions: `Task.replace`, reused ids, attempts, shadow names."""

from __future__ import annotations

import random

import pytest

from celery_exporter.core.executions import (
    MAX_GENERATIONS,
    add_predecessor,
    add_successor,
    find_received,
    find_sent,
    find_shadowed,
)
from celery_exporter.core.limits import Limits
from celery_exporter.core.reconcile import LATE_EVENT_SECONDS, Reconciler
from celery_exporter.core.task_history import MAX_ATTEMPTS, Generation, TaskHistory
from celery_exporter.core.worker_registry import REPLY_SECONDS
from celery_exporter.core.workers import WorkerInfo
from unit.persistence.test_state import restarted

from .cluster_driver import (
    ClusterDriver,
    by_name,
    driver_after,
    failed,
    heartbeat,
    received,
    retried,
    sent,
    started,
    succeeded,
)
from .lives import HERE, A, B, V


def interleavings(*senders: list[dict], limit: int = 200) -> list[list[dict]]:
    """Return orders of events that keep the order of each sender."""
    turns = [number for number, events in enumerate(senders) for _ in events]
    chosen = random.Random(1)
    orders = {tuple(chosen.sample(turns, len(turns))) for _ in range(10 * limit)}
    results = []
    for order in sorted(orders)[:limit]:
        remaining = [iter(events) for events in senders]
        results.append([next(remaining[number]) for number in order])
    return results


def replaced(first: str = "fetch", then: str = "process", *, sends: bool = True) -> tuple[list[dict], ...]:
    """Return the events of a client, a pool process and two workers for a task that replaces itself."""
    return (
        [sent(at=0, name=first)],
        [sent(at=2, name=then, queue="other")] if sends else [],
        [received(at=1, name=first, **A), started(at=1.5, **A)],
        [received(at=3, name=then, **B), started(at=4, **B), succeeded(at=6, runtime=2.0, **B)],
    )


RUN = ("PENDING", "RECEIVED", "STARTED", "SUCCESS")


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("order", interleavings(*replaced()))
def test_a_replaced_task_is_two_executions_in_any_order(order, registered):
    driver = ClusterDriver()
    if registered:
        names = ("fetch", "process")
        infos = {"a@h": WorkerInfo(registered=names), "b@h": WorkerInfo(registered=names)}
        driver.cluster.record_inspection(infos, driver.timestamp())
    for event in order:
        driver.apply(event)
        driver.wait(0.2)
    driver.wait(5)
    assert driver.counts() == {
        **{("fetch", "q", state): 1 for state in RUN[:3]},
        **{("process", "other", state): 1 for state in RUN},
    }
    assert driver.gauges() == {}
    assert sum(aggregate.redeliveries for aggregate in driver.aggregates.snapshot().values()) == 0
    assert driver.aggregate("fetch").queue_wait.total == pytest.approx(1.5)
    assert driver.aggregate("process", "other").queue_wait.total == pytest.approx(2)


@pytest.mark.parametrize("ahead", [0, 300, -300])
@pytest.mark.parametrize("order", interleavings(*replaced()[1:]))
def test_a_replaced_task_is_two_executions_when_only_workers_publish_task_sent(order, ahead):
    """The first of two receipts is random. Heartbeats show how far a clock is ahead."""
    driver, names = ClusterDriver(), ("fetch", "process")
    driver.apply(heartbeat("a@h", at=driver.now), heartbeat("b@h", at=driver.now + ahead))
    infos = {worker: WorkerInfo(queues=("q", "other"), registered=names) for worker in ("a@h", "b@h")}
    driver.cluster.record_inspection(infos, driver.timestamp())
    for event in order:
        skew = ahead if event["hostname"] == "b@h" else 0
        driver.apply(event | {"timestamp": event["timestamp"] + skew})
        driver.wait(0.001)
    driver.wait(5)
    assert by_name(driver) == {
        **{("fetch", state): 1 for state in RUN[1:3]},
        **{("process", state): 1 for state in RUN},
    }
    assert driver.gauges() == {}
    assert sum(aggregate.redeliveries for aggregate in driver.aggregates.snapshot().values()) == 0


def distinguishable() -> list[list[dict]]:
    """Return orders in which a successor of the same name differs from its predecessor.

    There is no difference if its receipt comes before its sending and before the receipt of its predecessor.
    """
    first, *others = replaced(then="fetch")
    orders = []
    for order in interleavings(*others):
        senders = [(event["type"], event["hostname"]) for event in order]
        earlier = min(senders.index(("task-sent", "client@h")), senders.index(("task-received", "a@h")))
        if senders.index(("task-received", "b@h")) > earlier:
            orders.append([*first, *order])
    return orders


@pytest.mark.parametrize("order", distinguishable())
def test_a_task_that_replaces_itself_under_the_same_name_is_two_executions_in_any_order(order):
    driver = ClusterDriver()
    for event in order:
        driver.apply(event)
        driver.wait(0.1)
    driver.wait(5)
    assert by_name(driver) == {("fetch", state): 1 + (state != "SUCCESS") for state in RUN}
    assert driver.gauges() == {}
    assert sum(aggregate.redeliveries for aggregate in driver.aggregates.snapshot().values()) == 0


@pytest.mark.parametrize("order", interleavings(*replaced(sends=False)))
def test_a_replaced_task_is_two_executions_when_only_clients_publish_task_sent(order):
    driver = ClusterDriver()
    names = ("fetch", "process")
    infos = {"a@h": WorkerInfo(registered=names), "b@h": WorkerInfo(queues=("other",), registered=names)}
    driver.cluster.record_inspection(infos, driver.timestamp())
    for event in order:
        driver.apply(event)
        driver.wait(0.2)
    driver.wait(5)
    assert by_name(driver) == {
        **{("fetch", state): 1 for state in RUN[:3]},
        **{("process", state): 1 for state in RUN[1:]},
    }
    assert ("process", "other", "SUCCESS") in driver.counts()
    assert driver.gauges() == {}


def test_a_successor_waits_in_its_own_queue_and_from_its_own_eta():
    driver = ClusterDriver()
    driver.apply(sent(name="fetch"), received(name="fetch"), started())
    driver.apply(sent(at=1, name="process", queue="other", eta="2023-11-14T22:13:50+00:00"))  # T0 + 30 s
    driver.apply(received(at=2, name="process", eta="2023-11-14T22:13:50+00:00", **B), started(at=31, **B))
    assert driver.aggregate("process", "other").queue_wait.total == pytest.approx(1)
    assert driver.aggregate("process", "other").prefetch_wait.total == pytest.approx(1)
    assert driver.gauges() == {"STARTED": 1}


def test_a_child_with_the_id_of_its_running_parent_is_matched_by_runtime():
    driver = ClusterDriver()
    driver.apply(sent(name="parent"), received(name="parent"), started(at=1))
    driver.apply(sent(at=2, name="child"), received(at=3, name="child"), started(at=4))
    driver.apply(succeeded(at=5, runtime=1.0), succeeded(at=9, runtime=8.0))
    assert by_name(driver)["child", "SUCCESS"] == by_name(driver)["parent", "SUCCESS"] == 1
    runtimes = {
        name: next(iter(driver.aggregate(name).runtime.values())).total for name in ("parent", "child")
    }
    assert runtimes == {"parent": 8.0, "child": 1.0}
    assert driver.gauges() == {}


@pytest.mark.parametrize("started_last", [1.05, 1.3])
@pytest.mark.parametrize("first", ["child", "parent"])
def test_an_end_is_matched_to_the_execution_with_the_nearest_runtime(first, started_last):
    driver = ClusterDriver()
    driver.apply(sent(name="parent"), received(name="parent"), started(at=1))
    driver.apply(sent(at=1.01, name="child"), received(at=1.02, name="child"), started(at=started_last))
    ends = {
        "child": succeeded(at=started_last + 0.41, runtime=0.4),
        "parent": succeeded(at=1.61, runtime=0.6),
    }
    driver.apply(ends.pop(first), *ends.values())
    runtimes = {
        name: next(iter(driver.aggregate(name).runtime.values())).total for name in ("parent", "child")
    }
    assert (runtimes, driver.gauges()) == ({"parent": 0.6, "child": 0.4}, {})


def test_a_task_whose_id_was_sent_again_before_its_end_is_pending_then():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), sent(at=1, queue="other"), succeeded(at=2, runtime=1.8))
    assert [(group.label_set.queue_name, group.state.name) for group in groups(driver)] == [
        ("other", "PENDING")
    ]
    driver.apply(received(at=3), started(at=4), succeeded(at=5))
    assert by_name(driver) == {("add", state): 2 for state in RUN}
    assert driver.gauges() == {}


@pytest.mark.parametrize("pause", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("late", [False, True])
def test_a_fixed_id_that_is_sent_repeatedly_is_a_new_task_each_time(pause, late):
    driver = ClusterDriver()
    for number in range(5):
        at = 10.0 * number
        first, second = sent(at=at), received(at=at + 1, **A)
        driver.apply(*((second, first) if late else (first, second)))
        driver.wait(0.1)
        driver.apply(started(at=at + 2, **A), succeeded(at=at + 3, runtime=1.0, **A))
        driver.wait(pause)
    driver.wait(5)
    assert driver.counts() == {("add", "q", state): 5 for state in RUN}
    assert driver.gauges() == {}
    assert driver.aggregate().redeliveries == 0
    assert driver.aggregate().queue_wait.total == pytest.approx(10)


def test_an_id_that_is_sent_twice_before_it_is_received_is_two_tasks_in_order_of_sending():
    driver = ClusterDriver()
    driver.apply(sent(), sent(at=5), received(at=6, **A), started(at=7, **A), received(at=8, **B))
    driver.wait(2.5)
    driver.apply(succeeded(at=9, runtime=2.0, **A))
    assert driver.gauges() == {"RECEIVED": 1}
    driver.apply(started(at=10, **B), succeeded(at=11, **B))
    assert driver.gauges() == {}
    assert driver.aggregate().redeliveries == 0
    assert driver.aggregate().queue_wait.total == pytest.approx(7 + 5)


def groups(driver: ClusterDriver) -> list:
    return [group for group in driver.cluster.tasks.in_states() if group.count]


# -- attempts --------------------------------------------------------------------------------------------


def test_a_retry_by_a_worker_that_publishes_no_task_sent_does_not_stay_started():
    """A process was free, so the next attempt is received before the end of the last one is reported."""
    driver = ClusterDriver()
    driver.apply(
        sent(), received(**A), started(at=1, **A), received(at=2, retries=1, **A), retried(at=2, **A)
    )
    assert driver.gauges() == {"RETRY": 1}
    driver.apply(started(at=3, **A), succeeded(at=4, runtime=1.0, **A))
    assert driver.gauges() == {"RETRY": 1}
    driver.wait(2.5)
    assert driver.gauges() == {}
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 2, "STARTED": 2, "RETRY": 1, "SUCCESS": 1}


def test_a_retry_whose_task_received_was_lost_waits_from_its_own_sending():
    driver = ClusterDriver()
    driver.apply(sent(), started(at=1), sent(at=60, retries=1), retried(at=60), started(at=62), failed(at=63))
    assert driver.aggregate().queue_wait.total == pytest.approx(1 + 2)
    assert driver.gauges() == {}


def test_a_retry_without_task_received_and_task_sent_has_no_wait():
    driver = ClusterDriver()
    driver.apply(sent(), started(at=1), retried(at=60), started(at=62), failed(at=63))
    assert driver.aggregate().queue_wait.total == pytest.approx(1)


@pytest.mark.parametrize("by", [A, {"host": "a@h", "pid": 9}, B], ids=["process", "worker", "other worker"])
def test_a_redelivered_task_with_an_eta_waits_from_its_eta(by):
    eta = "2023-11-14T22:14:20+00:00"  # T0 + 60 s
    driver = ClusterDriver()
    driver.apply(
        sent(eta=eta), received(at=1, eta=eta, **A), received(at=10, eta=eta, **by), started(at=61, **by)
    )
    driver.wait(2.5)
    assert driver.aggregate().redeliveries == 1
    assert driver.aggregate().queue_wait.total == pytest.approx(1)


def test_a_late_task_sent_does_not_reopen_a_task_that_ended_meanwhile():
    """The clock of its sender is ahead, so its timestamp is later than the end on another worker."""
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), retried(at=2, **A))
    driver.apply(received(at=3, retries=1, **B))
    driver.wait(1.9)
    driver.apply(started(at=4.8, **B), succeeded(at=4.9, **B))
    driver.wait(0.5)
    assert driver.gauges() == {}
    driver.wait(0.5)
    driver.apply(sent(at=302, retries=1, hostname="a@h"))
    assert (driver.gauges(), driver.by_state()["PENDING"]) == ({}, 2)


ETA = "2023-11-14T22:14:20+00:00"  # T0 + 60 s


@pytest.mark.parametrize("is_saved", [True, False])
@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("by", [A, {"host": "a@h", "pid": 9}, B], ids=["process", "worker", "other worker"])
def test_a_task_that_is_redelivered_after_its_eta_waits_from_its_eta(by, offline, is_saved):
    driver = ClusterDriver()
    driver.apply(heartbeat("a@h", pid=7), sent(eta=ETA), received(at=1, eta=ETA, **A))
    if offline:
        take_offline(driver, A)
        assert driver.gauges() == {"PENDING": 1}
    driver = restarted(driver) if is_saved else driver
    driver.apply(received(at=100, eta=ETA, **by), started(at=101, **by))
    driver.wait(2.5)
    assert (driver.aggregate().redeliveries, driver.aggregate().queue_wait.total) == (1, pytest.approx(41))


def test_a_started_task_that_is_redelivered_after_its_eta_waits_from_its_redelivery():
    driver = ClusterDriver()
    driver.apply(sent(eta=ETA), received(at=1, eta=ETA, **A), started(at=62, **A))
    driver.apply(received(at=100, eta=ETA, **B), started(at=103, **B))
    driver.wait(2.5)
    assert (driver.aggregate().redeliveries, driver.aggregate().queue_wait.total) == (1, pytest.approx(2 + 3))


def take_offline(driver: ClusterDriver, worker: dict) -> None:
    """Send worker-offline, and requeue the received tasks of the worker."""
    driver.apply(heartbeat(worker["host"], kind="offline", pid=worker["pid"], at=driver.now))
    driver.wait(LATE_EVENT_SECONDS)
    for _ in Reconciler(driver.cluster, drops_expired=False).reconcile(driver.timestamp()):
        pass


def test_a_task_that_two_workers_received_stays_with_one_when_the_other_leaves():
    driver = ClusterDriver()
    driver.apply(sent(eta=ETA), received(at=1, eta=ETA, **A), received(at=30, eta=ETA, **B))
    driver.wait(2.5)
    take_offline(driver, B)
    driver.apply(started(at=61, **A))
    assert driver.gauges() == {"STARTED": 1}
    driver.apply(succeeded(at=62, **A))
    assert driver.gauges() == {}


@pytest.mark.parametrize("eta", [None, ETA])
def test_a_task_that_was_given_back_takes_no_more_memory(eta):
    driver = ClusterDriver()
    driver.apply(sent(eta=eta))
    for number, worker in enumerate((A, B, A, B)):
        driver.apply(received(at=1 + number, eta=eta, **worker))
        driver.wait(2.5)
        take_offline(driver, worker)
        assert driver.cluster.tasks.get("u1").expanded is None
    driver.apply(received(at=9, eta=eta, **A), started(at=61, **A))
    driver.wait(2.5)
    assert (driver.cluster.tasks.get("u1").expanded, driver.gauges()) == (None, {"STARTED": 1})


def test_receipts_of_two_workers_are_ordered_only_if_their_clock_skew_is_known():
    driver = ClusterDriver()
    driver.apply(received(at=100, name="fetch", **A), started(at=100.1, **A))
    driver.wait(5)
    driver.apply(received(at=95, name="process", **B), started(at=95.1, **B), succeeded(at=96, **B))
    driver.wait(5)
    assert driver.gauges() == {}


# -- shadow names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registered", [("add",), None])
@pytest.mark.parametrize("sent_after", range(4))
def test_a_task_that_is_received_under_its_shadow_name_is_one_execution(sent_after, registered):
    life = [received(at=0.01, name="shadow"), started(at=0.02), succeeded(at=0.03)]
    life.insert(sent_after, sent(at=0))
    driver = ClusterDriver()
    driver.apply(heartbeat())
    driver.cluster.record_inspection({"w@h": WorkerInfo(registered=registered)}, driver.timestamp())
    for event in life:
        driver.apply(event)
    driver.wait(5)
    assert driver.counts() == {("add", "q", state): 1 for state in RUN}
    assert driver.gauges() == {}


# -- restarts of the exporter ------------------------------------------------------------------------------


def test_generations_survive_a_restart_of_the_exporter():
    driver = ClusterDriver()
    driver.apply(sent(name="fetch"), received(name="fetch"), started(at=1), sent(at=2, name="process"))
    driver = restarted(driver)
    driver.apply(received(at=3, name="process"), started(at=4), succeeded(at=5, runtime=1.0))
    assert by_name(driver)["process", "SUCCESS"] == 1
    assert driver.gauges() == {}
    assert driver.aggregate("process").redeliveries == 0


# -- in order of time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0.1, 3.0])
def test_a_retry_that_replaces_itself_under_the_same_name_is_two_executions(pause):
    events = [
        *(sent(), received(), started(), sent(retries=1, **HERE), retried(), received(retries=1)),
        *(started(), sent(**HERE), received(**V), started(**V), succeeded(**V)),
    ]
    for number, event in enumerate(events):
        event["timestamp"] += number * pause
    driver = driver_after(*events)
    assert (driver.gauges(), driver.aggregate().redeliveries) == ({}, 0)
    assert driver.by_state()["SUCCESS"] == 1
    assert driver.by_state()["STARTED"] == 3


@pytest.mark.parametrize("ahead", [0.0, 0.3, 300.0, -300.0])
@pytest.mark.parametrize("worker", [A, B])
def test_a_replaced_task_is_two_executions_with_any_clock_of_the_client(ahead, worker):
    client, pool, first, then = replaced()
    client[0]["timestamp"] += ahead
    then = [{**event, "hostname": worker["host"], "pid": worker["pid"]} for event in then]
    driver = ClusterDriver()
    driver.apply(heartbeat("a@h", pid=7), heartbeat("b@h", pid=8))
    driver.apply(*client, *first, *pool, *then)
    driver.wait(3)
    assert driver.gauges() == {}
    assert by_name(driver) == {
        **{("fetch", state): 1 for state in RUN[:3]},
        **{("process", state): 1 for state in RUN},
    }


@pytest.mark.parametrize("late", [0.0, 0.015, 420.0, -420.0], ids=["exact", "preempted", "ahead", "behind"])
@pytest.mark.parametrize("second", [A, B], ids=["one worker", "two workers"])
def test_a_retried_task_is_one_execution_in_any_order_and_by_any_clock(second, late):
    """A client that is suspended for a while writes `task-sent` when the task is at its retry already."""
    first = [received(at=1.001, **A), started(at=1.002, **A), retried(at=1.011, **A)]
    then = [received(at=1.02, retries=1, **second), started(at=1.021, **second), succeeded(at=1.03, **second)]
    sends = [sent(at=1 + late)], [sent(at=1.01, retries=1, hostname="a@h")]
    workers = [first + then] if second is A else [first, then]
    for order in interleavings(*sends, *workers, limit=400):
        driver = ClusterDriver()
        driver.apply(*order)
        driver.wait(3)
        aggregate = driver.aggregate()
        waits = sum(aggregate.queue_wait.counts), sum(aggregate.prefetch_wait.counts)
        assert (driver.gauges(), aggregate.redeliveries, waits) == ({}, 0, (2, 2)), order
        assert driver.by_state() == {"PENDING": 2, "RECEIVED": 2, "STARTED": 2, "RETRY": 1, "SUCCESS": 1}


def test_late_events_of_an_older_attempt_do_not_reopen_a_finished_task():
    """Only clients publish task-sent, and the events of one worker are late."""
    late = {"host": "b@h", "pid": 8}
    driver = ClusterDriver()
    driver.apply(heartbeat("a@h", pid=7), heartbeat("b@h", pid=8), sent(at=0))
    driver.apply(received(at=3, retries=1, **A), started(at=3.1, **A), succeeded(at=3.2, **A))
    driver.apply(received(at=0.1, **late), started(at=0.2, **late), retried(at=0.3, **late))
    driver.wait(5)
    assert driver.gauges() == {}
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 2, "STARTED": 2, "RETRY": 1, "SUCCESS": 1}


def test_the_retry_of_a_successor_has_the_queue_of_its_task_sent():
    driver = driver_after(
        *(sent(), received(at=0.1), started(at=0.2), sent(at=0.3, **HERE), received(at=0.4), started(at=0.5)),
        *(sent(at=0.6, retries=1, **HERE), retried(at=0.61), received(at=0.7, retries=1), started(at=0.8)),
        succeeded(at=0.9),
        queues=("q", "r"),
    )
    assert {queue for _, queue, _ in driver.counts()} == {"q"}
    assert driver.gauges() == {}


def test_the_retry_of_a_successor_without_task_sent_has_the_queue_of_the_successor():
    driver = driver_after(
        *(sent(), received(at=0.1), started(at=0.2), succeeded(at=0.3), sent(at=0.6), received(at=0.7)),
        *(started(at=0.8), retried(at=0.9), received(at=1, retries=1), started(at=1.1), succeeded(at=1.2)),
        queues=("q", "r"),
    )
    assert {queue for _, queue, _ in driver.counts()} == {"q"}
    assert driver.by_state()["SUCCESS"] == 2


@pytest.mark.parametrize("last", [{}, V])
def test_a_task_that_replaces_itself_twice_back_to_its_first_name_is_three_executions(last):
    """Only clients publish `task-sent`: the other name shows the second, and so the third execution."""
    driver = driver_after(
        *(sent(), received(at=0.1), started(at=0.2), received(at=1, name="mul"), started(at=1.1)),
        *(received(at=2, **last), started(at=2.1, **last), failed(at=3, **last)),
    )
    assert by_name(driver) == {
        ("add", "PENDING"): 1,
        ("add", "RECEIVED"): 2,
        ("add", "STARTED"): 2,
        ("add", "FAILURE"): 1,
        ("mul", "RECEIVED"): 1,
        ("mul", "STARTED"): 1,
    }
    assert (driver.gauges(), driver.aggregate().redeliveries) == ({}, 0)


# -- shadow names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [True, False])
def test_a_successor_on_a_worker_that_has_not_replied_has_no_shadow_name(late):
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0), heartbeat("v@h"))
    driver.cluster.record_inspection(
        {"w@h": WorkerInfo(queues=("q",), registered=("add",))}, driver.timestamp()
    )
    first = [received(at=0.1), started(at=0.11)]
    then = [received(at=0.2, name="mul", **V), started(at=0.21, **V), succeeded(at=0.25, **V)]
    driver.apply(sent())
    for events in (then, first) if late else (first, then):
        driver.wait(0.5)
        driver.apply(*events)
    driver.wait(4)
    names = WorkerInfo(queues=("q",), registered=("add", "mul"))
    driver.cluster.record_inspection({"w@h": names, "v@h": names}, driver.timestamp())
    assert by_name(driver)["mul", "SUCCESS"] == 1
    assert driver.cluster.label_sets.shadows == {}


def test_a_shadow_name_that_a_worker_registers_later_is_a_task_name_then():
    driver = driver_after(sent(), received(name="report"), started(), succeeded())
    assert driver.cluster.label_sets.shadows == {"report": "add"}
    driver.cluster.record_inspection(
        {"w@h": WorkerInfo(queues=("q",), registered=("add", "report"))}, driver.timestamp()
    )
    assert driver.cluster.label_sets.shadows == {}
    driver.apply(sent("u2", name="report"), received("u2", name="report"), succeeded("u2"))
    driver.wait(3)
    assert by_name(driver)["report", "SUCCESS"] == 1


# -- bounds ------------------------------------------------------------------------------------------------


def test_tasks_do_not_wait_for_replies_of_a_worker_that_seems_to_restart_continuously():
    driver = ClusterDriver()
    driver.apply(received("u", pid=7))
    driver.wait(4)
    driver.cluster.record_inspection(
        {"w@h": WorkerInfo(queues=("q", "r"), registered=("add",))}, driver.timestamp()
    )
    for number in range(60):
        pid = 7 + number % 2
        for event in (received, started, succeeded):
            driver.apply(event(f"u{number}", at=driver.now - 100, pid=pid))
        driver.wait(1)
    assert len(driver.cluster.tasks.unidentified.tasks) < 2 * REPLY_SECONDS + 5


def test_a_task_that_ended_silently_may_go_on_after_its_series_was_idle():
    driver = ClusterDriver(Limits(series_ttl=120))
    driver.apply(heartbeat(), sent())
    driver.wait(180)
    driver.cluster.end_silently(driver.cluster.tasks.get("u1"), "message_gone", driver.timestamp())
    for _ in range(10):
        driver.wait(3)
    driver.apply(received(at=210), started(at=211), succeeded(at=212))
    assert driver.by_state()["SUCCESS"] == 1
    driver.wait(400)
    assert driver.cluster.tasks.get("u1") is None


@pytest.mark.parametrize(
    ("registered", "receipt", "waits"),
    [
        (("fetch", "process"), received(at=1.99, name="fetch", **A), True),
        (("process",), received(at=1, name="nightly", **A), False),  # a shadow name
        (None, received(at=1, name="fetch", **A), True),
        (
            None,
            received(at=1.97, name="fetch", **A),
            False,
        ),  # the message was received before this was written
        (("fetch", "process"), received(at=1, name="process", **A), False),
        (("fetch", "process"), received(at=1, name=None, **A), False),
        (("fetch", "process"), started(at=1, **A), False),
    ],
)
def test_a_task_sent_of_other_work_than_the_receipt_before_it_waits_for_its_own(registered, receipt, waits):
    driver = ClusterDriver()
    driver.apply(heartbeat("a@h"))
    infos = {"a@h": WorkerInfo(queues=("q", "other"), registered=registered)}
    driver.cluster.record_inspection(infos, driver.timestamp())
    driver.apply(receipt, sent(at=2, name="process", queue="other"))
    assert (driver.counts() == {}) is waits
    driver.wait(2.5)
    assert driver.counts()["process", "other", "PENDING"] == 1


# -- generations -------------------------------------------------------------------------------------------

NEXT = MAX_ATTEMPTS  # the first attempt of the second generation
ADDED_TWICE = [Generation(0, "add"), Generation(NEXT, "add")]
ADDED_THEN_MULTIPLIED = [Generation(0, "add"), Generation(NEXT, "mul")]


def history(received: int | None = None, **sent_at: float) -> TaskHistory:
    """Return a history with the attempts that were sent, such as `first=1.0`, by their times."""
    attempts = {"first": 0, "retry": 1, "next": NEXT, "next_retry": NEXT + 1}
    return TaskHistory({attempts[name]: at for name, at in sent_at.items()}, received, [])


@pytest.mark.parametrize(
    ("sent_before", "name", "retries", "at", "attempt"),
    [
        ({}, "add", 0, 1.0, 0),
        ({"first": 1.0}, "add", 0, 2.0, NEXT),
        ({"first": 1.0, "next": 2.0}, "add", 0, 3.0, None),
        ({"first": 1.0, "next": 5.0}, "add", 1, 3.0, 1),
        ({"first": 1.0, "next": 5.0}, "add", 1, 5.0, NEXT + 1),
        ({"first": 1.0, "next": 5.0}, "add", 1, 0.5, 1),
        ({"first": 1.0, "next": 5.0, "next_retry": 6.0}, "add", 1, 7.0, 1),
        ({"first": 1.0}, "mul", 0, 2.0, None),
        ({"first": 1.0}, "unknown", 0, 2.0, NEXT),
    ],
)
def test_a_task_sent_announces_the_oldest_attempt_of_its_name_or_the_retry_of_the_newest_sending(
    sent_before, name, retries, at, attempt
):
    assert find_sent(ADDED_TWICE, history(**sent_before), name, retries, at) == attempt


@pytest.mark.parametrize(
    ("existing", "past", "name", "attempts"),
    [
        (ADDED_TWICE, history(), "add", [0, NEXT]),
        (ADDED_TWICE, history(0), "add", [NEXT]),
        (ADDED_TWICE, history(NEXT), "add", [NEXT]),
        (ADDED_THEN_MULTIPLIED, history(NEXT, next=1.0), "add", [0]),
        (ADDED_THEN_MULTIPLIED, history(NEXT), "add", []),
        (ADDED_THEN_MULTIPLIED, history(NEXT), "mul", [NEXT]),
        (ADDED_THEN_MULTIPLIED, history(), "other work", []),
    ],
)
def test_a_receipt_is_of_an_attempt_without_one_or_of_the_newest_one(existing, past, name, attempts):
    assert find_received(existing, past, name, 0) == attempts


def test_a_receipt_under_a_shadow_name_is_of_the_oldest_attempt_that_was_sent():
    assert find_shadowed(ADDED_TWICE, history(retry=1.0, next_retry=2.0), 1) == 1
    assert find_shadowed(ADDED_TWICE, history(1, retry=1.0, next_retry=2.0), 1) == NEXT + 1
    assert find_shadowed(ADDED_TWICE, history(), 1) is None


@pytest.mark.parametrize(("add", "sign"), [(add_successor, 1), (add_predecessor, -1)])
def test_generations_are_numbered_one_by_one_and_bounded(add, sign):
    past, existing = history(), [Generation(0, "add")]
    for number in range(1, 2 * MAX_GENERATIONS):
        assert add(past, existing, "mul") == sign * number * MAX_ATTEMPTS
        existing = past.generations
        assert len(existing) == min(number + 1, MAX_GENERATIONS)
        assert existing == sorted(existing, key=lambda generation: generation.base)
