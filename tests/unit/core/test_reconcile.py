"""Reconciliation: tasks end without an event, by reports of the broker and the workers."""

from __future__ import annotations

import re
from collections.abc import Collection

import pytest

from celery_exporter.core import reconcile
from celery_exporter.core.limits import Limits
from celery_exporter.core.reconcile import (
    CHUNK_TASKS,
    LATE_EVENT_SECONDS,
    REASONS,
    Measurement,
    Reconciler,
    measurement_of,
)
from celery_exporter.core.task_names import shown_as
from celery_exporter.core.workers import WorkerInfo
from unit.persistence.test_state import restarted

from .cluster_driver import ClusterDriver, heartbeat, received, retried, sent, started, succeeded

SOON, LATER = "2023-11-14T22:13:40+00:00", "2023-11-14T22:30:00+00:00"  # T0 + 20 s, T0 + 1,000 s


LABELS = ("q",)


class ReconciledDriver(ClusterDriver):
    """A driver with a reconciler, whose listening clock starts at T0 of the clock of the events."""

    def __init__(self, *arguments, drops_expired: bool = False, **options) -> None:
        super().__init__(*arguments, **options)
        self.epoch -= self.now
        self.reconciler = Reconciler(self.cluster, drops_expired=drops_expired)

    def measure(self, unacked: int | None = 0, **lengths: int) -> None:
        """Add a measurement, wait for the grace period, and reconcile."""
        self.reconciler.add_measurement(Measurement(self.now, lengths, {*lengths, *LABELS}, unacked))
        self.wait(1.5)
        self.reconcile()

    def reconcile(self) -> None:
        for _ in self.reconciler.reconcile(self.timestamp()):
            pass

    def inspect(self, **uuids_by_name: Collection[str]) -> set[str]:
        """Inspect the workers that are due; return them. These workers reply with these tasks."""
        due, inspected_at = self.reconciler.workers_to_inspect(self.timestamp()), self.now
        replies = {f"{name}@h": uuids for name, uuids in uuids_by_name.items() if f"{name}@h" in due}
        for _ in self.reconciler.compare(replies, inspected_at, self.timestamp()):
            pass
        return set(due)

    def beat(self, seconds: float, host: str = "w@h", **fields) -> None:
        """Apply heartbeats of a worker for some seconds."""
        end = self.now + seconds
        while self.now < end:
            self.wait(2)
            self.apply(heartbeat(host, at=self.now - 100, **fields))

    def reasons(self) -> dict[str, int]:
        return {reason: count for reason, count in self.shown().reconciled.items() if count}


# -- messages that are gone --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "by_label"),
    [
        ({"mail.a": 2, "mail.b": 3, "q": 0}, {"mail": 5, "q": 0}),
        ({"mail.b": 3, "mail.a": 0}, {"mail": 3}),
        ({"mail.a": 2, "q": 4}, {"q": 4}),
        ({"mail.a": 2, "mail.b": 3, "new": 1}, {"mail": 5, "new": 1}),
        ({}, {}),
    ],
)
def test_the_length_of_queues_with_one_label_is_known_if_all_of_them_were_read(lengths, by_label):
    driver = ClusterDriver(show_queue=lambda name: name.partition(".")[0])
    driver.apply(*(sent(queue, queue=queue) for queue in ("mail.a", "mail.b", "q")))
    measurement = measurement_of(driver.cluster, lengths, 7, 12.5)
    assert (measurement.at, measurement.lengths, measurement.unacked) == (12.5, by_label, 7)
    assert set(measurement.labels) == {"mail", "q", *by_label}


def test_a_worker_whose_queues_are_unknown_may_hold_a_message_of_any():
    driver = ReconciledDriver()
    driver.apply(heartbeat(), sent())
    driver.wait(1)
    for _ in range(3):
        driver.measure(None, q=0)
    assert driver.gauges() == {"PENDING": 1}
    driver.apply(heartbeat(at=5))
    driver.reconcile()
    assert driver.gauges() == {}


def test_a_task_whose_queue_is_empty_and_that_no_worker_has_is_ended():
    driver = ReconciledDriver()
    driver.apply(sent("a"), sent("b", queue="other"))
    driver.wait(1)
    driver.measure(q=0, other=1)
    assert driver.gauges() == {"PENDING": 1}
    assert driver.reasons() == {"message_gone": 1}
    assert driver.by_state() == {"PENDING": 2}


@pytest.mark.parametrize(
    "lengths", [{"q": 1}, {}, {"other": 0}], ids=["not empty", "unknown", "another queue"]
)
def test_a_task_stays_unless_its_queue_is_known_to_be_empty(lengths):
    driver = ReconciledDriver()
    driver.apply(sent())
    driver.wait(1)
    for _ in range(3):
        driver.measure(**lengths)
    assert driver.gauges() == {"PENDING": 1}


def test_a_task_that_was_sent_after_the_measurement_stays():
    driver = ReconciledDriver()
    driver.reconciler.add_measurement(Measurement(driver.now, {"q": 0}, {"q"}, 0))
    driver.apply(sent())
    driver.wait(5)
    driver.reconcile()
    assert driver.gauges() == {"PENDING": 1}


def test_a_measurement_takes_effect_after_a_grace_period_for_events():
    driver = ReconciledDriver()
    driver.apply(sent())
    driver.wait(1)
    driver.reconciler.add_measurement(Measurement(driver.now, {"q": 0}, {"q"}, 0))
    driver.reconcile()
    assert driver.gauges() == {"PENDING": 1}
    driver.wait(0.5)
    driver.apply(received(), started())
    driver.wait(1)
    driver.reconcile()
    assert driver.gauges() == {"STARTED": 1}


def test_a_task_that_is_not_due_stays():
    driver = ReconciledDriver()
    driver.apply(sent(eta=SOON))
    driver.wait(10)
    driver.measure(q=0)
    assert driver.gauges() == {"PENDING": 1}
    driver.wait(20)
    driver.measure(q=0)
    assert driver.gauges() == {}


def test_without_a_count_of_unacked_messages_two_measurements_and_all_heartbeats_are_needed():
    driver = ReconciledDriver()
    driver.apply(heartbeat(), heartbeat("busy@h"), sent())
    driver.cluster.record_inspection(
        {"w@h": WorkerInfo(queues=("other",)), "busy@h": WorkerInfo(queues=("q",))}, driver.timestamp()
    )
    driver.wait(1)
    driver.measure(None, q=0)
    driver.measure(None, q=0)
    assert driver.gauges() == {"PENDING": 1}, (
        "a worker with the solo pool is busy and may hold a message that it has not read"
    )
    driver.apply(heartbeat("busy@h", at=5))
    driver.reconcile()
    assert driver.gauges() == {}


def test_a_heartbeat_is_needed_from_a_consumer_of_a_renamed_queue_too():
    driver = ReconciledDriver(
        show_queue=shown_as(None, None, [(re.compile("customer-[0-9]+"), "customer-*")])
    )
    driver.apply(heartbeat(), sent(queue="customer-1"))
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("customer-1",))}, driver.timestamp())
    driver.wait(1)
    for _ in range(3):
        driver.measure(None, **{"customer-*": 0})
    assert driver.gauges() == {"PENDING": 1}, "its worker may hold a message that it has not read"
    driver.apply(heartbeat(at=5))
    driver.reconcile()
    assert driver.gauges() == {}


def test_an_unacked_message_may_be_of_a_task_whose_receipt_was_lost():
    driver = ReconciledDriver()
    driver.apply(sent("a"), sent("b"), received("b"))
    for _ in range(3):
        driver.beat(2)
        driver.measure(2, q=0)
    assert driver.gauges() == {"PENDING": 1, "RECEIVED": 1}


def test_purged_tasks_are_ended_while_workers_hold_messages_of_others():
    driver = ReconciledDriver()
    driver.apply(sent("a"), *(sent(uuid) for uuid in "bc"), received("b"), *(received("c"), started("c")))
    driver.beat(2, active=1)
    driver.measure(2, q=0)
    assert driver.gauges()["PENDING"] == 1, "one measurement is not enough"
    driver.beat(2, active=1)
    driver.measure(2, q=0)
    assert driver.gauges() == {"RECEIVED": 1, "STARTED": 1}


def test_a_task_of_a_dead_worker_stays_while_messages_are_unacked():
    driver = ReconciledDriver(Limits(worker_timeout=10))
    driver.apply(heartbeat(), heartbeat("other@h"), sent("a"), received("a"))
    for _ in range(8):
        driver.beat(2, "other@h")
        driver.measure(1, q=0)
    assert driver.gauges() == {"RECEIVED": 1}


def test_a_measurement_that_is_not_empty_proves_that_there_are_messages():
    driver = ReconciledDriver()
    driver.apply(sent())
    driver.wait(1)
    for length in (0, 1, 0, 1):
        driver.measure(None, q=length)
    assert driver.gauges() == {"PENDING": 1}


def test_without_the_queue_label_all_queues_have_to_be_empty():
    driver = ReconciledDriver(labels=())
    driver.apply(sent())
    driver.wait(1)
    driver.measure(q=0, other=1)
    assert driver.gauges() == {"PENDING": 1}
    driver.measure(q=0, other=0)
    assert driver.gauges() == {}


def test_a_retry_without_task_sent_stays_without_a_count_of_unacked_messages():
    driver = ReconciledDriver()
    driver.apply(sent(), received(), started(), retried())
    driver.wait(10)
    for _ in range(3):
        driver.measure(None, q=0)
    assert driver.gauges() == {"RETRY": 1}
    driver.measure(0, q=0)
    assert driver.gauges() == {}


def test_a_task_that_goes_on_after_it_was_ended_reopens_in_its_queue():
    driver = ReconciledDriver()
    driver.apply(sent())
    driver.wait(1)
    driver.measure(q=0)
    driver.apply(received(at=3))
    assert driver.gauges() == {"RECEIVED": 1}
    driver.apply(started(at=4), succeeded(at=5))
    assert driver.gauges() == {}
    assert driver.counts() == {
        ("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }


@pytest.mark.parametrize("hours", [0.01, 1, 23])
def test_a_task_that_is_delivered_again_after_it_was_ended_waits_from_its_redelivery(hours):
    """Redis does so after its visibility timeout, an hour by default."""
    driver = ReconciledDriver()
    driver.apply(heartbeat(), sent(), received(at=1), started(at=2))
    driver.wait(3)
    driver.cluster.end_silently(driver.cluster.tasks.get("u1"), "not_running", driver.timestamp())
    driver = restarted(driver)
    assert driver.gauges() == {}
    driver.now += 3600 * hours
    driver.wait(1)
    late = {"host": "w@h", "pid": 2}
    events = (received, started, succeeded)
    driver.apply(*(event(at=3600 * hours + at, **late) for at, event in enumerate(events)))
    driver.wait(3)
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 2, "STARTED": 2, "SUCCESS": 1}
    assert (driver.aggregate().redeliveries, sum(driver.aggregate().queue_wait.counts)) == (1, 2)
    assert (driver.gauges(), len(driver.cluster.tasks)) == ({}, 0)


def test_a_task_that_was_ended_silently_expires_after_the_task_ttl():
    driver = ReconciledDriver(Limits(task_ttl=100.0))
    driver.apply(sent("a"), sent("b"))
    for uuid in ("a", "b"):
        driver.cluster.end_silently(driver.cluster.tasks.get(uuid), "message_gone", driver.timestamp())
    driver.wait(99)
    assert driver.cluster.tasks.uuids() == ["a", "b"]
    driver.wait(3)
    assert (driver.cluster.tasks.uuids(), driver.cluster.tasks.evicted) == ([], 0)


def test_a_task_that_was_ended_silently_may_go_on_after_its_label_set_was_removed():
    driver = ReconciledDriver(Limits(series_ttl=120.0))
    driver.apply(sent())
    driver.cluster.end_silently(driver.cluster.tasks.get("u1"), "message_gone", driver.timestamp())
    driver.wait(200)
    driver.apply(received(at=200), started(at=201), succeeded(at=202))
    driver.wait(3)
    assert driver.gauges() == {}
    assert driver.by_state()["SUCCESS"] == 1


def test_many_tasks_are_ended_with_pauses():
    driver = ReconciledDriver()
    driver.apply(*(sent(f"u{number}") for number in range(3 * CHUNK_TASKS)))
    driver.wait(1)
    driver.reconciler.add_measurement(Measurement(driver.now, {"q": 0}, {"q"}, 0))
    driver.wait(1.5)
    pauses = sum(1 for _ in driver.reconciler.reconcile(driver.timestamp()))
    assert pauses >= 3
    assert driver.reasons() == {"message_gone": 3 * CHUNK_TASKS}


def limit_rounds(monkeypatch: pytest.MonkeyPatch, round_tasks: int, chunk_tasks: int) -> None:
    monkeypatch.setattr(reconcile, "MAX_ROUND_TASKS", round_tasks)
    monkeypatch.setattr(reconcile, "CHUNK_TASKS", chunk_tasks)


def test_a_round_checks_a_bounded_number_of_tasks_and_all_have_their_turn(monkeypatch):
    limit_rounds(monkeypatch, 20, 5)
    driver = ReconciledDriver()
    driver.apply(heartbeat(), *(event(f"w{n}", eta=LATER) for n in range(100) for event in (sent, received)))
    driver.apply(*(sent(f"g{n}", queue=f"q{n % 3}") for n in range(100)))
    driver.wait(1)
    driver.reconciler.add_measurement(
        Measurement(driver.now, dict.fromkeys(("q0", "q1", "q2"), 0), LABELS, 9)
    )
    driver.wait(1)
    assert sum(1 for _ in driver.reconciler.reconcile(driver.timestamp())) == 4
    for _ in range(25):
        driver.measure(9, q=0, q0=0, q1=0, q2=0)
        driver.apply(heartbeat(at=driver.now - 100))
    assert driver.gauges() == {"RECEIVED": 100}


def test_tasks_may_be_added_and_removed_during_a_round(monkeypatch):
    limit_rounds(monkeypatch, 20, 5)
    driver = ReconciledDriver(Limits(max_tasks=50))
    driver.apply(*(sent(f"a{number}") for number in range(50)))
    driver.wait(1)
    driver.reconciler.add_measurement(Measurement(driver.now, {"q": 0}, {"q"}, 0))
    driver.wait(1.5)
    for number, _ in enumerate(driver.reconciler.reconcile(driver.timestamp())):
        for event in (sent, received, started, succeeded):
            driver.apply(*(event(f"b{number}-{new}", at=3) for new in range(3)))
        driver.apply(*(sent(f"c{number}-{new}", at=3) for new in range(9)))
    assert driver.reasons() == {"message_gone": 5}, "the table had evicted the others"
    driver.wait(1)
    driver.measure(q=0)
    for _ in range(5):
        driver.reconcile()
    assert driver.gauges() == {}


@pytest.mark.parametrize("count", [20, 40, 45])
def test_all_tasks_that_a_worker_does_not_have_are_ended(count, monkeypatch):
    limit_rounds(monkeypatch, 20, 5)
    driver = ReconciledDriver()
    driver.apply(heartbeat(), *(event(f"u{n}") for n in range(count) for event in (sent, received)))
    driver.wait(1)
    for _ in driver.reconciler.compare({"w@h": {"u7"}}, driver.now, driver.timestamp()):
        pass
    assert driver.gauges() == {"RECEIVED": 1}


# -- workers -----------------------------------------------------------------------------------------------


def test_a_started_task_of_a_worker_without_active_tasks_is_ended():
    """This follows `task.Ignore`, or the loss of the event that ends a task."""
    driver = ReconciledDriver()
    driver.apply(heartbeat(), sent(), received(), started(at=1))
    driver.beat(4, active=0)
    driver.reconcile()
    assert driver.gauges() == {"STARTED": 1}, "a task event may have overtaken a heartbeat"
    driver.beat(8, active=0)
    driver.reconcile()
    assert driver.gauges() == {}
    assert driver.reasons() == {"not_running": 1}


def test_a_worker_is_idle_by_the_heartbeats_after_a_restart_of_the_exporter():
    driver = ReconciledDriver()
    driver.wait(1_000)
    driver.apply(heartbeat(), sent(), received(), started())
    driver.beat(2, active=0)
    new = restarted(driver)
    new.apply(heartbeat())
    reconciler = Reconciler(new.cluster, drops_expired=False)
    for seconds, gauges in ((2, {"STARTED": 1}), (8, {})):
        new.wait(seconds)
        new.apply(heartbeat())
        for _ in reconciler.reconcile(new.timestamp()):
            pass
        assert new.gauges() == gauges


def test_a_started_task_of_a_worker_that_sometimes_reports_one_stays():
    driver = ReconciledDriver()
    driver.apply(heartbeat(), sent(), received(), started(at=1))
    for _ in range(5):
        driver.beat(4, active=0)
        driver.beat(2, active=1)
        driver.reconcile()
    assert driver.gauges() == {"STARTED": 1}


def test_each_task_that_a_worker_gives_back_is_counted():
    driver = ReconciledDriver()
    driver.apply(heartbeat(), sent("a"), received("a"), sent("b"), received("b"), heartbeat(kind="offline"))
    driver.wait(LATE_EVENT_SECONDS + 1)
    driver.reconcile()
    assert driver.gauges() == {"PENDING": 2}
    assert driver.reasons() == {"returned": 2}


def test_a_received_task_is_pending_again_after_worker_offline():
    driver = ReconciledDriver()
    driver.apply(heartbeat(), sent("a"), received("a"), sent("b"), received("b"), started("b"))
    driver.apply(sent("c"), received("c", host="other@h"), heartbeat(kind="offline"))
    driver.wait(LATE_EVENT_SECONDS)
    driver.reconcile()
    assert driver.gauges() == {"PENDING": 1, "RECEIVED": 1, "STARTED": 1}
    assert driver.reasons() == {"returned": 1}
    driver.apply(received("a", at=9, host="other@h"), started("a", at=10, host="other@h"))
    assert driver.aggregate().redeliveries == 1
    assert driver.aggregate().queue_wait.total == pytest.approx(0.2 + 1)


def test_task_events_after_worker_offline_are_of_the_delivery_before():
    """A worker sends the last events of its tasks when it closes its buffer of events."""
    driver = ReconciledDriver()
    driver.apply(heartbeat(), sent(), received(), heartbeat(kind="offline"))
    driver.reconcile()
    driver.apply(started(at=0.5), succeeded(at=1))
    aggregate = driver.aggregate()
    assert (sum(aggregate.queue_wait.counts), sum(aggregate.prefetch_wait.counts)) == (1, 1)
    assert driver.reasons() == {}


def test_a_received_task_is_pending_again_when_its_worker_returns_at_once():
    driver = ReconciledDriver()
    driver.apply(heartbeat(), sent(), received(at=1), heartbeat(at=2, kind="offline"))
    driver.wait(1)
    driver.apply(heartbeat(at=4, kind="online"), sent("b", at=4.1), received("b", at=4.2))
    driver.reconcile()
    assert driver.gauges() == {"PENDING": 1, "RECEIVED": 1}
    assert driver.reasons() == {"returned": 1}


def test_a_worker_that_returned_keeps_its_new_tasks():
    driver = ReconciledDriver()
    driver.apply(heartbeat(), heartbeat(kind="offline"), heartbeat(kind="online"), sent(), received())
    driver.reconcile()
    assert driver.gauges() == {"RECEIVED": 1}


def test_a_task_of_a_dead_worker_is_ended_when_its_message_is_gone():
    driver = ReconciledDriver(Limits(worker_timeout=10))
    driver.apply(heartbeat(), sent(), received())
    driver.wait(20)
    driver.measure(q=0, unacked=1)
    assert driver.gauges() == {"RECEIVED": 1}
    driver.measure(q=0)
    assert driver.gauges() == {}


def test_a_worker_with_more_tasks_than_it_reports_is_inspected_and_missing_tasks_are_ended():
    driver = ReconciledDriver()
    driver.apply(heartbeat(), *(event(uuid) for uuid in "abc" for event in (sent, received, started)))
    driver.apply(sent("new"), received("new"))
    driver.beat(40, active=1)
    assert driver.reconciler.workers_to_inspect(driver.timestamp()) == {"w@h": 1}
    inspected_at = driver.now
    driver.apply(sent("d"), received("d"))
    for _ in driver.reconciler.compare({"w@h": {"a", "new"}}, inspected_at, driver.timestamp()):
        pass
    assert driver.gauges() == {"STARTED": 1, "RECEIVED": 2}
    assert driver.reconciler.workers_to_inspect(driver.timestamp()) == {}


def test_an_idle_worker_with_a_due_task_is_inspected():
    driver = ReconciledDriver()
    driver.apply(heartbeat(), sent("a"), received("a"), sent("b", eta=LATER), received("b", eta=LATER))
    driver.beat(20, active=0)
    assert driver.reconciler.workers_to_inspect(driver.timestamp()) == {}
    driver.beat(20, active=0)
    assert driver.reconciler.workers_to_inspect(driver.timestamp()) == {"w@h": 1}
    driver.beat(10, active=1)
    assert driver.reconciler.workers_to_inspect(driver.timestamp()) == {}


def run_short_tasks(
    driver: ReconciledDriver, seconds: float, host: str = "w@h", **uuids_by_name: Collection[str]
) -> int:
    """Run one short task after the other on a worker; return the number of inspections."""
    inspections = 0
    end = driver.now + seconds
    while driver.now < end:
        uuid, at = f"short {driver.now}", driver.now - 100
        driver.apply(sent(uuid, at), received(uuid, at, host=host), started(uuid, at, host=host))
        driver.apply(heartbeat(host, at, active=1))
        driver.wait(5)
        driver.reconcile()
        replies = {name: [*uuids, uuid] for name, uuids in uuids_by_name.items()}
        inspections += len(driver.inspect(**replies))
        driver.apply(succeeded(uuid, at + 5, host=host))
    return inspections


def test_tasks_that_are_stuck_on_a_busy_worker_are_found_by_inspection():
    """This follows `task.Ignore`, or celery-batches."""
    driver = ReconciledDriver()
    driver.apply(heartbeat(), sent("a"), received("a"), started("a"))
    driver.apply(*(event(f"b{number}") for number in range(50) for event in (sent, received)))
    assert run_short_tasks(driver, 200, w=[]) == 0, "not before the long silence"
    assert driver.gauges() == {"STARTED": 1, "RECEIVED": 50}
    assert run_short_tasks(driver, 200, w=[]) == 1
    assert driver.gauges() == {}
    assert driver.reasons() == {"not_running": 51}


def test_a_worker_with_a_long_task_is_inspected_rarely_and_the_task_outlives_its_ttl():
    driver = ReconciledDriver(Limits(task_ttl=36_000))
    driver.apply(heartbeat(), sent("a"), received("a"), started("a"))
    inspections = 0
    for _ in range(3_000):
        driver.beat(1, active=1)
        driver.now += 33
        inspections += len(driver.inspect(w={"a"}))
    assert 30 < inspections < 40
    assert driver.gauges() == {"STARTED": 1}


def test_only_the_running_task_of_a_busy_worker_outlives_its_ttl():
    driver = ReconciledDriver(Limits(task_ttl=600))
    driver.apply(
        heartbeat(), *(event(uuid) for uuid in ("runs", "stuck") for event in (sent, received, started))
    )
    run_short_tasks(driver, 1_500, w=["runs"])
    assert driver.gauges() == {"STARTED": 1}
    assert driver.cluster.tasks.get("runs") is not None


@pytest.mark.parametrize(("active", "gauges"), [(1, {}), (2, {"STARTED": 2})])
def test_tasks_of_a_worker_that_does_not_answer_outlive_their_ttl_if_it_reports_as_many(active, gauges):
    driver = ReconciledDriver(Limits(task_ttl=600))
    driver.apply(heartbeat(), *(event(uuid) for uuid in "ab" for event in (sent, received, started)))
    inspections = 0
    for _ in range(100):
        driver.beat(10, active=active)
        inspections += len(driver.inspect())
    assert driver.gauges() == gauges
    assert inspections <= 5


def test_a_worker_with_a_stuck_task_is_found_after_many_tasks_that_are_not_due(monkeypatch):
    limit_rounds(monkeypatch, 20, 5)
    driver = ReconciledDriver()
    driver.apply(*(event(f"w{n}", eta=LATER) for n in range(55) for event in (sent, received)))
    driver.apply(sent("stuck", queue="r"), received("stuck"))
    driver.wait(400)
    driver.beat(10, active=1)
    assert [len(driver.inspect()) for _ in range(6)] == [0, 0, 0, 0, 0, 1]


def test_workers_are_inspected_in_turn():
    driver = ReconciledDriver()
    names = [f"w{number:02}@h" for number in range(25)]
    driver.apply(*(event(f"u {name}", host=name) for name in names for event in (received, started)))
    driver.wait(400)
    for _ in range(10):
        driver.wait(1)
        driver.apply(*(heartbeat(name, at=driver.now - 100, active=1) for name in names))
    turns = [driver.inspect() for _ in range(4)]
    assert [len(turn) for turn in turns] == [10, 10, 5, 0]
    assert set().union(*turns) == set(names)


def test_all_processes_of_an_inspected_worker_have_to_answer():
    driver = ReconciledDriver()
    driver.apply(*(event(uuid) for uuid in "abc" for event in (sent, received, started)))
    for _ in range(20):
        for pid in (1, 2):
            driver.beat(2, pid=pid, active=1)
    assert driver.reconciler.workers_to_inspect(driver.timestamp()) == {"w@h": 2}
    driver = ReconciledDriver()
    driver.cluster.record_inspection({"w@h": WorkerInfo(replies=3)}, driver.timestamp())
    driver.apply(*(event(uuid) for uuid in "abc" for event in (sent, received, started)))
    driver.beat(40, active=1)
    assert driver.reconciler.workers_to_inspect(driver.timestamp()) == {"w@h": 3}


def test_a_task_of_a_removed_worker_does_not_hide_those_of_others():
    driver = ReconciledDriver(Limits(worker_timeout=20, purge_offline_worker_metrics=20))
    driver.apply(heartbeat("gone@h"), heartbeat())
    driver.apply(sent("a"), received("a", host="gone@h"), started("a", host="gone@h"))
    driver.apply(*(event(uuid) for uuid in "bc" for event in (sent, received, started)))
    driver.beat(100, active=1)
    assert driver.inspect() == {"w@h"}


# -- expired -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drops_expired", [True, False])
def test_a_task_that_expired_in_its_queue_is_ended_if_the_broker_drops_it(drops_expired):
    driver = ReconciledDriver(drops_expired=drops_expired)
    driver.apply(
        sent("a", expires=SOON), sent("b", expires=LATER), sent("c"), sent("d", expires=SOON), received("d")
    )
    driver.wait(60)
    driver.measure(None, q=3)
    assert driver.gauges() == {"PENDING": 2 if drops_expired else 3, "RECEIVED": 1}
    assert driver.reasons() == ({"expired": 1} if drops_expired else {})


def test_a_task_is_not_ended_before_its_expiry_and_a_grace_period():
    driver = ReconciledDriver(drops_expired=True)
    driver.apply(sent(expires=SOON))
    for seconds, gauges in ((5, {"PENDING": 1}), (17, {"PENDING": 1}), (4, {})):  # T0 + 5, 22 and 26 s
        driver.wait(seconds)
        driver.reconcile()
        assert driver.gauges() == gauges


def test_expiry_times_are_kept_for_open_tasks_only():
    driver = ReconciledDriver()
    driver.apply(*(event(expires=LATER) for event in (sent, received)), started(), succeeded())
    assert driver.cluster.tasks.expires == {}


# -- --task-ttl --------------------------------------------------------------------------------------------


def test_a_task_that_a_live_worker_runs_outlives_its_ttl():
    driver = ReconciledDriver(Limits(task_ttl=20))
    driver.apply(heartbeat(), sent(), received(), started())
    driver.beat(60, active=1)
    assert driver.gauges() == {"STARTED": 1}
    driver.apply(heartbeat(kind="offline"))
    driver.wait(40)
    assert driver.gauges() == {}


@pytest.mark.parametrize("life", [[sent], [sent, received]], ids=["sent", "received"])
def test_a_task_that_is_not_due_outlives_its_ttl_and_a_restart(life):
    driver = ReconciledDriver(Limits(task_ttl=20))
    driver.apply(*(event(eta=LATER) for event in life))
    driver.wait(100)
    driver = restarted(driver, away=500)
    assert sum(driver.gauges().values()) == 1
    driver.wait(900)
    assert driver.gauges() == {}


def test_tasks_that_are_never_due_are_bounded_by_count():
    driver = ReconciledDriver(Limits(max_tasks=100))
    driver.apply(*(sent(f"u{number}", eta="9999-12-31T23:59:59+00:00") for number in range(300)))
    assert driver.gauges()["PENDING"] <= 100


# -- reasons and settings ----------------------------------------------------------------------------------


def test_each_reason_is_shown_from_the_start_and_survives_a_restart():
    driver = ReconciledDriver()
    assert dict(driver.shown().reconciled) == dict.fromkeys(REASONS, 0)
    driver.apply(sent())
    driver.wait(1)
    driver.measure(q=0)
    assert restarted(driver).shown().reconciled["message_gone"] == 1


def test_a_worker_with_silent_tasks_still_counts_as_sending_events():
    driver = ReconciledDriver()
    driver.cluster.record_inspection({"w@h": WorkerInfo(silent_tasks=("ping",))}, driver.timestamp())
    driver.apply(heartbeat(), sent(), received(), started(), succeeded())
    for processed in range(1, 10):
        driver.beat(2, processed=processed)
    assert driver.cluster.workers["w@h"].events is True
    assert driver.cluster.workers["w@h"].missed == 0
