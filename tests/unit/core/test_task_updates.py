"""What an event changes: states, waits, runtimes and counts.

Numbers of invariants are those of docs/explanation/architecture.md.
"""

from __future__ import annotations

import pytest

from .cluster_driver import (
    ClusterDriver,
    failed,
    received,
    retried,
    sent,
    started,
    succeeded,
    task_event,
)
from .lives import LIFE


def test_invariant_3_a_late_event_of_a_finished_task_is_counted_and_does_not_reopen_it():
    driver = ClusterDriver()
    driver.apply(*LIFE)
    assert len(driver.cluster.tasks) == 0
    driver.apply(task_event("received", host="other@h", name="add"))
    driver.wait(2.5)
    assert driver.by_state()["RECEIVED"] == 2
    assert driver.gauges() == {}


def test_invariant_7_waits_count_from_the_eta_and_never_below_zero():
    driver = ClusterDriver()
    eta = "2023-11-14T22:13:30+00:00"  # T0 + 10 s
    driver.apply(sent("a", eta=eta), received("a", at=1, eta=eta), started("a", at=12))
    assert (driver.aggregate().queue_wait.total, driver.aggregate().prefetch_wait.total) == (2.0, 2.0)
    driver.apply(sent("b", at=5, name="skewed"), received("b", at=1, name="skewed"), started("b", at=2))
    assert driver.aggregate("skewed").queue_wait.total == 0.0
    assert driver.aggregates.negative_waits == 1


@pytest.mark.parametrize("eta", ["2023-11-14T22:13:30", "2023-11-14T22:13:30Z", "2023-11-15T00:13:30+02:00"])
def test_invariant_7_an_eta_may_have_any_time_zone(eta):
    driver = ClusterDriver()
    driver.apply(sent(eta=eta), received(at=1), started(at=12))
    assert driver.aggregate().queue_wait.total == 2.0


@pytest.mark.parametrize("eta", ["tomorrow", "", "9999-99-99", "0001-01-01T00:00:00+14:00"])
def test_invariant_7_an_invalid_eta_is_ignored(eta):
    driver = ClusterDriver()
    driver.apply(sent(eta=eta), received(at=1), started(at=2))
    assert driver.aggregate().queue_wait.total == 2.0


def test_invariant_7_a_redelivered_task_waits_from_its_redelivery():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), task_event("received", at=50, host="b@h", name="add"))
    driver.apply(task_event("started", at=53, host="b@h"), task_event("succeeded", at=54, host="b@h"))
    driver.wait(2.5)
    assert driver.aggregate().redeliveries == 1
    assert driver.aggregate().queue_wait.total == pytest.approx(0.2 + 3)
    assert driver.gauges() == {}


@pytest.mark.parametrize(
    ("event", "counted", "gauges"),
    [
        (failed(), "FAILURE", {}),
        (retried(), "RETRY", {"RETRY": 1}),
        (task_event("revoked", terminated=True, signum=15, expired=False), "REVOKED", {}),
        (task_event("rejected", requeue=False), "REJECTED", {}),
        (task_event("rejected", requeue=True), "REJECTED", {"PENDING": 1}),
        (task_event("cancelled"), "RETRY", {"RETRY": 1}),
    ],
)
def test_events_that_may_follow_a_start(event, counted, gauges):
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), event)
    assert driver.by_state()[counted] == 1
    assert driver.gauges() == gauges


def test_an_expired_task_is_revoked_without_being_received_and_keeps_its_name():
    driver = ClusterDriver()
    driver.apply(sent(), task_event("revoked", terminated=False, signum=None, expired=True))
    assert driver.counts() == {("add", "q", "PENDING"): 1, ("add", "q", "REVOKED"): 1}
    assert driver.gauges() == {}


def test_a_runtime_is_that_of_the_event_or_the_time_since_the_start():
    driver = ClusterDriver()
    driver.apply(sent("a"), received("a"), started("a", at=1), succeeded("a", at=9, runtime=0.5))
    driver.apply(sent("b"), received("b"), started("b", at=1), failed("b", at=3))
    driver.apply(sent("c"), received("c"), started("c", at=1), failed("c", at=3, host="other@h"))
    aggregate = driver.aggregate()
    assert {state.name: histogram.total for state, histogram in aggregate.runtime.items()} == {
        "SUCCESS": 0.5,
        "FAILURE": 2.0,
    }
    assert sum(sum(histogram.counts) for histogram in aggregate.runtime.values()) == 2
    assert aggregate.exceptions == {"ValueError": 2}


def test_a_timestamp_in_the_future_is_limited_to_now():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), succeeded(at=1e9))
    assert max(driver.aggregate().last.values()) == driver.timestamp().wall


def test_invariant_1_an_attempt_that_is_received_twice_is_redelivered_after_other_receipts_too():
    driver = ClusterDriver()
    driver.apply(sent(), sent(at=1, retries=1), received(at=2, retries=1, host="b@h"))
    driver.apply(received(at=1, host="a@h"))
    assert driver.aggregate().redeliveries == 0
    driver.apply(received(at=3, host="c@h"))
    driver.wait(2.5)
    assert driver.aggregate().redeliveries == 1
    driver.apply(received(at=4, retries=1, host="a@h"))
    driver.wait(2.5)
    assert driver.aggregate().redeliveries == 2


def test_an_exporter_that_started_late_counts_no_late_receipt_as_a_redelivery():
    driver = ClusterDriver()
    driver.apply(received(at=2, retries=40))
    driver.wait(2.5)
    for attempt in (38, 32, 41, 39):
        driver.apply(received(at=3, retries=attempt))
    assert driver.aggregate(queue="unknown").redeliveries == 0
    driver.apply(received(at=3, retries=31))
    assert driver.aggregate(queue="unknown").redeliveries == 1, "too old for the skipped attempts"
