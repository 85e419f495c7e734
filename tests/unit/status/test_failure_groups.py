"""Failures by exception and task."""

from __future__ import annotations

from celery_exporter.status.failure_groups import MAX_GROUPS, failure_groups
from unit.core.cluster_driver import T0, ClusterDriver, failed, received, sent


def fail(driver: ClusterDriver, number: int, task: str, exception: str, queue: str = "q") -> None:
    uuid = f"u{number}"
    driver.apply(
        sent(uuid, at=number, name=task, queue=queue),
        received(uuid, at=number, name=task),
        failed(uuid, at=number + 1, exception=f"{exception}('secret')"),
    )


def test_failures_are_grouped_with_the_newest_group_first():
    driver = ClusterDriver()
    for number, (task, exception, queue) in enumerate(
        [("a", "KeyError", "q"), ("b", "OSError", "q"), ("a", "KeyError", "r"), ("a", "OSError", "q")]
    ):
        fail(driver, number, task, exception, queue)
    groups = failure_groups(driver.shown())
    assert [(group.exception, group.task, group.total, group.recent) for group in groups] == [
        ("OSError", "a", 1, 1),
        ("KeyError", "a", 2, 2),
        ("OSError", "b", 1, 1),
    ]
    assert (groups[1].last, groups[1].worker, groups[1].uuid) == (T0 + 3, "w@h", "u2")


def test_a_group_without_a_recent_failure_has_only_its_total():
    driver = ClusterDriver()
    fail(driver, 0, "old", "KeyError")
    driver.aggregates.failures.clear()
    (group,) = failure_groups(driver.shown())
    assert (group.total, group.recent, group.last, group.worker, group.uuid) == (1, 0, None, "", "")


def test_without_failures_there_are_no_groups():
    driver = ClusterDriver()
    driver.apply(sent(), received())
    assert failure_groups(driver.shown()) == []


def test_the_number_of_groups_is_bounded_and_those_with_most_failures_stay():
    driver = ClusterDriver()
    for number in range(MAX_GROUPS + 5):
        fail(driver, number, f"t{number}", "KeyError")
    fail(driver, 1_000, "t0", "KeyError")
    driver.aggregates.failures.clear()
    groups = failure_groups(driver.shown())
    assert len(groups) == MAX_GROUPS
    assert (groups[0].task, groups[0].total) == ("t0", 2)
