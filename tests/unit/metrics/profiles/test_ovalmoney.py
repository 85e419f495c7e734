"""Who leaves OvalMoney's exporter for ours: what its source does (celery_exporter/monitor.py, src/lib.rs).

Its extension is written in Rust for an interface that today's Python does not have: nothing is recorded.
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
    """Return the samples that are shown after these events."""
    ledger = Aggregates(SELECTION.runtime_bounds, SELECTION.wait_bounds, latency=SELECTION.latency)
    driver = ClusterDriver(labels=SELECTION.labels, aggregates=ledger)
    driver.apply(*events)
    driver.wait(3)
    lines = Exposition(SELECTION.rows).render(driver.shown()).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {series: float(value) for series, value in pairs}


def latency(shown: dict[str, float], queue: str) -> tuple[float, float]:
    """Return how many were observed, and their sum in seconds."""
    labels = f'{{{ADD},queue="{queue}"}}'
    return tuple(shown[f"celery_tasks_latency_seconds_{part}{labels}"] for part in ("count", "sum"))


WORK = (received(at=4), started(at=6))


def test_latency_is_from_sent_to_started_where_sendings_are_known():
    assert latency(page(sent(at=1), *WORK), "q") == (1.0, 5.0)


def test_latency_is_from_received_to_started_where_they_are_not():
    assert latency(page(*WORK), "undefined") == (1.0, 2.0)


def test_latencies_of_both_kinds_add_up_under_one_label_set():
    shown = page(sent(at=1), *WORK, sent("u2", at=1), received("u2", at=2), started("u2", at=9))
    assert latency(shown, "q") == (2.0, 13.0)


def test_a_retry_waits_from_its_own_sending():
    again = (sent(at=7, retries=1), retried(at=7), received(at=8, retries=1), started(at=10))
    assert latency(page(sent(at=1), *WORK, *again), "q") == (2.0, 8.0)


@pytest.mark.parametrize("end", [succeeded, failed])
def test_a_queue_that_is_not_known_is_undefined(end):
    shown = page(heartbeat(), *WORK, end(at=7))
    assert not [series for series in shown if 'queue="unknown"' in series]
    state = "SUCCESS" if end is succeeded else "FAILURE"
    assert shown[f'celery_tasks_total{{{ADD},queue="undefined",state="{state}"}}'] == 1.0
