"""Ends that a worker reports twice are counted once, and similar ends of other executions are not dropped."""

from __future__ import annotations

from functools import partial

import pytest

from celery_exporter.core import duplicates
from celery_exporter.core.duplicates import RETENTION_SECONDS, ExecutionEnd, RecentEnds
from celery_exporter.core.types import State
from unit.persistence.test_state import restarted

from .cluster_driver import (
    ClusterDriver,
    by_name,
    driver_after,
    failed,
    received,
    rejected,
    retried,
    sent,
    started,
    succeeded,
    task_event,
)
from .lives import HERE, A, B, V

LIMIT = {"exception": "TimeLimitExceeded(3600)"}


@pytest.mark.parametrize(
    "end", [succeeded, failed, rejected, lambda at, **more: task_event("revoked", at=at, **more)]
)
def test_an_end_that_is_reported_twice_is_counted_once(end):
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), end(at=5, **A), end(at=5.03, **A))
    assert sum(driver.by_state().values()) == 4
    assert driver.cluster.repeated.total() == 1
    assert driver.gauges() == {}


def test_an_end_that_is_reported_twice_is_counted_once_if_two_workers_had_the_task():
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), received(at=9, **B), started(at=10, **B))
    driver.wait(2.5)
    driver.apply(failed(at=11, **A), failed(at=12, **B), failed(at=12.03, **B))
    assert driver.by_state()["FAILURE"] == 2
    assert driver.aggregate().exceptions == {"ValueError": 2}
    assert driver.gauges() == {}


def test_a_retry_that_is_reported_twice_is_counted_once_and_a_second_one_is_not():
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), retried(at=2, **A), retried(at=2.03, **A))
    assert (driver.by_state()["RETRY"], driver.cluster.repeated["task-retried"]) == (1, 1)
    driver.apply(
        sent(at=2, retries=1), received(at=2.1, retries=1, **A), started(at=2.2, **A), retried(at=2.3, **A)
    )
    assert (driver.by_state()["RETRY"], driver.cluster.repeated["task-retried"]) == (2, 1)


@pytest.mark.parametrize("apart", [0.0, 0.03, 0.9])
@pytest.mark.parametrize("other", [A, B], ids=["there", "elsewhere"])
@pytest.mark.parametrize(
    "end", [succeeded, failed, lambda at, **more: task_event("rejected", at=at, requeue=False, **more)]
)
def test_an_end_that_is_reported_twice_while_another_delivery_waits_to_be_started(end, other, apart):
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), received(at=9, **other))
    driver.wait(2.5)
    driver.apply(end(at=11, **A), end(at=11 + apart, **A))
    assert (driver.cluster.repeated.total(), driver.gauges()) == (1, {"RECEIVED": 1})
    driver.apply(started(at=12, **other), end(at=13, **other), end(at=13 + apart, **other))
    assert (driver.cluster.repeated.total(), driver.gauges()) == (2, {})


@pytest.mark.parametrize("apart", [0.0, 0.03, 0.9])
@pytest.mark.parametrize("other", [A, B], ids=["there", "elsewhere"])
def test_a_retry_that_is_reported_twice_while_the_next_attempt_is_received(other, apart):
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), sent(at=2, retries=1), retried(at=2, **A))
    driver.apply(received(at=2.01, retries=1, **other), retried(at=2 + apart, **A))
    assert (driver.by_state()["RETRY"], driver.gauges()) == (1, {"RECEIVED": 1})
    driver.apply(started(at=2.02, **other), retried(at=2.03, **other))
    assert (driver.by_state()["RETRY"], driver.gauges()) == (2, {"RETRY": 1})


@pytest.mark.parametrize("apart", [0.0, 0.03, 0.9])
def test_an_end_that_is_reported_twice_after_its_id_was_sent_again(apart):
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), failed(at=2, **A))
    driver.apply(sent(at=2.01, **HERE), failed(at=2 + apart, **A))
    assert (driver.by_state()["FAILURE"], driver.gauges()) == (1, {"PENDING": 1})
    driver.apply(received(at=3, **A), failed(at=2.95, **A))
    assert (driver.by_state()["FAILURE"], driver.gauges()) == (1, {"RECEIVED": 1})
    driver.apply(started(at=3.1, **A), failed(at=3.2, **A))
    assert (driver.by_state()["FAILURE"], driver.gauges()) == (2, {})


@pytest.mark.parametrize("after", [0.03, 5, 50])
@pytest.mark.parametrize("end", [succeeded, failed])
def test_a_finished_task_is_not_finished_again_by_the_same_worker(end, after):
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), end(at=2, **A), end(at=2 + after, **A))
    assert (sum(driver.by_state().values()), driver.cluster.repeated.total()) == (4, 1)


def test_a_repeated_end_is_detected_although_it_comes_late():
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), task_event("revoked", at=5, **A))
    driver.wait(2 * RETENTION_SECONDS)
    driver.apply(task_event("revoked", at=5.03, **A))
    assert (driver.by_state()["REVOKED"], driver.cluster.repeated["task-revoked"]) == (1, 1)


def test_two_ends_with_different_runtimes_are_of_two_executions():
    """The `task-started` of the second one was lost."""
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), received(at=9, **A))
    driver.wait(2.5)
    driver.apply(succeeded(at=11, runtime=10, **A), succeeded(at=11.03, runtime=0.02, **A))
    assert (driver.by_state()["SUCCESS"], driver.gauges()) == (2, {})


def test_a_time_limit_that_is_reported_twice_while_a_redelivery_waits_is_one_failure():
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), received(at=9, **A))
    driver.wait(2.5)
    driver.apply(failed(at=11, **LIMIT, **A), failed(at=11.03, **LIMIT, **A))
    assert (driver.by_state()["FAILURE"], driver.gauges()) == (1, {"RECEIVED": 1})


def test_two_deliveries_that_one_process_starts_and_ends_within_a_second_are_two():
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), received(at=9, **A))
    driver.wait(2.5)
    driver.apply(started(at=9.1, **A), failed(at=9.2, **A), failed(at=9.23, **A), failed(at=9.26, **A))
    assert (driver.by_state()["FAILURE"], driver.gauges()) == (2, {})


@pytest.mark.parametrize("other", ["add", "mul"])
@pytest.mark.parametrize("end", [failed, retried, partial(rejected, requeue=True)])
def test_an_id_that_is_sent_twice_and_runs_twice_at_once_ends_twice(end, other):
    driver = ClusterDriver()
    driver.apply(sent(), sent(at=0.05, name=other), received(at=0.1, **A), received(at=0.12, name=other, **A))
    driver.wait(2.5)
    driver.apply(started(at=0.2, **A), started(at=0.21, **A), end(at=1, **A), end(at=1.02, **A))
    assert (sum(driver.counts().values()), driver.cluster.repeated.total()) == (8, 0)


@pytest.mark.parametrize("second", [0.5, 3600])
@pytest.mark.parametrize("waits", [True, False])
def test_a_time_limit_that_is_reported_twice_while_a_redelivery_runs_is_one_failure(second, waits):
    """A runtime beyond the visibility timeout of Redis. The time limit may be beyond it, too."""
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), received(at=3600, **A))
    driver.wait(0.5 if waits else 2.5)
    ends = [failed(at=3600 + second, **LIMIT, **A), failed(at=3600.03 + second, **LIMIT, **A)]
    driver.apply(*ends, started(at=3600.6, **A)) if waits else driver.apply(started(at=3600.1, **A), *ends)
    driver.wait(2.5)
    driver.apply(succeeded(at=9000, **A))
    assert (driver.by_state()["FAILURE"], driver.by_state()["SUCCESS"], driver.gauges()) == (1, 1, {})


def test_two_runs_of_one_id_that_reach_their_time_limit_together_are_two_failures():
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), received(at=0.2, **A))
    driver.wait(2.5)
    driver.apply(started(at=1, **A), started(at=1.1, **A))
    driver.apply(*(failed(at=10 + at, **LIMIT, **A) for at in (0, 0.03, 0.1, 0.13)))
    assert (driver.by_state()["FAILURE"], driver.gauges()) == (2, {})


def test_deliveries_that_one_process_revokes_within_a_second_are_several():
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), received(at=1, **A))
    driver.wait(2.5)
    driver.apply(*(task_event("revoked", at=3 + n / 100, **A) for n in range(3)))
    assert (driver.by_state()["REVOKED"], driver.gauges()) == (2, {})


def test_the_end_of_a_finished_task_by_another_worker_is_counted():
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), failed(at=2, **A), failed(at=2.1, **B))
    driver.apply(failed(at=2.13, **B), failed(at=2.14, **A))
    assert driver.by_state()["FAILURE"] == 2


def test_a_repeated_end_is_detected_after_a_restart_of_the_exporter():
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(at=1, **A), failed(at=5, **A))
    driver = restarted(driver)
    driver.apply(failed(at=5.03, **A))
    assert driver.by_state()["FAILURE"] == 1


def test_an_end_that_is_reported_twice_is_counted_once_while_another_worker_has_the_task():
    """This happens after a visibility timeout, and a hard time limit of Celery 5.7."""
    driver = ClusterDriver()
    driver.apply(sent(), received(at=0.1, **A), started(at=0.2, **A))
    driver.wait(5)
    driver.apply(received(at=5.5, **B))
    driver.wait(3)
    driver.apply(failed(at=9, **A), failed(at=9.03, **A))
    assert (driver.by_state()["FAILURE"], driver.gauges()) == (1, {"RECEIVED": 1})
    driver.apply(started(at=10, **B), succeeded(at=11, **B))
    assert (driver.by_state()["SUCCESS"], driver.gauges()) == (1, {})


def test_a_retry_that_is_reported_twice_does_not_change_the_state_of_the_next_attempt():
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(**A), sent(at=0.3, retries=1, hostname="a@h"))
    driver.apply(retried(at=0.31, **A), received(at=0.4, retries=1, **B), retried(at=0.34, **A))
    assert driver.gauges() == {"RECEIVED": 1}


def test_a_repeated_end_of_a_successor_does_not_end_the_replaced_task():
    driver = driver_after(
        *(sent(), received(at=0.1), started(at=0.2), sent(at=0.3, name="mul", **HERE)),
        *(received(at=0.4, name="mul"), started(at=0.5), failed(at=1, **LIMIT), failed(at=1.03, **LIMIT)),
    )
    assert (by_name(driver)["mul", "FAILURE"], by_name(driver).get(("add", "FAILURE"), 0)) == (1, 0)
    assert driver.cluster.repeated["task-failed"] == 1


def test_a_repeated_end_of_an_id_that_another_worker_ended_before_is_detected():
    driver = driver_after(
        *(received(at=0.1), started(at=0.2), succeeded(at=0.3), received(at=1.7, name="mul", **V)),
        *(started(at=1.8, **V), failed(at=1.9, **V), failed(at=1.93, **V)),
    )
    assert by_name(driver)["mul", "FAILURE"] == 1


@pytest.mark.parametrize(
    ("kind", "fields"), [("revoked", {"expired": True}), ("failed", {"exception": "NotRegistered('x')"})]
)
def test_ends_of_an_id_without_a_receipt_are_of_several_executions(kind, fields):
    """A worker sends no receipt for a revoked or unregistered task (celery/worker/strategy.py)."""
    driver = driver_after(*(task_event(kind, at=5 * number, **fields) for number in range(3)))
    assert sum(driver.counts().values()) == 3
    assert driver.cluster.repeated[f"task-{kind}"] == 0


# -- recent ends -----------------------------------------------------------------------------------------


def end(uuid: str, listening: float, worker: str = "w@h") -> ExecutionEnd:
    return ExecutionEnd(uuid, worker, State.SUCCESS, listening, listening)


def test_the_newest_end_of_a_task_and_worker_replaces_the_one_before():
    ends = RecentEnds()
    for recent in (end("u1", 1), end("u2", 2), end("u1", 3), end("u1", 4, "v@h")):
        ends.add(recent)
    assert list(ends) == [end("u2", 2), end("u1", 3), end("u1", 4, "v@h")]
    assert ends.since(3) == [end("u1", 3), end("u1", 4, "v@h")]


def test_ends_expire():
    ends = RecentEnds()
    ends.add(end("u1", 0))
    ends.add(end("u2", 1))
    ends.expire(RETENTION_SECONDS + 0.5)
    assert list(ends) == [end("u2", 1)]
    ends.expire(RETENTION_SECONDS + 1.5)
    assert list(ends) == []


def test_the_number_of_ends_is_bounded(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_ENDS", 2)
    ends = RecentEnds()
    for number in range(4):
        ends.add(end(f"u{number}", number))
    assert [recent.uuid for recent in ends] == ["u2", "u3"]
