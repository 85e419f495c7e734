"""The log lines of findings: one when a problem has lasted, and one when it is resolved."""

from __future__ import annotations

import logging

from celery_exporter.core.snapshot import JobView, Snapshot
from celery_exporter.monitor.status_history import StatusHistory
from celery_exporter.status.charts import ChartQuery
from celery_exporter.status.notifier import HOLD_SECONDS
from celery_exporter.status.problems import STATE_NOT_SAVED
from unit.core.cluster_driver import ClusterDriver, sent

LOGGER = "celery_exporter.status.checks"


def shown(*, is_saved: bool) -> Snapshot:
    """Return the snapshot of an exporter without a broker, after the state was saved or not."""
    return ClusterDriver().shown(broker_up=False, jobs=[JobView("state", is_saved, 0.1, None)])


def test_a_problem_is_logged_with_its_remedy_and_once_more_when_it_is_resolved(caplog):
    history = StatusHistory()
    with caplog.at_level(logging.INFO, LOGGER):
        for now, is_saved in ((0, False), (HOLD_SECONDS, False), (HOLD_SECONDS + 1, True)):
            history.update(shown(is_saved=is_saved), now)
    message = f"{STATE_NOT_SAVED.message}: {STATE_NOT_SAVED.remedy} (alert {STATE_NOT_SAVED.alert})"
    assert caplog.record_tuples == [
        (LOGGER, logging.WARNING, message),
        (LOGGER, logging.INFO, "resolved: the state is saved"),
    ]


def test_growth_is_that_since_the_first_snapshot():
    driver, history = ClusterDriver(), StatusHistory()
    history.update(driver.shown(), 0.0)
    driver.apply(sent())
    growth = history.growth(driver.shown(), 10.0)
    assert (growth.seconds, growth.events) == (10.0, 1)


def test_checks_run_less_often_than_samples_for_charts_are_taken(caplog):
    history = StatusHistory(check_seconds=HOLD_SECONDS + 1)
    with caplog.at_level(logging.INFO, LOGGER):
        for now in (0, 5, HOLD_SECONDS):
            history.update(shown(is_saved=False), now)
        assert caplog.record_tuples == []
        history.update(shown(is_saved=False), HOLD_SECONDS + 1)
    assert len(caplog.record_tuples) == 1
    (chart, *_) = history.charts(ChartQuery("queues"), HOLD_SECONDS + 1, 0.0).charts
    assert chart.name == "length"
