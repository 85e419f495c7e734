"""The check of expected tasks says which are overdue, and since when."""

from __future__ import annotations

from celery_exporter.core.expected import ExpectedTask
from celery_exporter.core.schedules import Every
from celery_exporter.status.expected_checks import expected_tasks
from celery_exporter.status.finding import Finding
from celery_exporter.status.recent import Recent
from unit.core.cluster_driver import ClusterDriver, sent

TASKS = [ExpectedTask("add", Every(3_600.0)), ExpectedTask("mul", Every(60.0), grace=30.0)]


def finding(*expected: ExpectedTask, seconds: int, **exporter: object) -> Finding | None:
    driver = ClusterDriver(expected=expected)
    for second in range(seconds):
        driver.now = 100 + second
        driver.apply(*[sent("u1", at=driver.now, name="mul")] * (second == 130))
        driver.cluster.watch_expected(driver.timestamp())
    snapshot = driver.shown(**exporter)
    return expected_tasks(snapshot, Recent().growth(snapshot, 0.0))


def test_nothing_is_expected():
    assert finding(seconds=10) is None


def test_none_is_overdue():
    ok = finding(*TASKS, seconds=1)
    assert ok is not None
    assert (ok.severity, ok.message) == ("ok", "2 expected tasks, none overdue; the next is due in 60 s")


def test_what_is_overdue_is_named():
    late = finding(*TASKS, seconds=100)
    assert late is not None
    assert (late.severity, late.alert) == ("warning", "CeleryTaskOverdue")
    assert late.message == "expected tasks are overdue: mul (not sent, due 39 s ago)"
    late = finding(*TASKS, seconds=141)
    assert late is not None
    assert late.message == "expected tasks are overdue: mul (no success, due 80 s ago)"


def test_a_beat_that_is_up_lacks_the_task_in_its_schedule():
    driver = ClusterDriver(expected=TASKS)
    driver.cluster.beats.record_replies(["celerybeat@a"], driver.timestamp())
    for second in range(100):
        driver.now = 100 + second
        driver.cluster.watch_expected(driver.timestamp())
    snapshot = driver.shown()
    late = expected_tasks(snapshot, Recent().growth(snapshot, 0.0))
    assert late is not None
    assert late.message.endswith("mul (not sent, due 39 s ago); beat celerybeat@a is up")


def test_one_of_several_shards_does_not_know():
    assert finding(*TASKS, seconds=100, shards=2) is None
