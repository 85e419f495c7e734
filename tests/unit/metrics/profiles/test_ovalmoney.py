"""The ovalmoney profile: the same values as OvalMoney/celery-exporter.

The expected values follow its source (celery_exporter/monitor.py, src/lib.rs). There are no recordings,
because its Rust extension does not run on a current Python.
"""

from __future__ import annotations

import pytest

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select
from unit.core.cluster_driver import (
    ClusterDriver,
    failed,
    heartbeat,
    received,
    retried,
    sent,
    started,
    succeeded,
)

SELECTION = select(("ovalmoney",), MetricOptions())
ADD = 'name="add",namespace="celery"'


def page(*events: dict) -> dict[str, float]:
    """Return the exposed samples after these events."""
    aggregates = Aggregates(SELECTION.runtime_bounds, SELECTION.wait_bounds, latency=SELECTION.latency)
    driver = ClusterDriver(labels=SELECTION.labels, aggregates=aggregates)
    driver.apply(*events)
    driver.wait(3)
    lines = Exposition(SELECTION.rows).render(driver.shown()).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {series: float(value) for series, value in pairs}


def latency(shown: dict[str, float], queue: str) -> tuple[float, float]:
    """Return the count of a queue's latencies, and their sum in seconds."""
    labels = f'{{{ADD},queue="{queue}"}}'
    return tuple(shown[f"celery_tasks_latency_seconds_{part}{labels}"] for part in ("count", "sum"))


WORK = (received(at=4), started(at=6))


def test_latency_is_from_sent_to_started_with_task_sent_events():
    assert latency(page(sent(at=1), *WORK), "q") == (1.0, 5.0)


def test_latency_is_from_received_to_started_without_task_sent_events():
    assert latency(page(*WORK), "undefined") == (1.0, 2.0)


def test_latencies_of_one_label_set_add_up():
    shown = page(sent(at=1), *WORK, sent("u2", at=1), received("u2", at=2), started("u2", at=9))
    assert latency(shown, "q") == (2.0, 13.0)


def test_latency_of_a_retry_starts_when_the_retry_is_sent():
    again = (sent(at=7, retries=1), retried(at=7), received(at=8, retries=1), started(at=10))
    assert latency(page(sent(at=1), *WORK, *again), "q") == (2.0, 8.0)


@pytest.mark.parametrize("end", [succeeded, failed])
def test_unknown_queue_is_undefined(end):
    shown = page(heartbeat(), *WORK, end(at=7))
    assert not [series for series in shown if 'queue="unknown"' in series]
    state = "SUCCESS" if end is succeeded else "FAILURE"
    assert shown[f'celery_tasks_total{{{ADD},queue="undefined",state="{state}"}}'] == 1.0
