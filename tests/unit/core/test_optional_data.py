"""Data that only some profiles show: prefetched tasks, sums by host, failures, fewer buckets."""

from __future__ import annotations

import pytest

from celery_exporter.core import cluster
from celery_exporter.core.aggregates import Failure
from celery_exporter.core.histogram import Exemplar, Histogram
from celery_exporter.core.limits import Limits
from celery_exporter.core.types import LabelSet

from .cluster_driver import T0, ClusterDriver, failed, heartbeat, received, sent, started, succeeded

A = LabelSet("add", "q")
BOTH = ("queue_name", "worker")


def life(uuid: str, host: str) -> list[dict]:
    at_host = {"host": host}
    return [sent(uuid), received(uuid, **at_host), started(uuid, **at_host), succeeded(uuid, **at_host)]


# -- prefetched tasks -----------------------------------------------------------------------------------


def test_prefetched_tasks_are_counted_by_worker():
    driver = ClusterDriver(show=lambda name: "" if name == "noise" else name)
    driver.apply(sent("a"), received("a"), sent("b"), received("b"), sent("c"), received("c", host="b@h"))
    driver.apply(sent("d"), received("d"), started("d"), sent("e"), sent("f", name="noise"))
    driver.apply(received("f", name="noise"))
    assert driver.shown(prefetched=True).prefetched == {(A, "w@h"): 2, (A, "b@h"): 1}
    assert driver.shown().prefetched is None, "it was not requested"


def test_a_task_that_several_workers_have_counts_for_the_newest_delivery():
    driver = ClusterDriver()
    driver.apply(sent(), received(), received(at=9, host="b@h", pid=7), received(at=19, host="c@h", pid=8))
    driver.wait(2.5)
    assert driver.cluster.tasks.get("u1").expanded is not None
    assert driver.shown(prefetched=True).prefetched == {(A, "c@h"): 1}


def test_prefetched_tasks_of_a_removed_worker_are_not_counted():
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10))
    driver.apply(heartbeat(), sent(), received())
    driver.wait(30)
    assert driver.cluster.workers == {}
    assert driver.shown(prefetched=True).prefetched == {}


@pytest.mark.parametrize(("limit", "shown"), [(2, {(A, "w@h"): 2}), (1, None)])
def test_too_many_prefetched_tasks_are_not_scanned(monkeypatch, limit, shown):
    monkeypatch.setattr(cluster, "MAX_PREFETCHED", limit)
    driver = ClusterDriver()
    driver.apply(sent("a"), received("a"), sent("b"), received("b"))
    assert driver.shown(prefetched=True).prefetched == shown


# -- hosts -----------------------------------------------------------------------------------------------


def at_workers(driver: ClusterDriver) -> dict[str, int]:
    return {
        label_set.worker: aggregate.transitions[3]
        for label_set, aggregate in driver.aggregates.snapshot().items()
        if aggregate.transitions[3]
    }


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [(True, {"b@box": 1, "@box": 1}), (False, {"b@box": 1, "": 1})],
    ids=["shown", "not"],
)
def test_sums_of_a_removed_worker_stay_with_its_host_if_hosts_are_shown(hosts, expected):
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10), BOTH, hosts=hosts)
    driver.apply(*life("u1", "a@box"), *life("u2", "b@box"), heartbeat("b@box"))
    for _ in range(30):
        driver.wait(1)
        driver.apply(heartbeat("b@box"))
    assert at_workers(driver) == expected
    driver.wait(60)
    assert at_workers(driver) == {"": 2}, "its last worker was removed"


# -- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("usual", [True, False], ids=["usual", "reported in part"])
def test_a_failure_is_kept_with_its_details(usual):
    driver = ClusterDriver()
    driver.apply(sent(), *([received(), started()] if usual else []), failed(at=5, exception="KeyError('x')"))
    (failure,) = driver.shown().failures
    assert failure == Failure(T0 + 5, A, "w@h", "KeyError", "u1")


def test_the_newest_failure_comes_first():
    driver = ClusterDriver()
    driver.apply(
        *(event for uuid in "ab" for event in (sent(uuid), received(uuid), started(uuid), failed(uuid)))
    )
    assert [failure.uuid for failure in driver.shown().failures] == ["b", "a"]


# -- fewer buckets ---------------------------------------------------------------------------------------


def test_rebucketing_moves_every_count_and_exemplar():
    native = {0: 9}
    exemplars = {0: Exemplar("a", 0.1), 2: Exemplar("b", 5.0)}
    rebucketed = Histogram([1, 2, 4, 8], 7.5, native, exemplars).rebucketed([0, 1, 1, 2])
    assert (rebucketed.counts, rebucketed.total, rebucketed.native) == ([1, 6, 8], 7.5, native)
    assert rebucketed.exemplars == {0: Exemplar("a", 0.1), 1: Exemplar("b", 5.0)}


def test_rebucketing_with_too_few_indexes_is_an_error():
    with pytest.raises(ValueError, match="argument 2"):
        Histogram([1, 2, 3]).rebucketed([0, 1])
