"""Gauges come down without an event: what the broker and the workers report is held against the table."""

from __future__ import annotations

import re
from collections.abc import Collection

import pytest

from celery_exporter.core import reconcile
from celery_exporter.core.limits import Limits
from celery_exporter.core.reconcile import CHUNK_TASKS, LATE_EVENT_SECONDS, REASONS, Measurement, Reconciler
from celery_exporter.core.task_names import shown_as
from celery_exporter.core.workers import WorkerInfo
from unit.persistence.test_state import restarted

from .cluster_driver import ClusterDriver, heartbeat, received, retried, sent, started, succeeded

SOON, LATER = "2023-11-14T22:13:40+00:00", "2023-11-14T22:30:00+00:00"  # T0 + 20 s, T0 + 1,000 s


KNOWN = ("q",)


class Watched(ClusterDriver):
    """A story whose queues are measured; it begins at T0 on the clock of its events."""

    def __init__(self, *arguments, drops_expired: bool = False, **options) -> None:
        super().__init__(*arguments, **options)
        self.epoch -= self.now
        self.reconciler = Reconciler(self.cluster, drops_expired=drops_expired)

    def measure(self, unacked: int | None = 0, **lengths: int) -> None:
        """Measure the queues, let events that are on their way come, and compare."""
        self.reconciler.add_measurement(Measurement(self.now, lengths, {*lengths, *KNOWN}, unacked))
        self.wait(1.5)
        self.reconcile()

    def reconcile(self) -> None:
        for _ in self.reconciler.reconcile(self.moment()):
            pass

    def ask(self, **held: Collection[str]) -> set[str]:
        """Ask the workers that are to be asked, of which these answer; return which were asked."""
        suspects, asked = self.reconciler.workers_to_inspect(self.moment()), self.now
        answers = {f"{name}@h": uuids for name, uuids in held.items() if f"{name}@h" in suspects}
        for _ in self.reconciler.compare(answers, asked, self.moment()):
            pass
        return set(suspects)

    def beat(self, seconds: float, host: str = "w@h", **fields) -> None:
        """Let a worker send heartbeats for so long."""
        end = self.now + seconds
        while self.now < end:
            self.wait(2)
            self.apply(heartbeat(host, at=self.now - 100, **fields))

    def reasons(self) -> dict[str, int]:
        return {reason: count for reason, count in self.shown().reconciled.items() if count}


# -- messages that are gone --------------------------------------------------------------------------------


def test_a_task_waits_no_more_whose_queue_is_empty_and_that_no_worker_has():
    driver = Watched()
    driver.apply(sent("a"), sent("b", queue="other"))
    driver.wait(1)
    driver.measure(q=0, other=1)
    assert driver.gauges() == {"PENDING": 1}
    assert driver.reasons() == {"message_gone": 1}
    assert driver.by_state() == {"PENDING": 2}


@pytest.mark.parametrize("lengths", [{"q": 1}, {}, {"other": 0}], ids=["not empty", "unknown", "another's"])
def test_a_task_waits_whose_queue_is_not_known_to_be_empty(lengths):
    driver = Watched()
    driver.apply(sent())
    driver.wait(1)
    for _ in range(3):
        driver.measure(**lengths)
    assert driver.gauges() == {"PENDING": 1}


def test_a_task_that_was_sent_after_the_measurement_waits():
    driver = Watched()
    driver.reconciler.add_measurement(Measurement(driver.now, {"q": 0}, {"q"}, 0))
    driver.apply(sent())
    driver.wait(5)
    driver.reconcile()
    assert driver.gauges() == {"PENDING": 1}


def test_an_event_that_was_on_its_way_is_waited_for():
    driver = Watched()
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


def test_a_task_that_is_not_due_yet_waits_somewhere():
    driver = Watched()
    driver.apply(sent(eta=SOON))
    driver.wait(10)
    driver.measure(q=0)
    assert driver.gauges() == {"PENDING": 1}
    driver.wait(20)
    driver.measure(q=0)
    assert driver.gauges() == {}


def test_where_held_messages_are_not_counted_two_measurements_and_a_heartbeat_of_each_consumer_are_needed():
    driver = Watched()
    driver.apply(heartbeat(), heartbeat("busy@h"), sent())
    driver.cluster.record_inspection(
        {"w@h": WorkerInfo(queues=("other",)), "busy@h": WorkerInfo(queues=("q",))}, driver.moment()
    )
    driver.wait(1)
    driver.measure(None, q=0)
    driver.measure(None, q=0)
    assert driver.gauges() == {"PENDING": 1}, (
        "the solo pool runs a task, and its process has read nothing since"
    )
    driver.apply(heartbeat("busy@h", at=5))
    driver.reconcile()
    assert driver.gauges() == {}


def test_a_worker_that_is_busy_is_waited_for_whose_queue_has_another_name_on_metrics():
    driver = Watched(show_queue=shown_as(None, None, [(re.compile("customer-[0-9]+"), "customer-*")]))
    driver.apply(heartbeat(), sent(queue="customer-1"))
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("customer-1",))}, driver.moment())
    driver.wait(1)
    for _ in range(3):
        driver.measure(None, **{"customer-*": 0})
    assert driver.gauges() == {"PENDING": 1}, "its process has read nothing since"
    driver.apply(heartbeat(at=5))
    driver.reconcile()
    assert driver.gauges() == {}


def test_a_message_that_is_not_acknowledged_may_be_of_a_task_whose_receipt_was_lost():
    driver = Watched()
    driver.apply(sent("a"), sent("b"), received("b"))
    for _ in range(3):
        driver.beat(2)
        driver.measure(2, q=0)
    assert driver.gauges() == {"PENDING": 1, "RECEIVED": 1}


def test_purged_tasks_wait_no_more_although_workers_hold_messages_of_their_tasks():
    driver = Watched()
    driver.apply(sent("a"), *(sent(uuid) for uuid in "bc"), received("b"), *(received("c"), started("c")))
    driver.beat(2, active=1)
    driver.measure(2, q=0)
    assert driver.gauges()["PENDING"] == 1, "the messages may have been others at first"
    driver.beat(2, active=1)
    driver.measure(2, q=0)
    assert driver.gauges() == {"RECEIVED": 1, "STARTED": 1}


def test_what_a_dead_worker_had_received_is_delivered_again_while_messages_are_not_acknowledged():
    driver = Watched(Limits(worker_timeout=10))
    driver.apply(heartbeat(), heartbeat("other@h"), sent("a"), received("a"))
    for _ in range(8):
        driver.beat(2, "other@h")
        driver.measure(1, q=0)
    assert driver.gauges() == {"RECEIVED": 1}


def test_one_measurement_in_two_that_is_not_empty_proves_that_there_are_messages():
    driver = Watched()
    driver.apply(sent())
    driver.wait(1)
    for length in (0, 1, 0, 1):
        driver.measure(None, q=length)
    assert driver.gauges() == {"PENDING": 1}


def test_without_the_queue_label_all_queues_have_to_be_empty():
    driver = Watched(labels=())
    driver.apply(sent())
    driver.wait(1)
    driver.measure(q=0, other=1)
    assert driver.gauges() == {"PENDING": 1}
    driver.measure(q=0, other=0)
    assert driver.gauges() == {}


def test_a_retry_whose_countdown_nobody_told_waits_where_held_messages_are_not_counted():
    driver = Watched()
    driver.apply(sent(), received(), started(), retried())
    driver.wait(10)
    for _ in range(3):
        driver.measure(None, q=0)
    assert driver.gauges() == {"RETRY": 1}
    driver.measure(0, q=0)
    assert driver.gauges() == {}


def test_what_is_taken_out_and_goes_on_all_the_same_is_open_again_and_keeps_its_queue():
    driver = Watched()
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
def test_what_is_taken_out_and_delivered_again_much_later_is_redelivered_and_waits_from_then(hours):
    """As Redis does after its visibility timeout, which is an hour if nobody says so."""
    driver = Watched()
    driver.apply(heartbeat(), sent(), received(at=1), started(at=2))
    driver.wait(3)
    driver.cluster.end_silently(driver.cluster.tasks.get("u1"), "not_running", driver.moment())
    driver = restarted(driver)
    assert driver.gauges() == {}
    driver.now += 3600 * hours
    driver.wait(1)
    late = {"host": "w@h", "pid": 2}
    driver.apply(
        *(each(at=3600 * hours + at, **late) for at, each in enumerate((received, started, succeeded)))
    )
    driver.wait(3)
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 2, "STARTED": 2, "SUCCESS": 1}
    assert (driver.aggregate().redeliveries, sum(driver.aggregate().queue_wait.counts)) == (1, 2)
    assert (driver.gauges(), len(driver.cluster.tasks)) == ({}, 0)


def test_what_is_taken_out_is_forgotten_after_the_time_for_tasks():
    driver = Watched(Limits(task_ttl=100.0))
    driver.apply(sent("a"), sent("b"))
    for uuid in ("a", "b"):
        driver.cluster.end_silently(driver.cluster.tasks.get(uuid), "message_gone", driver.moment())
    driver.wait(99)
    assert driver.cluster.tasks.uuids() == ["a", "b"]
    driver.wait(3)
    assert (driver.cluster.tasks.uuids(), driver.cluster.tasks.evicted) == ([], 0)


def test_what_was_taken_out_can_come_again_when_its_label_set_is_gone():
    driver = Watched(Limits(series_ttl=120.0))
    driver.apply(sent())
    driver.cluster.end_silently(driver.cluster.tasks.get("u1"), "message_gone", driver.moment())
    driver.wait(200)
    driver.apply(received(at=200), started(at=201), succeeded(at=202))
    driver.wait(3)
    assert driver.gauges() == {}
    assert driver.by_state()["SUCCESS"] == 1


def test_any_number_is_taken_out_with_pauses_for_others():
    driver = Watched()
    driver.apply(*(sent(f"u{number}") for number in range(3 * CHUNK_TASKS)))
    driver.wait(1)
    driver.reconciler.add_measurement(Measurement(driver.now, {"q": 0}, {"q"}, 0))
    driver.wait(1.5)
    pauses = sum(1 for _ in driver.reconciler.reconcile(driver.moment()))
    assert pauses >= 3
    assert driver.reasons() == {"message_gone": 3 * CHUNK_TASKS}


def few_at_a_time(monkeypatch: pytest.MonkeyPatch, most: int, chunk: int) -> None:
    monkeypatch.setattr(reconcile, "MAX_ROUND_TASKS", most)
    monkeypatch.setattr(reconcile, "CHUNK_TASKS", chunk)


def test_a_round_looks_at_a_bounded_number_of_tasks_and_all_have_their_turn(monkeypatch):
    few_at_a_time(monkeypatch, 20, 5)
    driver = Watched()
    driver.apply(heartbeat(), *(event(f"w{n}", eta=LATER) for n in range(100) for event in (sent, received)))
    driver.apply(*(sent(f"g{n}", queue=f"q{n % 3}") for n in range(100)))
    driver.wait(1)
    driver.reconciler.add_measurement(Measurement(driver.now, dict.fromkeys(("q0", "q1", "q2"), 0), KNOWN, 9))
    driver.wait(1)
    assert sum(1 for _ in driver.reconciler.reconcile(driver.moment())) == 4
    for _ in range(25):
        driver.measure(9, q=0, q0=0, q1=0, q2=0)
        driver.apply(heartbeat(at=driver.now - 100))
    assert driver.gauges() == {"RECEIVED": 100}


def test_tasks_that_come_and_go_while_others_are_looked_at_do_no_harm(monkeypatch):
    few_at_a_time(monkeypatch, 20, 5)
    driver = Watched(Limits(max_tasks=50))
    driver.apply(*(sent(f"a{number}") for number in range(50)))
    driver.wait(1)
    driver.reconciler.add_measurement(Measurement(driver.now, {"q": 0}, {"q"}, 0))
    driver.wait(1.5)
    for number, _ in enumerate(driver.reconciler.reconcile(driver.moment())):
        for event in (sent, received, started, succeeded):
            driver.apply(*(event(f"b{number}-{new}", at=3) for new in range(3)))
        driver.apply(*(sent(f"c{number}-{new}", at=3) for new in range(9)))
    assert driver.reasons() == {"message_gone": 5}, "the others were too many"
    driver.wait(1)
    driver.measure(q=0)
    for _ in range(5):
        driver.reconcile()
    assert driver.gauges() == {}


@pytest.mark.parametrize("count", [20, 40, 45])
def test_all_that_a_worker_does_not_have_is_taken_out_however_much_it_is(count, monkeypatch):
    few_at_a_time(monkeypatch, 20, 5)
    driver = Watched()
    driver.apply(heartbeat(), *(event(f"u{n}") for n in range(count) for event in (sent, received)))
    driver.wait(1)
    for _ in driver.reconciler.compare({"w@h": {"u7"}}, driver.now, driver.moment()):
        pass
    assert driver.gauges() == {"RECEIVED": 1}


# -- workers -----------------------------------------------------------------------------------------------


def test_a_task_does_not_run_on_a_worker_that_reports_none():
    """`task.Ignore`, the end of a task that was lost."""
    driver = Watched()
    driver.apply(heartbeat(), sent(), received(), started(at=1))
    driver.beat(4, active=0)
    driver.reconcile()
    assert driver.gauges() == {"STARTED": 1}, "a heartbeat may have been overtaken"
    driver.beat(8, active=0)
    driver.reconcile()
    assert driver.gauges() == {}
    assert driver.reasons() == {"not_running": 1}


def test_a_worker_is_idle_by_the_heartbeats_that_came_since_a_restart():
    driver = Watched()
    driver.wait(1_000)
    driver.apply(heartbeat(), sent(), received(), started())
    driver.beat(2, active=0)
    new = restarted(driver)
    new.apply(heartbeat())
    reconciler = Reconciler(new.cluster, drops_expired=False)
    for seconds, gauges in ((2, {"STARTED": 1}), (8, {})):
        new.wait(seconds)
        new.apply(heartbeat())
        for _ in reconciler.reconcile(new.moment()):
            pass
        assert new.gauges() == gauges


def test_a_task_runs_on_a_worker_that_reports_one_now_and_then():
    driver = Watched()
    driver.apply(heartbeat(), sent(), received(), started(at=1))
    for _ in range(5):
        driver.beat(4, active=0)
        driver.beat(2, active=1)
        driver.reconcile()
    assert driver.gauges() == {"STARTED": 1}


def test_what_a_worker_had_received_waits_again_after_its_goodbye():
    driver = Watched()
    driver.apply(heartbeat(), sent("a"), received("a"), sent("b"), received("b"), started("b"))
    driver.apply(sent("c"), received("c", host="other@h"), heartbeat(kind="offline"))
    driver.wait(LATE_EVENT_SECONDS)
    driver.reconcile()
    assert driver.gauges() == {"PENDING": 1, "RECEIVED": 1, "STARTED": 1}
    assert driver.reasons() == {"returned": 1}
    driver.apply(received("a", at=9, host="other@h"), started("a", at=10, host="other@h"))
    assert driver.aggregate().redeliveries == 1
    assert driver.aggregate().queue_wait.total == pytest.approx(0.2 + 1)


def test_what_follows_a_goodbye_is_of_the_delivery_before_it():
    """A worker sends the last events of its tasks when it closes the buffer that they wait in."""
    driver = Watched()
    driver.apply(heartbeat(), sent(), received(), heartbeat(kind="offline"))
    driver.reconcile()
    driver.apply(started(at=0.5), succeeded(at=1))
    aggregate = driver.aggregate()
    assert (sum(aggregate.queue_wait.counts), sum(aggregate.prefetch_wait.counts)) == (1, 1)
    assert driver.reasons() == {}


def test_what_a_worker_had_received_waits_again_when_it_comes_back_at_once():
    driver = Watched()
    driver.apply(heartbeat(), sent(), received(at=1), heartbeat(at=2, kind="offline"))
    driver.wait(1)
    driver.apply(heartbeat(at=4, kind="online"), sent("b", at=4.1), received("b", at=4.2))
    driver.reconcile()
    assert driver.gauges() == {"PENDING": 1, "RECEIVED": 1}
    assert driver.reasons() == {"returned": 1}


def test_a_worker_that_came_back_keeps_what_it_received_since():
    driver = Watched()
    driver.apply(heartbeat(), heartbeat(kind="offline"), heartbeat(kind="online"), sent(), received())
    driver.reconcile()
    assert driver.gauges() == {"RECEIVED": 1}


def test_what_a_dead_worker_had_received_is_gone_with_its_message():
    driver = Watched(Limits(worker_timeout=10))
    driver.apply(heartbeat(), sent(), received())
    driver.wait(20)
    driver.measure(q=0, unacked=1)
    assert driver.gauges() == {"RECEIVED": 1}
    driver.measure(q=0)
    assert driver.gauges() == {}


def test_a_worker_is_asked_that_has_more_than_its_heartbeats_say_and_what_it_has_not_is_taken_out():
    driver = Watched()
    driver.apply(heartbeat(), *(event(uuid) for uuid in "abc" for event in (sent, received, started)))
    driver.apply(sent("new"), received("new"))
    driver.beat(40, active=1)
    assert driver.reconciler.workers_to_inspect(driver.moment()) == {"w@h": 1}
    asked = driver.now
    driver.apply(sent("d"), received("d"))
    for _ in driver.reconciler.compare({"w@h": {"a", "new"}}, asked, driver.moment()):
        pass
    assert driver.gauges() == {"STARTED": 1, "RECEIVED": 2}
    assert driver.reconciler.workers_to_inspect(driver.moment()) == {}


def test_a_worker_is_asked_that_is_idle_and_has_received_what_is_due():
    driver = Watched()
    driver.apply(heartbeat(), sent("a"), received("a"), sent("b", eta=LATER), received("b", eta=LATER))
    driver.beat(20, active=0)
    assert driver.reconciler.workers_to_inspect(driver.moment()) == {}
    driver.beat(20, active=0)
    assert driver.reconciler.workers_to_inspect(driver.moment()) == {"w@h": 1}
    driver.beat(10, active=1)
    assert driver.reconciler.workers_to_inspect(driver.moment()) == {}


def run_short_tasks(driver: Watched, seconds: float, host: str = "w@h", **held: Collection[str]) -> int:
    """Let a worker run one short task after the other; return how often one was asked for its tasks."""
    asked = 0
    end = driver.now + seconds
    while driver.now < end:
        uuid, at = f"short {driver.now}", driver.now - 100
        driver.apply(sent(uuid, at), received(uuid, at, host=host), started(uuid, at, host=host))
        driver.apply(heartbeat(host, at, active=1))
        driver.wait(5)
        driver.reconcile()
        asked += len(driver.ask(**{name: [*uuids, uuid] for name, uuids in held.items()}))
        driver.apply(succeeded(uuid, at + 5, host=host))
    return asked


def test_what_is_stuck_on_a_worker_that_is_always_busy_is_found_by_asking():
    """`task.Ignore`, or what celery-batches received."""
    driver = Watched()
    driver.apply(heartbeat(), sent("a"), received("a"), started("a"))
    driver.apply(*(event(f"b{number}") for number in range(50) for event in (sent, received)))
    assert run_short_tasks(driver, 200, w=[]) == 0, "as it is with many workers"
    assert driver.gauges() == {"STARTED": 1, "RECEIVED": 50}
    assert run_short_tasks(driver, 200, w=[]) == 1
    assert driver.gauges() == {}
    assert driver.reasons() == {"not_running": 51}


def test_a_worker_that_runs_a_task_for_long_is_asked_seldom_and_the_task_outlives_its_ttl():
    driver = Watched(Limits(task_ttl=36_000))
    driver.apply(heartbeat(), sent("a"), received("a"), started("a"))
    asked = 0
    for _ in range(3_000):
        driver.beat(1, active=1)
        driver.now += 33
        asked += len(driver.ask(w={"a"}))
    assert 30 < asked < 40
    assert driver.gauges() == {"STARTED": 1}


def test_of_the_tasks_of_a_busy_worker_the_one_that_it_runs_outlives_its_ttl():
    driver = Watched(Limits(task_ttl=600))
    driver.apply(
        heartbeat(), *(event(uuid) for uuid in ("runs", "stuck") for event in (sent, received, started))
    )
    run_short_tasks(driver, 1_500, w=["runs"])
    assert driver.gauges() == {"STARTED": 1}
    assert driver.cluster.tasks.get("runs") is not None


@pytest.mark.parametrize(("active", "gauges"), [(1, {}), (2, {"STARTED": 2})])
def test_the_tasks_of_a_worker_that_does_not_answer_outlive_their_ttl_if_it_says_so_many(active, gauges):
    driver = Watched(Limits(task_ttl=600))
    driver.apply(heartbeat(), *(event(uuid) for uuid in "ab" for event in (sent, received, started)))
    asked = 0
    for _ in range(100):
        driver.beat(10, active=active)
        asked += len(driver.ask())
    assert driver.gauges() == gauges
    assert asked <= 5


def test_who_has_what_is_stuck_is_found_in_turn_behind_many_tasks_that_are_not_due(monkeypatch):
    few_at_a_time(monkeypatch, 20, 5)
    driver = Watched()
    driver.apply(*(event(f"w{n}", eta=LATER) for n in range(55) for event in (sent, received)))
    driver.apply(sent("stuck", queue="r"), received("stuck"))
    driver.wait(400)
    driver.beat(10, active=1)
    assert [len(driver.ask()) for _ in range(6)] == [0, 0, 0, 0, 0, 1]


def test_workers_are_asked_in_turn():
    driver = Watched()
    names = [f"w{number:02}@h" for number in range(25)]
    driver.apply(*(event(f"u {name}", host=name) for name in names for event in (received, started)))
    driver.wait(400)
    for _ in range(10):
        driver.wait(1)
        driver.apply(*(heartbeat(name, at=driver.now - 100, active=1) for name in names))
    turns = [driver.ask() for _ in range(4)]
    assert [len(turn) for turn in turns] == [10, 10, 5, 0]
    assert set().union(*turns) == set(names)


def test_all_processes_of_a_worker_that_is_asked_have_to_answer():
    driver = Watched()
    driver.apply(*(event(uuid) for uuid in "abc" for event in (sent, received, started)))
    for _ in range(20):
        for pid in (1, 2):
            driver.beat(2, pid=pid, active=1)
    assert driver.reconciler.workers_to_inspect(driver.moment()) == {"w@h": 2}
    driver = Watched()
    driver.cluster.record_inspection({"w@h": WorkerInfo(answers=3)}, driver.moment())
    driver.apply(*(event(uuid) for uuid in "abc" for event in (sent, received, started)))
    driver.beat(40, active=1)
    assert driver.reconciler.workers_to_inspect(driver.moment()) == {"w@h": 3}


# -- expired -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drops_expired", [True, False])
def test_a_task_that_expired_in_its_queue_waits_no_more_where_the_broker_drops_it(drops_expired):
    driver = Watched(drops_expired=drops_expired)
    driver.apply(
        sent("a", expires=SOON), sent("b", expires=LATER), sent("c"), sent("d", expires=SOON), received("d")
    )
    driver.wait(60)
    driver.measure(None, q=3)
    assert driver.gauges() == {"PENDING": 2 if drops_expired else 3, "RECEIVED": 1}
    assert driver.reasons() == ({"expired": 1} if drops_expired else {})


def test_what_is_known_of_expiry_is_bounded_by_the_tasks_that_are_open():
    driver = Watched()
    driver.apply(*(event(expires=LATER) for event in (sent, received)), started(), succeeded())
    assert driver.cluster.tasks.expires == {}


# -- --task-ttl --------------------------------------------------------------------------------------------


def test_a_task_that_a_live_worker_runs_outlives_its_ttl():
    driver = Watched(Limits(task_ttl=20))
    driver.apply(heartbeat(), sent(), received(), started())
    driver.beat(60, active=1)
    assert driver.gauges() == {"STARTED": 1}
    driver.apply(heartbeat(kind="offline"))
    driver.wait(40)
    assert driver.gauges() == {}


@pytest.mark.parametrize("life", [[sent], [sent, received]], ids=["sent", "received"])
def test_a_task_that_is_not_due_outlives_its_ttl_and_a_restart(life):
    driver = Watched(Limits(task_ttl=20))
    driver.apply(*(event(eta=LATER) for event in life))
    driver.wait(100)
    driver = restarted(driver, away=500)
    assert sum(driver.gauges().values()) == 1
    driver.wait(900)
    assert driver.gauges() == {}


def test_tasks_that_are_never_due_are_bounded_by_count():
    driver = Watched(Limits(max_tasks=100))
    driver.apply(*(sent(f"u{number}", eta="9999-12-31T23:59:59+00:00") for number in range(300)))
    assert driver.gauges()["PENDING"] <= 100


# -- what is known of it -----------------------------------------------------------------------------------


def test_each_reason_is_shown_from_the_start_and_outlasts_a_restart():
    driver = Watched()
    assert dict(driver.shown().reconciled) == dict.fromkeys(REASONS, 0)
    driver.apply(sent())
    driver.wait(1)
    driver.measure(q=0)
    assert restarted(driver).shown().reconciled["message_gone"] == 1


def test_a_worker_with_tasks_that_send_no_events_is_not_taken_for_one_that_sends_none():
    driver = Watched()
    driver.cluster.record_inspection({"w@h": WorkerInfo(silent_tasks=("ping",))}, driver.moment())
    driver.apply(heartbeat(), sent(), received(), started(), succeeded())
    for processed in range(1, 10):
        driver.beat(2, processed=processed)
    assert driver.cluster.workers["w@h"].events is True
    assert driver.cluster.workers["w@h"].missed == 0
