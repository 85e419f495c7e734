"""The log lines of findings: one when a problem has lasted, and one when it is resolved."""

from __future__ import annotations

import logging

from celery_exporter.monitor.status_history import StatusHistory
from celery_exporter.status.finding import Finding
from celery_exporter.status.notifier import HOLD_SECONDS
from unit.core.cluster_driver import ClusterDriver, sent

PROBLEM = Finding("clock-skew", "warning", "the clock of w@h is 5 s ahead", "synchronize it")
RESOLVED = Finding("clock-skew", "ok", "clocks agree")


def test_a_problem_is_logged_with_its_remedy_and_once_more_when_it_is_resolved(monkeypatch, caplog):
    history, snapshot = StatusHistory(), ClusterDriver().shown()
    with caplog.at_level(logging.INFO, "celery_exporter.status.checks"):
        for now, finding in ((0, PROBLEM), (HOLD_SECONDS, PROBLEM), (HOLD_SECONDS + 1, RESOLVED)):
            monkeypatch.setattr(
                "celery_exporter.monitor.status_history.run_checks", lambda *_, result=finding: [result]
            )
            history.update(snapshot, now)
    assert caplog.record_tuples == [
        ("celery_exporter.status.checks", logging.WARNING, "the clock of w@h is 5 s ahead: synchronize it"),
        ("celery_exporter.status.checks", logging.INFO, "resolved: clocks agree"),
    ]


def test_growth_is_that_since_the_first_snapshot():
    driver, history = ClusterDriver(), StatusHistory()
    history.update(driver.shown(), 0.0)
    driver.apply(sent())
    growth = history.growth(driver.shown(), 10.0)
    assert (growth.seconds, growth.events) == (10.0, 1)
