"""Which tasks are shown, and under which names."""

from __future__ import annotations

import re

import pytest

from celery_exporter.core.cluster import Limits
from celery_exporter.core.label_sets import MEAN_BYTES
from celery_exporter.core.task_names import LONGEST, clipped, shown_as
from celery_exporter.core.types import EXCLUDED, LabelSet, State
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.persistence import state as memory
from unit.persistence.kept import remembered

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
    story = ClusterDriver(show=shown_as(None, None, [rule("job-[0-9]+", "job")]))
    for number in range(5):
        uuid, name = f"u{number}", f"job-{number}"
        story.tell(sent(uuid, name=name), received(uuid, name=name), started(uuid), succeeded(uuid))
    assert story.counts() == {
        ("job", "q", state): 5 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }
    assert set(story.ledger.snapshot()) == {LabelSet("job", "q")}


def test_a_task_that_is_not_shown_is_followed_but_in_no_sum_and_no_gauge():
    story = ClusterDriver(show=shown_as(None, re.compile("noise"), []), labels=("queue_name", "worker"))
    story.tell(sent(name="noise"), received(name="noise"), started())
    story.tell(failed("u2", exception="NotRegistered('noise')"), received("u3", name="noise"))
    story.wait(3)
    assert story.shown().cells == {}
    assert story.shown().tasks == []
    assert story.cluster.fallbacks.total() == 0
    assert len(story.cluster.tasks) == 2
    story.tell(succeeded())
    assert set(story.ledger.snapshot()) == {EXCLUDED}
    assert len(story.cluster.tasks) == 1
    assert len(story.cluster.keys) == 0, "it takes no room from what is shown"


def test_a_task_without_a_name_is_shown_as_unknown_whatever_is_included():
    story = ClusterDriver(show=shown_as(re.compile("shop.*"), None, []))
    story.tell(succeeded())
    story.wait(3)
    assert story.counts() == {("unknown", "unknown", "SUCCESS"): 1}


def test_registered_tasks_are_foreseen_by_the_name_they_are_shown_as():
    story = ClusterDriver(show=shown_as(None, re.compile("noise"), [rule("job-.*", "job")]))
    profile = WorkerInfo(queues=("q",), registered=("job-a", "job-b", "noise"))
    story.cluster.learn({"w@h": profile}, story.moment())
    assert set(story.ledger.snapshot()) == {LabelSet("job", "q")}


# -- --series-ttl --------------------------------------------------------------------------------------


def life(uuid: str, at: float = 0.0, **names: str) -> list[dict]:
    return [
        sent(uuid, at, **names),
        received(uuid, at + 1),
        started(uuid, at + 2),
        failed(uuid, at + 3),
    ]


def test_invariant_5_an_idle_series_is_added_up_as_other_and_no_sum_falls():
    story = ClusterDriver(Limits(series_ttl=200), labels=("queue_name", "worker"))
    story.tell(*life("u1", name="once"), *life("u2", name="often"))
    story.wait(150)
    story.tell(*life("u3", 150, name="often"))
    story.wait(100)
    assert {key.task_name for key in story.ledger.snapshot()} == {"often", "other"}
    assert story.by_state("other") == {"PENDING": 1, "RECEIVED": 1, "STARTED": 1, "FAILURE": 1}
    assert story.by_state("often") == {"PENDING": 2, "RECEIVED": 2, "STARTED": 2, "FAILURE": 2}
    other = story.cell("other", "other", "other")
    assert other.exceptions == {"ValueError": 1}
    assert other.runtime[State.FAILURE].total == 1.0
    assert story.cell("other", "other", "").queue_wait is None
    assert len(story.cluster.keys) == len(story.ledger.snapshot())


def test_a_series_with_an_open_task_is_not_idle():
    story = ClusterDriver(Limits(series_ttl=200))
    story.tell(sent(), received(), started())
    story.wait(1000)
    assert set(story.ledger.snapshot()) == {LabelSet("add", "q")}


def test_a_series_of_a_registered_task_is_not_given_up():
    story = ClusterDriver(Limits(series_ttl=200))
    profile = WorkerInfo(queues=("q",), registered=("add",))
    story.cluster.learn({"w@h": profile}, story.moment())
    story.tell(*life("u1"), *life("u2", name="mul"), heartbeat())
    story.wait(300)
    assert {key.task_name for key in story.ledger.snapshot()} == {"add", "other"}


def test_a_series_that_was_given_up_begins_anew():
    story = ClusterDriver(Limits(series_ttl=200))
    story.tell(*life("u1"))
    story.wait(300)
    story.tell(*life("u1", at=300))
    assert story.by_state() == {"PENDING": 1, "RECEIVED": 1, "STARTED": 1, "FAILURE": 1}
    assert story.gauges() == {}
    story.wait(300)
    assert story.by_state("other")["FAILURE"] == 2
    assert story.by_state() == {}


def test_waits_of_tasks_that_overtook_their_task_sent_are_their_worker_s():
    story = ClusterDriver(labels=("queue_name", "worker"))
    story.tell(received(at=1), started(at=2))
    story.wait(3)
    story.tell(sent(at=0), task_event("succeeded", at=3, runtime=1.0))
    assert story.cell(worker="w@h").queue_wait.total == 2.0


def test_each_task_that_finds_no_room_is_counted_as_folded_and_names_are_not_hoarded():
    story = ClusterDriver(Limits(max_series=2 * len(State)))
    for number in range(100):
        story.tell(sent(f"u{number}", name=f"task{number % 50}"))
    keys = story.cluster.keys
    assert keys.folded >= 2 * (50 - 2)
    assert len(keys._found) <= 2


# -- queues ----------------------------------------------------------------------------------------------


def customers(**more) -> ClusterDriver:
    return ClusterDriver(
        show_queue=shown_as(None, re.compile("secret"), [rule("customer-[0-9]+", "customer-*")]), **more
    )


def in_queue(uuid: str, queue: str) -> list[dict]:
    return [sent(uuid, queue=queue), received(uuid), started(uuid), succeeded(uuid)]


def test_queues_made_at_run_time_are_one_label():
    story = customers()
    for number in range(5):
        story.tell(*in_queue(f"u{number}", f"customer-{number}"))
    assert {queue for _, queue, _ in story.counts()} == {"customer-*"}
    assert story.counts()["add", "customer-*", "SUCCESS"] == 5


def test_tasks_of_an_excluded_queue_are_counted_as_other_and_the_queue_is_not_measured():
    story = customers()
    story.tell(*in_queue("u1", "secret"), *in_queue("u2", "q"))
    assert story.counts()["add", "other", "SUCCESS"] == 1
    assert story.by_state()["SUCCESS"] == 2
    assert story.cluster.queues.names() == ["q"]
    assert [queue.name for queue in story.shown().queues] == ["q"]


def test_a_rule_is_applied_once_also_where_an_attempt_takes_its_queue_from_the_one_before():
    rules = [rule("a", "b"), rule("b", "c")]
    story = ClusterDriver(show_queue=shown_as(re.compile("a|b"), None, rules))
    story.tell(sent(queue="a"), received(), task_event("retried", at=1, exception="E()"))
    story.tell(received(at=2, retries=1, name="add"), received("u2", at=2))
    story.wait(3)
    assert {queue for _, queue, _ in story.counts()} == {"b", "unknown"}


def test_what_is_restored_is_called_by_the_queue_rules_of_today():
    old = ClusterDriver()
    for number in range(2):
        old.tell(*in_queue(f"u{number}", f"customer-{number}"), *in_queue(f"s{number}", "secret"))
    old.tell(received("u9"))
    old.wait(3)
    story = customers()
    story.cluster.keys.queues_renamed = True
    memory.restore(remembered(old), story.cluster, story.moment())
    assert story.counts()["add", "customer-*", "SUCCESS"] == 2
    assert story.counts()["add", "other", "SUCCESS"] == 2
    assert story.counts()["add", "unknown", "RECEIVED"] == 1
    assert set(story.cluster.queues.names()) == {"customer-0", "customer-1"}


def test_registered_tasks_are_foreseen_under_the_name_of_their_queue():
    story = customers()
    story.cluster.learn({"w@h": WorkerInfo(queues=("customer-1",), registered=("add",))}, story.moment())
    assert LabelSet("add", "customer-*") in story.ledger.snapshot()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a" * LONGEST, "a" * LONGEST),
        ("é" * 127, "é" * 127),
        ("é" * 128, "é" * 126 + "…"),
        ("\U0001f600" * 255, "\U0001f600" * 63 + "…"),
        ("\ud800" * 300, "?" * 252 + "…"),
    ],
    ids=["", "two bytes each", "one too many", "four bytes each", "half characters"],
)
def test_a_name_is_clipped_by_its_bytes(name, shown):
    assert clipped(name) == shown
    assert len(shown.encode()) <= LONGEST


def test_tasks_with_long_names_are_counted_under_what_is_left_of_them():
    story = ClusterDriver()
    long = "\U0001f600" * 255
    story.tell(sent(name=long, queue=long), received(name=long), started(at=1), succeeded(at=2))
    assert story.counts() == {
        (clipped(long), clipped(long), state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }


def test_label_sets_are_folded_when_their_bytes_are_too_many():
    """Of the usual length there are as many as were asked for."""
    limits = Limits(max_series=8 * 100)
    story, usual = ClusterDriver(limits), ClusterDriver(limits)
    for number in range(100):
        story.tell(sent(f"u{number}", name=f"{number:03}" + "n" * 245, queue="q" * 245))
        usual.tell(sent(f"u{number}", name=f"tasks.of_the_application.{number:03}"))
    named = {name for name, _, _ in story.counts()} - {"other"}
    assert len(named) == 100 * MEAN_BYTES // (248 + 245)
    assert story.counts()["other", "other", "PENDING"] == 100 - len(named)
    assert story.cluster.keys.folded == 100 - len(named)
    assert usual.cluster.keys.folded == 0


def test_a_worker_whose_name_is_too_long_is_refused_and_counted():
    story = ClusterDriver()
    story.tell(heartbeat("\U0001f600" * 100), heartbeat())
    assert story.cluster.workers.keys() == {"w@h"}
    assert story.cluster.refused["worker"] == 1
