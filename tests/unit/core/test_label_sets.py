"""The limit of label sets, and the labels in use.

Numbers of invariants are those of docs/explanation/architecture.md.
"""

from __future__ import annotations

import pytest

from celery_exporter.core.limits import Limits
from celery_exporter.core.types import LabelSet
from celery_exporter.core.workers import WorkerInfo

from .cluster_driver import (
    ClusterDriver,
    received,
    sent,
)
from .lives import LIFE


def test_registered_tasks_do_not_overflow():
    driver = ClusterDriver(Limits(max_series=16))
    info = WorkerInfo(queues=("q",), registered=tuple(f"task{number}" for number in range(5)))
    for _ in range(3):
        driver.cluster.record_inspection({"w@h": info}, driver.timestamp())
    assert len(driver.aggregates.snapshot()) == 2
    assert driver.cluster.label_sets.overflowed == 0


def test_invariant_9_without_the_queue_label_sums_have_no_queue():
    driver = ClusterDriver(labels=())
    driver.apply(*LIFE)
    assert set(driver.counts()) == {
        ("add", "", state) for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }
    assert driver.cluster.fallbacks["queue_name"] == 0


def test_task_names_beyond_the_limit_are_counted_as_other_and_existing_series_stay():
    driver = ClusterDriver(Limits(max_series=80))
    driver.apply(sent("existing"))
    for index in range(50):
        driver.apply(sent(f"u{index}", name=f"task{index}"), received(f"u{index}", name=f"task{index}"))
    driver.apply(received("existing"))
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 1}
    assert driver.by_state("other") == {"PENDING": 41, "RECEIVED": 41}
    assert len(driver.aggregates.snapshot()) == 11
    assert driver.cluster.label_sets.overflowed == 41
    assert driver.gauges() == {"RECEIVED": 51}


@pytest.mark.parametrize("labels", [(), ("queue_name",), ("worker",), ("queue_name", "worker")], ids=str)
def test_other_has_values_for_exactly_the_labels_in_use(labels):
    driver = ClusterDriver(Limits(max_series=8), labels)
    driver.apply(sent("u1"), sent("u2", name="mul"), received("u2", name="mul"))
    queue = "other" if "queue_name" in labels else ""
    worker = "other" if "worker" in labels else ""
    assert {label_set for label_set in driver.aggregates.snapshot() if label_set.task_name == "other"} == {
        LabelSet("other", queue, ""),
        LabelSet("other", queue, worker),
    }
