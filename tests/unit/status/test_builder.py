"""The status of the page and the API: from a snapshot, and from the growth since earlier ones."""

from __future__ import annotations

import msgspec
import pytest

from celery_exporter.core.snapshot import OutageView, QueueStats
from celery_exporter.core.types import State
from celery_exporter.status.recent import SHORT_STEP_SECONDS, Recent
from celery_exporter.status.thresholds import LONG_WINDOW
from unit.core.cluster_driver import T0, ClusterDriver, failed, heartbeat, received, sent

from .scenario import status, task_events


def test_rates_and_quantiles_cover_the_last_minutes():
    driver, recent = ClusterDriver(), Recent()
    recent.add(driver.shown(), driver.now)
    for number in range(30):
        driver.apply(*task_events(number, number))
    driver.now += 60
    (task,) = status(driver, recent).tasks
    assert task.rates["SUCCESS"] == task.rates["PENDING"] == pytest.approx(0.5)
    assert task.failure_share == 0
    assert task.runtime_p50 == pytest.approx(0.1 + 0.9 / 2)
    assert task.wait_p95 == pytest.approx(0.1 + 0.9 * 0.95)


def test_without_task_sent_events_the_rate_of_sent_tasks_is_unknown():
    driver, recent = ClusterDriver(), Recent()
    recent.add(driver.shown(), driver.now)
    _, *events = task_events(1, 0)
    driver.apply(*events)
    driver.wait(60)
    (task,) = status(driver, recent).tasks
    assert task.rates == dict.fromkeys((state.name for state in State), 0) | {
        "PENDING": None,
        **dict.fromkeys(("RECEIVED", "STARTED", "SUCCESS"), pytest.approx(1 / 60)),
    }
    driver.apply(*task_events(2, 10))
    (task,) = status(driver, recent).tasks
    assert task.rates["PENDING"] == pytest.approx(1 / 60), "as many as clients have published"


@pytest.mark.parametrize(
    "around", [{"broker_up": False}, {"blocked": "low on memory"}], ids=["broker down", "publishers blocked"]
)
def test_while_no_event_can_be_received_nothing_is_known_of_the_last_minutes(around):
    """At once, since a mean over minutes of which some are unknown is too low."""
    driver, recent = ClusterDriver(), Recent()
    recent.add(driver.shown(), driver.now)
    driver.apply(*task_events(1, 0), sent("open", at=5))
    driver.now += 60
    outage = status(driver, recent, **around)
    (task,) = outage.tasks
    assert set(task.rates.values()) == {None}
    measured = (task.failure_share, task.runtime_p50, task.runtime_p95, task.wait_p50, task.wait_p95)
    assert set(measured) == {None}
    assert (task.open, outage.broker.events_per_second) == ({"PENDING": 1}, None)
    recovered = status(driver, recent)
    assert recovered.tasks[0].rates["SUCCESS"] == pytest.approx(1 / 60)
    assert recovered.broker.events_per_second == pytest.approx(5 / 60)


def test_the_status_of_a_broker_that_is_down_says_why_and_since_when():
    driver = ClusterDriver()
    assert (status(driver, Recent()).broker.down_since, status(driver, Recent()).broker.error) == (None, None)
    for error, shown in (("refused\x1b[2J" + "x" * 999, "refused?[2J" + "x" * 189), ("", None)):
        broker = status(driver, Recent(), broker_up=False, outage=OutageView(T0 + 7, error)).broker
        assert (broker.up, broker.down_since, broker.error) == (False, T0 + 7, shown)


def test_open_tasks_are_counted_by_state_and_have_the_oldest_time():
    driver, recent = ClusterDriver(), Recent()
    driver.apply(sent("a", at=5), sent("b", at=3), received("b", at=4), sent("c", at=6, queue="other"))
    (task,) = status(driver, recent).tasks
    assert task.open == {"PENDING": 2, "RECEIVED": 1}
    assert task.oldest == pytest.approx(sent("b", at=4)["timestamp"])


def test_failures_have_class_task_and_worker_only():
    driver = ClusterDriver()
    driver.apply(
        *task_events(1, 0, end=failed), *task_events(2, 10, end=failed, exception="KeyError('secret')")
    )
    newest, oldest = status(driver, Recent()).failures
    assert (newest.uuid, newest.task, newest.worker, newest.exception) == ("u2", "add", "w@h", "KeyError")
    assert newest.at > oldest.at
    assert b"secret" not in msgspec.json.encode(status(driver, Recent()))


def test_lengths_of_queues_cover_the_long_window():
    driver, recent = ClusterDriver(), Recent()
    for number in range(int(2 * LONG_WINDOW / SHORT_STEP_SECONDS)):
        recent.add(driver.shown(queue_stats={"q": QueueStats(number)}), driver.now)
        recent.add(
            driver.shown(queue_stats={"q": QueueStats(-1)}), driver.now + SHORT_STEP_SECONDS / 2
        )  # too soon
        driver.now += SHORT_STEP_SECONDS
    (queue,) = status(driver, recent, queue_stats={"q": QueueStats(7)}).queues
    assert queue.length == 7
    newest = int(2 * LONG_WINDOW / SHORT_STEP_SECONDS) - 1
    stored = range(newest - int(LONG_WINDOW / SHORT_STEP_SECONDS) + 2, newest + 1)
    assert [length for _, length in queue.lengths] == [*stored, 7]


def test_a_queue_of_unknown_length_has_none():
    driver, recent = ClusterDriver(), Recent()
    driver.apply(sent())
    recent.add(driver.shown(), driver.now)
    (queue,) = status(driver, recent).queues
    assert (queue.length, [length for _, length in queue.lengths]) == (None, [None, None])


def test_workers_are_sorted_by_name():
    driver = ClusterDriver()
    driver.apply(
        heartbeat(hostname="b@h", active=3, processed=7, loadavg=[1.5, 1, 1]), heartbeat(hostname="a@h")
    )
    a, b = status(driver, Recent()).workers
    assert (a.name, b.name) == ("a@h", "b@h")
    assert (b.up, b.active, b.load) == (True, 3, 1.5)


# -- quantiles -------------------------------------------------------------------------------------------
