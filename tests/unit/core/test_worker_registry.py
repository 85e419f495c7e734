"""When workers are up, are down and are removed, and how many are kept.

Numbers of invariants are those of docs/explanation/architecture.md.
"""

from __future__ import annotations

import math

import pytest

from celery_exporter.core import worker_registry
from celery_exporter.core.limits import Limits
from celery_exporter.core.workers import WorkerInfo

from .cluster_driver import (
    ClusterDriver,
    heartbeat,
    received,
    sent,
    started,
    succeeded,
    task_event,
)


def test_invariant_4_a_worker_is_down_after_a_time_of_listening_without_its_events():
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=60))
    driver.apply(heartbeat(at=-420))  # its clock is seven minutes behind
    driver.wait(9)
    assert driver.cluster.workers["w@h"].up
    driver.wait(2)
    assert not driver.cluster.workers["w@h"].up
    driver.apply(heartbeat(at=-400))
    assert driver.cluster.workers["w@h"].up
    assert driver.cluster.workers["w@h"].clock_skew == pytest.approx(-420 - driver.now, abs=30)


def test_invariant_4_a_worker_with_a_slow_heartbeat_is_down_after_three_intervals():
    driver = ClusterDriver(Limits(worker_timeout=10))
    driver.apply(heartbeat(freq=60))
    driver.wait(170)
    assert driver.cluster.workers["w@h"].up
    driver.wait(15)
    assert not driver.cluster.workers["w@h"].up


def test_invariant_4_a_worker_without_a_heartbeat_interval_is_down_after_the_timeout():
    driver = ClusterDriver(Limits(worker_timeout=2))
    driver.apply(started())
    driver.wait(2)
    assert driver.cluster.workers["w@h"].up
    driver.wait(1)
    assert not driver.cluster.workers["w@h"].up


def test_invariant_4_without_a_timeout_only_worker_offline_takes_a_worker_down():
    driver = ClusterDriver(Limits(worker_timeout=math.inf, purge_offline_worker_metrics=60))
    driver.apply(heartbeat())
    driver.now += 1e6
    driver.wait(1)
    assert driver.cluster.workers["w@h"].up
    driver.apply(heartbeat(kind="offline"))
    driver.wait(62)
    assert driver.cluster.workers == {}


def test_invariant_4_worker_offline_takes_effect_at_once_and_only_for_its_sender():
    driver = ClusterDriver()
    driver.apply(heartbeat("a@h"), heartbeat("b@h"), heartbeat("a@h", kind="offline"))
    assert {name: worker.up for name, worker in driver.cluster.workers.items()} == {"a@h": False, "b@h": True}
    driver.apply(task_event("succeeded", host="a@h"))  # from its buffer of events
    assert not driver.cluster.workers["a@h"].up


def test_a_worker_whose_first_event_is_worker_offline_is_down():
    driver = ClusterDriver()
    driver.apply(heartbeat(kind="offline"))
    assert not driver.cluster.workers["w@h"].up


def test_a_late_worker_offline_does_not_restore_a_removed_worker_but_a_heartbeat_does():
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10))
    driver.apply(heartbeat())
    driver.wait(30)
    driver.apply(heartbeat(kind="offline"))
    assert driver.cluster.workers == {}
    driver.apply(heartbeat(), heartbeat(kind="offline"))
    assert not driver.cluster.workers["w@h"].up


def test_names_of_removed_workers_are_bounded(monkeypatch):
    monkeypatch.setattr(worker_registry, "MAX_WORKERS", 2)
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10))
    for name in ("a@h", "b@h", "c@h"):
        driver.apply(heartbeat(name))
        driver.wait(30)
    driver.apply(*(heartbeat(name, kind="offline") for name in ("a@h", "b@h", "c@h")))
    assert list(driver.cluster.workers) == ["a@h"]


@pytest.mark.parametrize("purge", [60, None])
def test_invariant_4_a_silent_solo_worker_is_down_after_ten_minutes(purge):
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=purge))
    driver.apply(heartbeat())
    driver.cluster.record_inspection({"w@h": WorkerInfo(pool="solo")}, driver.timestamp())
    driver.wait(590)
    assert driver.cluster.workers["w@h"].up
    driver.wait(20)
    assert not driver.cluster.workers["w@h"].up
    driver.wait(60)
    assert ("w@h" in driver.cluster.workers) is (purge is None)


def test_invariant_4_a_heartbeat_interval_of_years_is_limited():
    driver = ClusterDriver(Limits(worker_timeout=10))
    driver.apply(heartbeat(freq=9e8))
    driver.now += 3 * 3600 - 2
    driver.wait(1)
    assert driver.cluster.workers["w@h"].up
    driver.wait(20)
    assert not driver.cluster.workers["w@h"].up


def test_workers_beyond_the_limit_are_rejected_and_existing_ones_stay(monkeypatch):
    monkeypatch.setattr(worker_registry, "MAX_WORKERS", 100)
    driver = ClusterDriver(labels=("queue_name", "worker"))
    driver.apply(heartbeat("existing@h"))
    for index in range(110):
        driver.apply(heartbeat(f"w{index}@h"))
    assert len(driver.cluster.workers) == 100
    assert driver.cluster.limit_rejections["worker"] == 11
    assert "existing@h" in driver.cluster.workers
    driver.apply(sent(), task_event("received", host="new@h", name="add"))
    assert driver.aggregate(worker="other").transitions[1] == 1
    assert driver.cluster.fallbacks["worker"] == 1
    driver.apply(received("u2", name="mul", host="new@h"))  # its queues are unknown
    driver.wait(3)
    assert driver.aggregate("mul", "unknown", "other").transitions[1] == 1
    assert driver.cluster.fallbacks["worker"] == 2


def test_invariant_4_a_worker_with_task_events_is_up_without_heartbeats():
    driver = ClusterDriver(Limits(worker_timeout=60))
    for number in range(30):
        driver.apply(received(f"u{number}"), started(f"u{number}"), succeeded(f"u{number}"))
        driver.wait(5)
    assert driver.cluster.workers["w@h"].up
    driver.wait(70)
    assert not driver.cluster.workers["w@h"].up
