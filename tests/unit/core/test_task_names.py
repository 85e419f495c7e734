"""Label values of tasks and queues, and the limits of series and label values."""

from __future__ import annotations

import re

import pytest

from celery_exporter.core.label_sets import MEAN_BYTES
from celery_exporter.core.limits import Limits
from celery_exporter.core.task_names import MAX_VALUE_BYTES, clipped, shown_as
from celery_exporter.core.types import EXCLUDED, LabelSet, State
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.persistence import state
from unit.persistence.state_records import saved_cluster

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
        (None, None, [rule("job(-.*)?", r"\1")], "job", "job"),  # an empty result: the name is unchanged
        (
            "job-.*",
            None,
            [rule("job-.*", "job")],
            "job-1",
            "job",
        ),  # include matches the name before the rules
    ],
)
def test_a_name_is_shown_by_the_rules(include, exclude, rules, name, shown):
    compiled = [pattern and re.compile(pattern) for pattern in (include, exclude)]
    assert shown_as(*compiled, rules)(name) == shown


def test_generated_names_are_one_series():
    driver = ClusterDriver(show=shown_as(None, None, [rule("job-[0-9]+", "job")]))
    for number in range(5):
        uuid, name = f"u{number}", f"job-{number}"
        driver.apply(sent(uuid, name=name), received(uuid, name=name), started(uuid), succeeded(uuid))
    assert driver.counts() == {
        ("job", "q", state): 5 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }
    assert set(driver.aggregates.snapshot()) == {LabelSet("job", "q")}


def test_an_excluded_task_is_tracked_but_not_shown():
    driver = ClusterDriver(show=shown_as(None, re.compile("noise"), []), labels=("queue_name", "worker"))
    driver.apply(sent(name="noise"), received(name="noise"), started())
    driver.apply(failed("u2", exception="NotRegistered('noise')"), received("u3", name="noise"))
    driver.wait(3)
    assert driver.shown().aggregates == {}
    assert driver.shown().tasks == []
    assert driver.cluster.fallbacks.total() == 0
    assert len(driver.cluster.tasks) == 2
    driver.apply(succeeded())
    assert set(driver.aggregates.snapshot()) == {EXCLUDED}
    assert len(driver.cluster.tasks) == 1
    assert len(driver.cluster.label_sets) == 0, "it does not count towards the limit"


def test_a_task_without_a_name_is_unknown_whatever_is_included():
    driver = ClusterDriver(show=shown_as(re.compile("shop.*"), None, []))
    driver.apply(succeeded())
    driver.wait(3)
    assert driver.counts() == {("unknown", "unknown", "SUCCESS"): 1}


def test_registered_tasks_are_added_with_their_label_value():
    driver = ClusterDriver(show=shown_as(None, re.compile("noise"), [rule("job-.*", "job")]))
    info = WorkerInfo(queues=("q",), registered=("job-a", "job-b", "noise"))
    driver.cluster.record_inspection({"w@h": info}, driver.timestamp())
    assert set(driver.aggregates.snapshot()) == {LabelSet("job", "q")}


# -- --series-ttl --------------------------------------------------------------------------------------


def life(uuid: str, at: float = 0.0, **names: str) -> list[dict]:
    return [
        sent(uuid, at, **names),
        received(uuid, at + 1),
        started(uuid, at + 2),
        failed(uuid, at + 3),
    ]


def test_invariant_5_an_idle_series_is_added_to_other_and_no_sum_falls():
    driver = ClusterDriver(Limits(series_ttl=200), labels=("queue_name", "worker"))
    driver.apply(*life("u1", name="once"), *life("u2", name="often"))
    driver.wait(150)
    driver.apply(*life("u3", 150, name="often"))
    driver.wait(100)
    assert {label_set.task_name for label_set in driver.aggregates.snapshot()} == {"often", "other"}
    assert driver.by_state("other") == {"PENDING": 1, "RECEIVED": 1, "STARTED": 1, "FAILURE": 1}
    assert driver.by_state("often") == {"PENDING": 2, "RECEIVED": 2, "STARTED": 2, "FAILURE": 2}
    other = driver.aggregate("other", "other", "other")
    assert other.exceptions == {"ValueError": 1}
    assert other.runtime[State.FAILURE].total == 1.0
    assert driver.aggregate("other", "other", "").queue_wait is None
    assert len(driver.cluster.label_sets) == len(driver.aggregates.snapshot())


def test_a_series_with_an_open_task_is_not_idle():
    driver = ClusterDriver(Limits(series_ttl=200))
    driver.apply(sent(), received(), started())
    driver.wait(1000)
    assert set(driver.aggregates.snapshot()) == {LabelSet("add", "q")}


def test_the_series_of_a_registered_task_is_not_removed():
    driver = ClusterDriver(Limits(series_ttl=200))
    info = WorkerInfo(queues=("q",), registered=("add",))
    driver.cluster.record_inspection({"w@h": info}, driver.timestamp())
    driver.apply(*life("u1"), *life("u2", name="mul"), heartbeat())
    driver.wait(300)
    assert {label_set.task_name for label_set in driver.aggregates.snapshot()} == {"add", "other"}


def test_a_removed_series_starts_again():
    driver = ClusterDriver(Limits(series_ttl=200))
    driver.apply(*life("u1"))
    driver.wait(300)
    driver.apply(*life("u1", at=300))
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 1, "STARTED": 1, "FAILURE": 1}
    assert driver.gauges() == {}
    driver.wait(300)
    assert driver.by_state("other")["FAILURE"] == 2
    assert driver.by_state() == {}


def test_a_wait_that_is_known_late_is_observed_at_its_worker():
    driver = ClusterDriver(labels=("queue_name", "worker"))
    driver.apply(received(at=1), started(at=2))
    driver.wait(3)
    driver.apply(sent(at=0), task_event("succeeded", at=3, runtime=1.0))
    assert driver.aggregate(worker="w@h").queue_wait.total == 2.0


def test_each_overflow_is_counted_and_its_name_is_not_cached():
    driver = ClusterDriver(Limits(max_series=2 * len(State)))
    for number in range(100):
        driver.apply(sent(f"u{number}", name=f"task{number % 50}"))
    label_sets = driver.cluster.label_sets
    assert label_sets.overflowed >= 2 * (50 - 2)
    assert len(label_sets._of_tasks) <= 2


# -- queues ----------------------------------------------------------------------------------------------


def customers(**options) -> ClusterDriver:
    return ClusterDriver(
        show_queue=shown_as(None, re.compile("secret"), [rule("customer-[0-9]+", "customer-*")]), **options
    )


def in_queue(uuid: str, queue: str) -> list[dict]:
    return [sent(uuid, queue=queue), received(uuid), started(uuid), succeeded(uuid)]


def test_generated_queues_have_one_label_value():
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


def test_a_rule_is_applied_once_to_the_queue_of_a_retry_too():
    rules = [rule("a", "b"), rule("b", "c")]
    driver = ClusterDriver(show_queue=shown_as(re.compile("a|b"), None, rules))
    driver.apply(sent(queue="a"), received(), task_event("retried", at=1, exception="E()"))
    driver.apply(received(at=2, retries=1, name="add"), received("u2", at=2))
    driver.wait(3)
    assert {queue for _, queue, _ in driver.counts()} == {"b", "unknown"}


def test_restored_sums_follow_the_current_queue_rules():
    old = ClusterDriver()
    for number in range(2):
        old.apply(*in_queue(f"u{number}", f"customer-{number}"), *in_queue(f"s{number}", "secret"))
    old.apply(received("u9"))
    old.wait(3)
    driver = customers()
    driver.cluster.label_sets.queues_renamed = True
    state.restore(saved_cluster(old), driver.cluster, driver.timestamp())
    assert driver.counts()["add", "customer-*", "SUCCESS"] == 2
    assert driver.counts()["add", "other", "SUCCESS"] == 2
    assert driver.counts()["add", "unknown", "RECEIVED"] == 1
    assert set(driver.cluster.queues.names()) == {"customer-0", "customer-1"}


def test_registered_tasks_are_added_with_the_label_value_of_their_queue():
    driver = customers()
    driver.cluster.record_inspection(
        {"w@h": WorkerInfo(queues=("customer-1",), registered=("add",))}, driver.timestamp()
    )
    assert LabelSet("add", "customer-*") in driver.aggregates.snapshot()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a" * MAX_VALUE_BYTES, "a" * MAX_VALUE_BYTES),
        ("é" * 127, "é" * 127),
        ("é" * 128, "é" * 126 + "…"),
        ("\U0001f600" * 255, "\U0001f600" * 63 + "…"),
        ("\ud800" * 300, "?" * 252 + "…"),
    ],
    ids=["", "two-byte characters", "one too many", "four-byte characters", "lone surrogates"],
)
def test_a_name_is_clipped_by_its_bytes(name, shown):
    assert clipped(name) == shown
    assert len(shown.encode()) <= MAX_VALUE_BYTES


def test_no_character_is_cut_in_two():
    longest = "a" + "é" * (MAX_VALUE_BYTES // 2)
    assert clipped(longest) == longest
    assert clipped("a" + "é" * MAX_VALUE_BYTES) == "a" + "é" * ((MAX_VALUE_BYTES - 4) // 2) + "…"


def test_tasks_with_long_names_are_counted_under_clipped_names():
    driver = ClusterDriver()
    long = "\U0001f600" * 255
    driver.apply(sent(name=long, queue=long), received(name=long), started(at=1), succeeded(at=2))
    assert driver.counts() == {
        (clipped(long), clipped(long), state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }


def test_label_sets_beyond_the_limit_of_bytes_overflow():
    """Label sets of usual length are limited by their number only."""
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


def test_a_worker_with_too_long_a_name_is_rejected_and_counted():
    driver = ClusterDriver()
    driver.apply(heartbeat("\U0001f600" * 100), heartbeat())
    assert driver.cluster.workers.keys() == {"w@h"}
    assert driver.cluster.limit_rejections["worker"] == 1
