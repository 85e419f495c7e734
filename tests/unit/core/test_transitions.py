"""Which delivery an event is about, what is observed, and the state of the task afterwards."""

from __future__ import annotations

import time

import pytest

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.limits import Limits
from celery_exporter.core.transitions import MAX_DELIVERIES
from celery_exporter.core.types import State

from .cluster_driver import (
    T0,
    ClusterDriver,
    failed,
    received,
    rejected,
    retried,
    sent,
    started,
    succeeded,
    task_event,
)


def driver_after(*events: dict, **options) -> ClusterDriver:
    driver = ClusterDriver(**options)
    driver.apply(*events)
    return driver


def runtimes(driver: ClusterDriver, **label_set: str) -> dict[str, float]:
    return {state.name: histogram.total for state, histogram in driver.aggregate(**label_set).runtime.items()}


# -- execution seconds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "seconds"),
    [
        (succeeded(at=5, runtime=2.5), 2.5),
        (succeeded(at=5, runtime=None), 3.0),  # its process was lost after it
        (failed(at=5), 3.0),
        (retried(at=5), 3.0),
        (rejected(at=5), 3.0),
        (rejected(at=5, requeue=True), 3.0),
        (task_event("revoked", at=5, terminated=True), 3.0),
        (task_event("cancelled", at=5), 3.0),
        (failed(at=1), 0.0),  # its clock was set back
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("copies", [1, 2], ids=["usual", "received twice"])
def test_every_end_adds_the_seconds_of_its_execution(end, seconds, copies):
    driver = driver_after(sent(), *copies * [received(at=1)], started(at=2), end)
    assert driver.aggregate().execution_seconds == pytest.approx(seconds)


@pytest.mark.parametrize("end", [succeeded, failed, retried, rejected])
def test_an_end_without_a_start_adds_no_seconds(end):
    driver = driver_after(
        sent(), received(at=1), end(at=5, **({"runtime": None} if end is succeeded else {}))
    )
    assert driver.aggregate().execution_seconds == 0


def test_a_rejection_after_a_failure_adds_no_seconds_again():
    driver = driver_after(sent(), received(at=1), started(at=2), failed(at=5), rejected(at=5.5))
    assert driver.aggregate().execution_seconds == 3.0


def test_execution_seconds_are_those_of_all_tasks_with_sampled_histograms():
    aggregates = Aggregates((1.0,), (1.0,), histogram_sample_rate=0.0)
    driver = driver_after(sent(), received(at=1), started(at=2), failed(at=5), aggregates=aggregates)
    assert driver.aggregate().execution_seconds == 3.0


# -- label sets -----------------------------------------------------------------------------------------


def test_actions_of_a_worker_are_counted_under_its_label_set():
    driver = driver_after(
        *(sent("a"), received("a", at=1), started("a", at=2), succeeded("a", at=5, runtime=3.0)),
        *(sent("b"), received("b", at=1), started("b", at=2), failed("b", at=6)),
        *(sent("c"), received("c", at=1), received("c", at=2), task_event("revoked", "c")),
        *(sent("d"), started("d", at=4), received("d", at=3), retried("d", at=9)),
        labels=("queue_name", "worker"),
    )
    driver.wait(2.5)
    assert {label_set.worker for label_set in driver.aggregates.snapshot()} == {"", "w@h"}
    worker, client = driver.aggregate(worker="w@h"), driver.aggregate()
    assert runtimes(driver, worker="w@h") == {"SUCCESS": 3.0, "FAILURE": 4.0, "RETRY": 5.0}
    assert (worker.queue_wait.total, worker.prefetch_wait.total) == (2 + 2 + 4, 1 + 1 + 1)
    assert (worker.exceptions, worker.redeliveries) == ({"ValueError": 1}, 1)
    assert (client.runtime, client.queue_wait, client.prefetch_wait) == ({}, None, None)
    assert (client.exceptions, client.redeliveries) == ({}, 0)


@pytest.mark.parametrize(
    "end",
    [succeeded, failed, retried, rejected, lambda at: task_event("revoked", at=at)],
    ids=["succeeded", "failed", "retried", "rejected", "revoked"],
)
def test_the_end_of_an_older_delivery_does_not_change_the_state(end):
    driver = driver_after(sent(), received(), started(), received(at=9, host="b@h", pid=7))
    driver.apply(started(at=9.5, host="b@h", pid=7), end(at=10))
    driver.wait(2.5)
    assert driver.gauges() == {"STARTED": 1}
    driver.apply(failed(at=12, host="b@h", pid=7))
    assert driver.gauges() == {}
    assert runtimes(driver)["FAILURE"] == pytest.approx(2.5 + (9.8 if end is failed else 0))


def test_the_late_start_of_an_older_delivery_does_not_change_the_state():
    driver = driver_after(sent(), received(at=1), received(at=50, host="b@h", pid=7), started(at=51))
    driver.wait(2.5)
    assert driver.gauges() == {"RECEIVED": 1}


def test_with_the_worker_label_only_counted_label_sets_are_admitted():
    driver = driver_after(
        *(sent(queue="a"), received(), started(), sent(queue="b", retries=1, at=0.25), retried()),
        labels=("queue_name", "worker"),
    )
    assert len(driver.cluster.label_sets) == len(driver.aggregates.snapshot())


@pytest.mark.parametrize(
    "event", [received(), started(pid=9), retried(), task_event("revoked")], ids=lambda event: event["type"]
)
def test_an_overflow_is_counted_once_for_each_event(event):
    driver = driver_after(sent(), limits=Limits(max_series=len(State)), labels=("queue_name", "worker"))
    driver.apply(event)
    assert driver.cluster.label_sets.overflowed == 1


def test_an_unusual_event_postpones_the_expiry_of_a_task_too():
    driver = driver_after(sent(), received(), received(at=9, host="b@h", pid=7), limits=Limits(task_ttl=30))
    driver.wait(20)
    driver.apply(started(at=20, host="b@h", pid=7))
    driver.wait(20)
    assert driver.gauges() == {"STARTED": 1}


# -- attempts --------------------------------------------------------------------------------------------

B = {"host": "b@h"}


def test_a_retry_in_the_same_queue_needs_no_expanded_history():
    driver = driver_after(
        sent(), received(), started(), sent(at=1, retries=1), retried(), received(at=2, retries=1)
    )
    task = driver.cluster.tasks.get("u1")
    assert task.expanded is None
    assert task.history().sent == {0: T0 + 1, 1: T0 + 1}  # the first attempt was sent, too


def test_each_attempt_keeps_its_queue_however_often_the_task_moves():
    queues = ["q", "right", "right", "q"]
    driver = driver_after(*(sent(at=at, retries=at, queue=queue) for at, queue in enumerate(queues)))
    for attempt in range(4):
        driver.apply(received(at=9, retries=attempt, host=f"{attempt}@h"))
    assert driver.counts() == {
        ("add", queue, state): 2 for queue in ("q", "right") for state in ("PENDING", "RECEIVED")
    }
    driver.apply(received(at=10, retries=4))
    driver.wait(2.5)
    assert driver.counts()["add", "q", "RECEIVED"] == 3, (
        "an attempt without task-sent has the newest queue of the task"
    )


def test_a_late_receipt_of_an_earlier_attempt_does_not_reopen_a_finished_task():
    driver = driver_after(sent(), sent(at=1, retries=1), received(at=2, retries=1, **B), started(at=3, **B))
    driver.apply(succeeded(at=4, **B))
    driver.wait(2.5)
    driver.apply(received(at=0.5))
    assert driver.gauges() == {}


def test_the_newest_attempt_determines_the_state_when_an_earlier_one_is_redelivered():
    driver = driver_after(
        sent(), sent(at=1, retries=1), received(), received(at=2, retries=1, **B), started(at=3, **B)
    )
    driver.apply(received(at=4, host="c@h"))
    driver.wait(2.5)
    assert driver.gauges() == {"STARTED": 1}
    assert driver.aggregate().redeliveries == 1


def test_late_receipts_of_skipped_attempts_are_no_redeliveries():
    driver = driver_after(*(sent(at=at, retries=at) for at in range(4)), received(), received(retries=3, **B))
    for attempt in (1, 2):
        driver.apply(received(retries=attempt))
    assert driver.aggregate().redeliveries == 0
    for attempt in range(4):
        driver.apply(received(at=9, retries=attempt))
    driver.wait(2.5)
    assert driver.aggregate().redeliveries == 4


def test_skipped_attempts_are_bounded():
    driver = driver_after(sent(), received(), received(retries=2**31 - 1))
    driver.wait(2.5)
    assert len(driver.cluster.tasks.get("u1").history().skipped) == MAX_DELIVERIES


@pytest.mark.parametrize("at", [1, 2, 3])
def test_the_wait_of_a_retry_is_observed_if_its_task_sent_comes_after_the_window(at):
    life = [received(at=10, retries=1), started(at=12), succeeded(at=15)]
    driver = driver_after(sent(), *life[:at])
    driver.wait(2.5)
    assert driver.aggregate().queue_wait is None
    driver.apply(sent(at=9, retries=1), *life[at:])
    assert driver.aggregate().queue_wait.total == 3


# -- redelivered -----------------------------------------------------------------------------------------


def test_every_redelivery_is_counted():
    driver = driver_after(sent(), *(received(at=at) for at in range(1, 6)))
    driver.wait(2.5)
    assert driver.aggregate().redeliveries == 4


def test_a_task_that_is_redelivered_to_its_own_process_waits_and_runs_twice():
    driver = driver_after(sent(), received(at=1), started(at=2), received(at=50))
    driver.wait(2.5)
    assert driver.gauges() == {"RECEIVED": 1}
    driver.apply(started(at=53))
    assert driver.gauges() == {"STARTED": 1}
    aggregate = driver.aggregate()
    assert (aggregate.redeliveries, aggregate.queue_wait.total, aggregate.prefetch_wait.total) == (
        1,
        2 + 3,
        1 + 3,
    )


def test_a_task_that_is_requeued_before_its_start_waits_from_its_redelivery():
    driver = driver_after(sent(), received(at=1), rejected(at=2, requeue=True))
    assert driver.gauges() == {"PENDING": 1}
    driver.apply(received(at=10), started(at=11), failed(at=13))
    assert (driver.aggregate().queue_wait.total, driver.aggregate().prefetch_wait.total) == (1, 1)
    assert runtimes(driver) == {"FAILURE": 2.0}
    assert driver.gauges() == {}


def test_open_deliveries_of_a_task_are_bounded():
    hosts = [f"w{number}@h" for number in range(MAX_DELIVERIES + 1)]
    driver = driver_after(sent())
    for pid, host in enumerate(hosts, 2):
        driver.apply(received(at=pid, host=host, pid=pid), started(at=pid, host=host, pid=pid))
    driver.wait(2.5)
    for pid, host in enumerate(hosts, 2):
        driver.apply(failed(at=pid + 1, host=host, pid=pid))
    assert runtimes(driver) == {"FAILURE": MAX_DELIVERIES}
    assert driver.by_state()["FAILURE"] == MAX_DELIVERIES + 1


# -- late or lost events --------------------------------------------------------------------------------


def test_a_late_task_received_does_not_undo_a_start():
    driver = driver_after(sent(), started(at=4), received(at=1))
    assert driver.gauges() == {"STARTED": 1}
    assert (driver.aggregate().queue_wait.total, driver.aggregate().prefetch_wait.total) == (4, 3)
    driver.apply(received(at=50))
    driver.wait(2.5)
    assert driver.gauges() == {"RECEIVED": 1}
    assert (driver.aggregate().redeliveries, driver.aggregate().prefetch_wait.total) == (1, 3)


def test_a_task_whose_task_received_was_lost_has_times():
    driver = driver_after(sent(), started(at=2), failed(at=5))
    assert (driver.aggregate().queue_wait.total, driver.aggregate().prefetch_wait) == (2, None)
    assert runtimes(driver) == {"FAILURE": 3.0}


def test_a_wait_is_observed_when_task_sent_comes_after_the_window():
    driver = driver_after(started(at=2))
    driver.wait(2.5)
    driver.apply(sent())
    assert driver.aggregate().queue_wait.total == 2


def test_an_attempt_whose_task_received_was_lost_has_no_wait():
    driver = driver_after(sent(), received(at=1), started(at=2), retried(at=3), started(at=9))
    assert driver.aggregate().queue_wait.total == 2
    assert driver.aggregate().prefetch_wait.total == 1
    driver.apply(failed(at=13))
    assert runtimes(driver) == {"RETRY": 1.0, "FAILURE": 4.0}


def test_the_task_sent_of_a_retry_does_not_determine_the_wait_of_the_first_attempt():
    driver = driver_after(received(at=1), started(at=2))
    driver.wait(2.5)
    driver.apply(sent(at=3, retries=1))
    assert driver.aggregate().queue_wait is None


def test_each_attempt_has_its_own_times_without_task_sent():
    driver = driver_after(received(at=1), started(at=2), retried(at=3))
    driver.wait(2.5)
    driver.apply(received(at=4, retries=1), started(at=5), retried(at=7))
    assert runtimes(driver, queue="unknown") == {"RETRY": 1.0 + 2.0}


# -- retries ---------------------------------------------------------------------------------------------


def test_an_attempt_may_fail_although_it_sent_the_next_one():
    driver = driver_after(
        sent(), received(at=1), started(at=2), sent(at=3, retries=1), received(at=4, retries=1)
    )
    driver.apply(failed(at=5))
    assert runtimes(driver) == {"FAILURE": 3.0}
    assert driver.gauges() == {"RECEIVED": 1}


def test_a_revoked_task_that_was_never_started_is_finished():
    driver = driver_after(sent(), received(at=1), sent(at=3, retries=1), received(at=4, retries=1))
    driver.apply(task_event("revoked", at=5))
    assert driver.gauges() == {}


def test_an_attempt_that_ended_takes_no_memory():
    driver = driver_after(sent())
    for attempt in range(10):
        driver.apply(received(retries=attempt), started(), sent(retries=attempt + 1), retried())
    assert driver.cluster.tasks.get("u1").history().deliveries == []


@pytest.mark.parametrize("queue", ["q", "elsewhere"])
def test_the_first_and_the_newest_sendings_of_a_task_are_kept(queue):
    attempts = range(1, 101)
    driver = driver_after(sent(), *(sent(at=5, retries=attempt, queue=queue) for attempt in attempts))
    history = driver.cluster.tasks.get("u1").history()
    assert sorted(history.sent) == [0, *attempts[1 - MAX_DELIVERIES :]]
    assert len(history.attempt_label_sets or ()) in (0, MAX_DELIVERIES + 1)
    driver.apply(received(at=6, retries=100), started(at=8))
    assert driver.aggregate(queue=queue).queue_wait.total == 3


# -- times -----------------------------------------------------------------------------------------------


@pytest.fixture
def in_tokyo(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_invariant_7_an_eta_without_a_time_zone_is_utc():
    driver = driver_after(sent(eta="2023-11-14T22:13:30"), received(at=1), started(at=12))
    assert driver.aggregate().queue_wait.total == 2.0
