"""The invariants of the whole state machine, for any sequence of events.

Numbers of invariants are those of docs/explanation/architecture.md.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_exporter.core import cluster
from celery_exporter.core.limits import Limits
from celery_exporter.core.types import LabelSet, State
from celery_exporter.core.workers import WorkerInfo

from .cluster_driver import (
    ClusterDriver,
    heartbeat,
    received,
    sent,
    started,
    succeeded,
)
from .lives import LIFE, any_task_event

A = LabelSet("add", "q")


def test_sums_of_clients_on_a_host_are_shown_until_its_last_worker_is_removed():
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10), clients=True)
    driver.apply(heartbeat("a@box"), heartbeat("b@box"), sent(hostname="c@box"), sent("u2", hostname="c@web"))
    for _ in range(30):
        driver.wait(1)
        driver.apply(heartbeat("b@box"))
    assert list(driver.cluster.workers) == ["b@box"]
    assert driver.aggregate().clients == {"box": 1, "web": 1}
    driver.wait(30)
    assert driver.aggregate().clients == {"web": 1}
    assert driver.aggregate().transitions[State.PENDING] == 2


def test_invariant_5_sums_of_a_removed_worker_stay():
    driver = ClusterDriver(
        Limits(worker_timeout=10, purge_offline_worker_metrics=60), labels=("queue_name", "worker")
    )
    driver.apply(heartbeat(), *LIFE)
    before = driver.by_state()
    assert driver.aggregate(worker="w@h").transitions[3] == 1
    driver.wait(75)
    assert "w@h" not in driver.cluster.workers
    assert driver.by_state() == before
    assert driver.aggregate(worker="").transitions[3] == 1
    assert LabelSet("add", "q", "w@h") not in driver.aggregates.snapshot()


def test_invariant_6_a_worker_that_returns_after_its_removal_starts_new_sums():
    driver = ClusterDriver(
        Limits(worker_timeout=10, purge_offline_worker_metrics=60), labels=("queue_name", "worker")
    )
    driver.apply(*LIFE)
    driver.wait(100)
    driver.apply(sent("u2"), received("u2"), started("u2"), succeeded("u2"))
    assert {
        label_set.worker: aggregate.transitions[3]
        for label_set, aggregate in driver.aggregates.snapshot().items()
    } == {
        "": 1,
        "w@h": 1,
    }
    assert len(driver.cluster.label_sets) == 2


def test_invariant_6_registered_tasks_start_at_zero_if_their_queue_is_certain():
    driver = ClusterDriver()
    driver.cluster.record_inspection(
        {
            "a@h": WorkerInfo(queues=("mail",), registered=("send", "both")),
            "b@h": WorkerInfo(queues=("celery",), registered=("both",)),
            "c@h": WorkerInfo(registered=("nowhere",)),
        },
        driver.timestamp(),
    )
    assert set(driver.aggregates.snapshot()) == {LabelSet("send", "mail")}
    assert driver.aggregate("send", "mail").transitions == [0] * 8


def test_hosts_of_clients_create_no_series_and_no_workers():
    driver = ClusterDriver(labels=("queue_name", "worker"))
    driver.apply(sent())
    assert driver.cluster.workers == {}
    assert {label_set.worker for label_set in driver.aggregates.snapshot()} == {""}


def test_custom_events_are_counted_as_other_and_change_nothing_else():
    driver = ClusterDriver()
    driver.apply({"type": "order-shipped"}, {"type": "task-sent-by-mail"}, sent())
    assert {kind: count for kind, count in driver.cluster.events.items() if count} == {
        "other": 2,
        "task-sent": 1,
    }
    assert driver.cluster.workers == {}


@settings(max_examples=200)
@given(st.lists(st.tuples(any_task_event, st.sampled_from([0.0, 0.5, 3.0, 70.0])), max_size=30))
def test_every_event_is_counted_once_and_every_task_is_in_one_bucket(events):
    driver = ClusterDriver(Limits(max_tasks=100))
    for event, pause in events:
        driver.apply(event)
        driver.wait(pause)
    driver.wait(3)
    assert sum(driver.counts().values()) + driver.cluster.repeated.total() == len(events)
    tasks = driver.cluster.tasks
    in_buckets = sum(len(bucket.tasks) for bucket in tasks.buckets())
    assert in_buckets == len(tasks)
    assert in_buckets + len(tasks.finished) <= 2


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


# -- hosts of removed workers ---------------------------------------------------------------------------


def life(uuid: str, host: str) -> list[dict]:
    at_host = {"host": host}
    return [sent(uuid), received(uuid, **at_host), started(uuid, **at_host), succeeded(uuid, **at_host)]


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
    driver = ClusterDriver(
        Limits(worker_timeout=10, purge_offline_worker_metrics=10), ("queue_name", "worker"), hosts=hosts
    )
    driver.apply(*life("u1", "a@box"), *life("u2", "b@box"), heartbeat("b@box"))
    for _ in range(30):
        driver.wait(1)
        driver.apply(heartbeat("b@box"))
    assert at_workers(driver) == expected
    driver.wait(60)
    assert at_workers(driver) == {"": 2}, "its last worker was removed"
