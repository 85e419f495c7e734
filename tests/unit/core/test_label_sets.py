"""The limit of label sets, and the labels in use.

Numbers of invariants are those of docs/explanation/architecture.md.
"""

from __future__ import annotations

import pytest

from celery_exporter.core.label_sets import MEAN_BYTES, LabelSets
from celery_exporter.core.limits import Limits
from celery_exporter.core.types import EXCLUDED, LabelSet
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


# -- without a cluster -------------------------------------------------------------------------------------

OVERFLOW = LabelSet("other", "other")


def long_name(number: int, length: int) -> str:
    return str(number).ljust(length, "n")


def test_label_sets_are_limited_by_the_bytes_of_their_values():
    label_sets = LabelSets(4)
    names = [long_name(number, MEAN_BYTES) for number in range(5)]
    admitted = [label_sets.admit(LabelSet(name)) for name in names]
    assert admitted == [*(LabelSet(name) for name in names[:4]), LabelSet("other")]


def test_the_bytes_of_removed_label_sets_are_free_again():
    label_sets = LabelSets(10)
    first, second = (LabelSet(long_name(number, 1450), "q") for number in range(2))
    for label_set in (first, second):
        assert label_sets.admit(label_set) is label_set
    assert label_sets.admit(LabelSet(long_name(2, 1450), "q")) == OVERFLOW
    label_sets.remove({first: OVERFLOW})
    third = LabelSet(long_name(3, 1450), "q")
    assert label_sets.admit(third) is third
    assert label_sets.admit(first) == OVERFLOW


def test_each_task_beyond_the_limit_is_counted():
    label_sets = LabelSets(1)
    label_sets.of_task("add", "q")
    assert [label_sets.of_task("mul", "q") for _ in range(3)] == [OVERFLOW] * 3
    assert label_sets.overflowed == 3


def test_a_label_set_is_one_object_however_often_it_is_made():
    label_sets = LabelSets(10, ("queue_name", "worker"))
    task = label_sets.of_task("add", "q")
    assert label_sets.of_task("add", "q") is task
    at_worker = label_sets.at_worker(task, "w@h")
    assert at_worker == LabelSet("add", "q", "w@h")
    assert label_sets.at_worker(task, "w@h") is at_worker
    assert label_sets.at_worker(task, "v@h") == LabelSet("add", "q", "v@h")
    assert len(label_sets) == 3


def test_a_worker_beyond_the_limit_is_counted_each_time():
    label_sets = LabelSets(1, ("queue_name", "worker"))
    task = label_sets.of_task("add", "q")
    for _ in range(2):
        assert label_sets.at_worker(task, "w@h") == LabelSet("other", "other", "other")
    assert label_sets.overflowed == 2


def test_an_excluded_name_has_no_label_set_in_any_queue():
    label_sets = LabelSets(10, show=lambda name: "" if name == "mul" else name)
    task = label_sets.of_task("add", "q")
    assert label_sets.of_name("mul", task) is EXCLUDED
    assert label_sets.of_name("sub", task) == LabelSet("sub", "q")


@pytest.mark.parametrize(
    ("saved", "restored"),
    [
        (LabelSet("add", "q"), LabelSet("add", "q")),
        (LabelSet("add", "q", "w@h"), LabelSet("add", "q")),
        (LabelSet("add"), LabelSet("add", "unknown")),
        (EXCLUDED, EXCLUDED),
    ],
)
def test_a_label_set_of_a_state_file_has_the_labels_in_use(saved, restored):
    assert LabelSets(10).restore(saved) == restored


@pytest.mark.parametrize(("queue", "restored"), [("q", "Q"), ("other", "other"), ("unknown", "unknown")])
def test_a_queue_of_a_state_file_is_renamed_if_the_rules_changed(queue, restored):
    label_sets = LabelSets(10, show_queue=str.upper)
    assert label_sets.restore(LabelSet("add", queue)).queue_name == queue
    label_sets.queues_renamed = True
    assert label_sets.restore(LabelSet("add", queue)).queue_name == restored
