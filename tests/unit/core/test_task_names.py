"""Which tasks are shown, and under which names."""

from __future__ import annotations

import re

import pytest

from celery_exporter.core.label_sets import MEAN_BYTES
from celery_exporter.core.limits import Limits
from celery_exporter.core.task_names import MAX_VALUE_BYTES, clipped, shown_as
from celery_exporter.core.types import EXCLUDED, LabelSet, State
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.persistence import state as memory
from unit.persistence.state_records import remembered

from .cluster_driver import ClusterDriver, failed, heartbeat, received, sent, started, succeeded, task_event


def rule(regex: str, replacement: str) -> tuple[re.Pattern[str], str]:
    return re.compile(regex), replacement


@pytest.mark.parametrize(
    ("include", "exclude", "rules", "name", "shown"),
    [
        (None, None, [], "add", "add"),
        ("shop.*", None, [], "shop.pay", "shop.pay"),
        ("shop", None, [], "shop.pay", ""),  # the whole name has to match
        (None, "shop.*", [], "shop.pay", ""),
        ("shop.*", ".*pay", [], "shop.pay", ""),
        ("shop.*", ".*pay", [], "shop.ship", "shop.ship"),
        (None, None, [rule("job-[0-9]+", "job")], "job-17", "job"),
        (None, None, [rule("job-[0-9]+", "job")], "job-17-b", "job-17-b"),
        (None, None, [rule(r"(\w+)\.[0-9a-f]{4}", r"\1.N")], "report.00ff", "report.N"),
        (None, None, [rule("a.*", "first"), rule("ab.*", "second")], "abc", "first"),
        (None, None, [rule("job(-.*)?", r"\1")], "job", "job"),  # nothing is left: as it was
        ("job-.*", None, [rule("job-.*", "job")], "job-1", "job"),  # chosen by the name that the app gave
    ],
)
def test_a_name_is_shown_as_the_rules_say(include, exclude, rules, name, shown):
    compiled = [pattern and re.compile(pattern) for pattern in (include, exclude)]
    assert shown_as(*compiled, rules)(name) == shown


def test_names_made_at_run_time_are_one_series():
    driver = ClusterDriver(show=shown_as(None, None, [rule("job-[0-9]+", "job")]))
    for number in range(5):
        uuid, name = f"u{number}", f"job-{number}"
        driver.apply(sent(uuid, name=name), received(uuid, name=name), started(uuid), succeeded(uuid))
    assert driver.counts() == {
        ("job", "q", state): 5 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }
    assert set(driver.ledger.snapshot()) == {LabelSet("job", "q")}


def test_a_task_that_is_not_shown_is_followed_but_in_no_sum_and_no_gauge():
    driver = ClusterDriver(show=shown_as(None, re.compile("noise"), []), labels=("queue_name", "worker"))
    driver.apply(sent(name="noise"), received(name="noise"), started())
    driver.apply(failed("u2", exception="NotRegistered('noise')"), received("u3", name="noise"))
    driver.wait(3)
    assert driver.shown().aggregates == {}
    assert driver.shown().tasks == []
    assert driver.cluster.fallbacks.total() == 0
    assert len(driver.cluster.tasks) == 2
    driver.apply(succeeded())
    assert set(driver.ledger.snapshot()) == {EXCLUDED}
    assert len(driver.cluster.tasks) == 1
    assert len(driver.cluster.label_sets) == 0, "it takes no room from what is shown"


def test_a_task_without_a_name_is_shown_as_unknown_whatever_is_included():
    driver = ClusterDriver(show=shown_as(re.compile("shop.*"), None, []))
    driver.apply(succeeded())
    driver.wait(3)
    assert driver.counts() == {("unknown", "unknown", "SUCCESS"): 1}


def test_registered_tasks_are_foreseen_by_the_name_they_are_shown_as():
    driver = ClusterDriver(show=shown_as(None, re.compile("noise"), [rule("job-.*", "job")]))
    info = WorkerInfo(queues=("q",), registered=("job-a", "job-b", "noise"))
    driver.cluster.record_inspection({"w@h": info}, driver.moment())
    assert set(driver.ledger.snapshot()) == {LabelSet("job", "q")}


# -- --series-ttl --------------------------------------------------------------------------------------


def life(uuid: str, at: float = 0.0, **names: str) -> list[dict]:
    return [
        sent(uuid, at, **names),
        received(uuid, at + 1),
        started(uuid, at + 2),
        failed(uuid, at + 3),
    ]


def test_invariant_5_an_idle_series_is_added_up_as_other_and_no_sum_falls():
    driver = ClusterDriver(Limits(series_ttl=200), labels=("queue_name", "worker"))
    driver.apply(*life("u1", name="once"), *life("u2", name="often"))
    driver.wait(150)
    driver.apply(*life("u3", 150, name="often"))
    driver.wait(100)
    assert {key.task_name for key in driver.ledger.snapshot()} == {"often", "other"}
    assert driver.by_state("other") == {"PENDING": 1, "RECEIVED": 1, "STARTED": 1, "FAILURE": 1}
    assert driver.by_state("often") == {"PENDING": 2, "RECEIVED": 2, "STARTED": 2, "FAILURE": 2}
    other = driver.aggregate("other", "other", "other")
    assert other.exceptions == {"ValueError": 1}
    assert other.runtime[State.FAILURE].total == 1.0
    assert driver.aggregate("other", "other", "").queue_wait is None
    assert len(driver.cluster.label_sets) == len(driver.ledger.snapshot())


def test_a_series_with_an_open_task_is_not_idle():
    driver = ClusterDriver(Limits(series_ttl=200))
    driver.apply(sent(), received(), started())
    driver.wait(1000)
    assert set(driver.ledger.snapshot()) == {LabelSet("add", "q")}


def test_a_series_of_a_registered_task_is_not_given_up():
    driver = ClusterDriver(Limits(series_ttl=200))
    info = WorkerInfo(queues=("q",), registered=("add",))
    driver.cluster.record_inspection({"w@h": info}, driver.moment())
    driver.apply(*life("u1"), *life("u2", name="mul"), heartbeat())
    driver.wait(300)
    assert {key.task_name for key in driver.ledger.snapshot()} == {"add", "other"}


def test_a_series_that_was_given_up_begins_anew():
    driver = ClusterDriver(Limits(series_ttl=200))
    driver.apply(*life("u1"))
    driver.wait(300)
    driver.apply(*life("u1", at=300))
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 1, "STARTED": 1, "FAILURE": 1}
    assert driver.gauges() == {}
    driver.wait(300)
    assert driver.by_state("other")["FAILURE"] == 2
    assert driver.by_state() == {}


def test_waits_of_tasks_that_overtook_their_task_sent_are_their_worker_s():
    driver = ClusterDriver(labels=("queue_name", "worker"))
    driver.apply(received(at=1), started(at=2))
    driver.wait(3)
    driver.apply(sent(at=0), task_event("succeeded", at=3, runtime=1.0))
    assert driver.aggregate(worker="w@h").queue_wait.total == 2.0


def test_each_task_that_finds_no_room_is_counted_as_folded_and_names_are_not_hoarded():
    driver = ClusterDriver(Limits(max_series=2 * len(State)))
    for number in range(100):
        driver.apply(sent(f"u{number}", name=f"task{number % 50}"))
    keys = driver.cluster.label_sets
    assert keys.overflowed >= 2 * (50 - 2)
    assert len(keys._of_tasks) <= 2


# -- queues ----------------------------------------------------------------------------------------------


def customers(**more) -> ClusterDriver:
    return ClusterDriver(
        show_queue=shown_as(None, re.compile("secret"), [rule("customer-[0-9]+", "customer-*")]), **more
    )


def in_queue(uuid: str, queue: str) -> list[dict]:
    return [sent(uuid, queue=queue), received(uuid), started(uuid), succeeded(uuid)]


def test_queues_made_at_run_time_are_one_label():
    driver = customers()
    for number in range(5):
        driver.apply(*in_queue(f"u{number}", f"customer-{number}"))
    assert {queue for _, queue, _ in driver.counts()} == {"customer-*"}
    assert driver.counts()["add", "customer-*", "SUCCESS"] == 5


def test_tasks_of_an_excluded_queue_are_counted_as_other_and_the_queue_is_not_measured():
    driver = customers()
    driver.apply(*in_queue("u1", "secret"), *in_queue("u2", "q"))
    assert driver.counts()["add", "other", "SUCCESS"] == 1
    assert driver.by_state()["SUCCESS"] == 2
    assert driver.cluster.queues.names() == ["q"]
    assert [queue.name for queue in driver.shown().queues] == ["q"]


def test_a_rule_is_applied_once_also_where_an_attempt_takes_its_queue_from_the_one_before():
    rules = [rule("a", "b"), rule("b", "c")]
    driver = ClusterDriver(show_queue=shown_as(re.compile("a|b"), None, rules))
    driver.apply(sent(queue="a"), received(), task_event("retried", at=1, exception="E()"))
    driver.apply(received(at=2, retries=1, name="add"), received("u2", at=2))
    driver.wait(3)
    assert {queue for _, queue, _ in driver.counts()} == {"b", "unknown"}


def test_what_is_restored_is_called_by_the_queue_rules_of_today():
    old = ClusterDriver()
    for number in range(2):
        old.apply(*in_queue(f"u{number}", f"customer-{number}"), *in_queue(f"s{number}", "secret"))
    old.apply(received("u9"))
    old.wait(3)
    driver = customers()
    driver.cluster.label_sets.queues_renamed = True
    memory.restore(remembered(old), driver.cluster, driver.moment())
    assert driver.counts()["add", "customer-*", "SUCCESS"] == 2
    assert driver.counts()["add", "other", "SUCCESS"] == 2
    assert driver.counts()["add", "unknown", "RECEIVED"] == 1
    assert set(driver.cluster.queues.names()) == {"customer-0", "customer-1"}


def test_registered_tasks_are_foreseen_under_the_name_of_their_queue():
    driver = customers()
    driver.cluster.record_inspection(
        {"w@h": WorkerInfo(queues=("customer-1",), registered=("add",))}, driver.moment()
    )
    assert LabelSet("add", "customer-*") in driver.ledger.snapshot()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a" * MAX_VALUE_BYTES, "a" * MAX_VALUE_BYTES),
        ("é" * 127, "é" * 127),
        ("é" * 128, "é" * 126 + "…"),
        ("\U0001f600" * 255, "\U0001f600" * 63 + "…"),
        ("\ud800" * 300, "?" * 252 + "…"),
    ],
    ids=["", "two bytes each", "one too many", "four bytes each", "half characters"],
)
def test_a_name_is_clipped_by_its_bytes(name, shown):
    assert clipped(name) == shown
    assert len(shown.encode()) <= MAX_VALUE_BYTES


def test_tasks_with_long_names_are_counted_under_what_is_left_of_them():
    driver = ClusterDriver()
    long = "\U0001f600" * 255
    driver.apply(sent(name=long, queue=long), received(name=long), started(at=1), succeeded(at=2))
    assert driver.counts() == {
        (clipped(long), clipped(long), state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }


def test_label_sets_are_folded_when_their_bytes_are_too_many():
    """Of the usual length there are as many as were asked for."""
    limits = Limits(max_series=8 * 100)
    driver, usual = ClusterDriver(limits), ClusterDriver(limits)
    for number in range(100):
        driver.apply(sent(f"u{number}", name=f"{number:03}" + "n" * 245, queue="q" * 245))
        usual.apply(sent(f"u{number}", name=f"tasks.of_the_application.{number:03}"))
    named = {name for name, _, _ in driver.counts()} - {"other"}
    assert len(named) == 100 * MEAN_BYTES // (248 + 245)
    assert driver.counts()["other", "other", "PENDING"] == 100 - len(named)
    assert driver.cluster.label_sets.overflowed == 100 - len(named)
    assert usual.cluster.label_sets.overflowed == 0


def test_a_worker_whose_name_is_too_long_is_refused_and_counted():
    driver = ClusterDriver()
    driver.apply(heartbeat("\U0001f600" * 100), heartbeat())
    assert driver.cluster.workers.keys() == {"w@h"}
    assert driver.cluster.limit_rejections["worker"] == 1
