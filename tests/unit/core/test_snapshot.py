"""Snapshots show what is known, and None for what is not."""

from __future__ import annotations

import re

import pytest

from celery_exporter.core.limits import Limits
from celery_exporter.core.snapshot import QueueStats, QueueView, WorkerView
from celery_exporter.core.task_names import shown_as
from celery_exporter.core.workers import WorkerInfo

from .cluster_driver import T0, ClusterDriver, heartbeat, received, sent, started

REPORTED = {"sw_ident": "py-celery", "sw_ver": "5.5.3", "sw_sys": "Linux", "loadavg": [0.5, 1.5, 2.5]}
REPLIED = WorkerInfo(
    queues=("q",),
    registered=("add",),
    pool="prefork",
    pool_size=4,
    pool_max=8,
    prefetch_count=16,
    max_resident_bytes=2**20,
)


def test_a_worker_is_shown_by_its_events_and_answers():
    driver = ClusterDriver()
    driver.apply(
        started("u0", at=90),
        heartbeat(at=100, processed=3, **REPORTED),
        heartbeat(at=100, pid=2, processed=0, **REPORTED),
    )
    driver.apply(started(at=101, pid=2), heartbeat(at=102, pid=2, processed=3, active=1, **REPORTED))
    driver.apply(heartbeat(at=104, pid=2, processed=3, active=1, **REPORTED))
    driver.cluster.record_inspection({"w@h": REPLIED}, driver.timestamp())
    assert driver.shown().workers == [
        WorkerView(
            name="w@h",
            up=True,
            active=1,
            processed_total=6,
            restarts=1,
            missed=2,
            loadavg=(0.5, 1.5, 2.5),
            heartbeat=T0 + 100,
            clock_skew=4.0,
            events=True,
            software="py-celery",
            version="5.5.3",
            system="Linux",
            pool="prefork",
            pool_size=4,
            pool_max=8,
            prefetch_count=16,
            max_resident_bytes=2**20,
            queues=["q"],
        )
    ]


def test_the_activity_of_a_worker_that_is_down_is_unknown():
    driver = ClusterDriver()
    driver.apply(heartbeat(active=2, processed=7))
    driver.cluster.record_inspection({"w@h": REPLIED}, driver.timestamp())
    driver.apply(heartbeat(kind="offline", active=2, processed=7))
    (worker,) = driver.shown().workers
    assert not worker.up
    assert (worker.active, worker.loadavg, worker.pool_size, worker.pool_max, worker.prefetch_count) == (
        None,
    ) * 5
    assert (worker.processed_total, worker.pool, worker.max_resident_bytes) == (7, "prefork", 2**20)


def test_unreported_values_of_a_worker_are_absent():
    driver = ClusterDriver()
    driver.apply(started())
    (worker,) = driver.shown().workers
    assert (worker.name, worker.up, worker.events) == ("w@h", True, True)
    assert (worker.active, worker.loadavg, worker.heartbeat, worker.clock_skew) == (None,) * 4
    assert (worker.software, worker.version, worker.system) == ("", "", "")


# -- queues ----------------------------------------------------------------------------------------------


def queues(infos: dict[str, WorkerInfo], *events: dict, **exporter_state) -> list[QueueView]:
    """Apply events and the replies of workers; return the queues that are shown."""
    driver = ClusterDriver()
    driver.apply(*events)
    driver.cluster.record_inspection(infos, driver.timestamp())
    return driver.shown(**exporter_state).queues


def test_consumers_of_a_queue_are_counted_by_the_answers_of_workers():
    infos = {
        "a@h": WorkerInfo(queues=("mail", "both"), pool_size=4),
        "b@h": WorkerInfo(queues=("both",), pool_size=2),
    }
    assert queues(infos, sent(queue="lonely")) == [
        QueueView("both", None, 2, 6, None, 2),
        QueueView("lonely", None, 0, 0, None, 0),
        QueueView("mail", None, 1, 4, None, 1),
    ]


@pytest.mark.parametrize(
    ("infos", "exporter_state", "shown"),
    [
        ({"a@h": WorkerInfo(queues=("q",), pool_size=4)}, {"workers_known": False}, (None, None)),
        ({"a@h": WorkerInfo(queues=("q",), pool_size=4), "b@h": WorkerInfo()}, {}, (None, None)),
        ({"a@h": WorkerInfo(queues=("q",), pool_size=4), "b@h": WorkerInfo(queues=("q",))}, {}, (2, None)),
        ({"a@h": WorkerInfo(queues=("q",), pool_size=0)}, {}, (1, 0)),
    ],
    ids=["no-replies", "unknown-queues", "unknown-pool-size", "an-empty-pool"],
)
def test_consumers_and_processes_are_known_when_all_workers_answered(infos, exporter_state, shown):
    (queue,) = queues(infos, sent(), **exporter_state)
    assert (queue.consumers, queue.worker_processes) == shown


def test_a_worker_that_left_consumes_no_queue():
    infos = {"a@h": WorkerInfo(queues=("q",), pool_size=4)}
    (queue,) = queues(infos, heartbeat("a@h", kind="offline"))
    assert (queue.name, queue.consumers, queue.worker_processes) == ("q", 0, 0)


def test_a_worker_that_left_without_an_answer_is_ignored():
    infos = {"a@h": WorkerInfo(queues=("q",), pool_size=4)}
    (queue,) = queues(infos, heartbeat("gone@h", kind="offline"))
    assert (queue.consumers, queue.worker_processes) == (1, 4)


@pytest.mark.parametrize(("reported", "consumers"), [(None, 1), (0, 0), (3, 3)])
def test_the_count_of_the_broker_takes_precedence(reported, consumers):
    infos = {"a@h": WorkerInfo(queues=("q",), pool_size=4)}
    assert queues(infos, queue_stats={"q": QueueStats(7, reported), "other": QueueStats(1, 5)}) == [
        QueueView("other", 1, 5, 0, None, 0),
        QueueView("q", 7, consumers, 4, None, 1),
    ]


def test_the_oldest_task_of_a_queue_is_the_earliest_of_those_at_its_heads():
    stats = QueueStats(3, None, ("u1", "u2", "unknown", "not sent"))
    events = [sent("u1", at=5), sent("u2", at=3), received("not sent")]
    (queue,) = queues({}, *events, queue_stats={"q": stats})
    assert queue.oldest == T0 + 3


def test_a_retry_at_the_head_of_a_queue_waits_since_its_own_sending():
    events = [sent(at=1), received(at=2), sent(at=9, retries=1), sent(at=30, retries=2)]
    (queue,) = queues({}, *events, queue_stats={"q": QueueStats(1, None, ("u1",))})
    assert queue.oldest == T0 + 30


def customer_queues(infos: dict[str, WorkerInfo], *events: dict, **exporter_state) -> list[QueueView]:
    """Return the shown queues, where all queues of customers have one label value."""
    rules = [(re.compile("customer-[0-9]+"), "customer-*")]
    driver = ClusterDriver(show_queue=shown_as(None, None, rules))
    driver.apply(*events)
    driver.cluster.record_inspection(infos, driver.timestamp())
    return driver.shown(**exporter_state).queues


def test_queues_with_one_label_are_added_up_and_a_worker_of_several_counts_once():
    infos = {
        "a@h": WorkerInfo(queues=("customer-1", "customer-2"), pool_size=4),
        "b@h": WorkerInfo(queues=("customer-2", "q"), pool_size=2),
    }
    queue_stats = {
        "customer-1": QueueStats(3, None, ("u1",)),
        "customer-2": QueueStats(4, None, ("u2",)),
        "q": QueueStats(1),
    }
    events = [sent("u1", at=5, queue="customer-1"), sent("u2", at=3, queue="customer-2")]
    assert customer_queues(infos, *events, sent("u3", queue="customer-3"), queue_stats=queue_stats) == [
        QueueView("customer-*", 7, 3, 6, T0 + 3, 2),
        QueueView("q", 1, 1, 2, None, 1),
    ]


def test_the_lengths_of_a_priority_add_up_over_queues_with_one_label():
    stats = {
        "customer-1": QueueStats(3, by_priority={0: 1, 9: 2}),
        "customer-2": QueueStats(4, by_priority={0: 4, 9: 0}),
    }
    driver = ClusterDriver(show_queue=lambda _: "customer-*")
    driver.cluster.queues.request(stats)
    assert [queue.by_priority for queue in driver.shown(queue_stats=stats).queues] == [{}]
    driver.cluster.queues.prioritize(["customer-1", "unknown"])
    assert [queue.by_priority for queue in driver.shown(queue_stats=stats).queues] == [{0: 5, 9: 2}]


@pytest.mark.parametrize(
    ("numbers", "missing", "expected"),
    [
        ({"customer-1": 3, "customer-2": 0}, "customer-3", 3),
        ({"customer-1": 3, "customer-2": None}, "customer-3", None),
        ({"customer-1": 3, "customer-2": 0}, "", None),
    ],
)
def test_unacked_messages_of_a_label_are_known_if_those_of_all_its_queues_are(numbers, missing, expected):
    stats = {name: QueueStats(1, unacked=number) for name, number in numbers.items()}
    driver = ClusterDriver(show_queue=lambda _: "customer-*")
    driver.cluster.queues.request([*stats, "customer-3"])
    (queue,) = driver.shown(queue_stats=stats, missing={missing}).queues
    assert queue.unacked == expected


@pytest.mark.parametrize(("lengths", "expected"), [({0: 5, 9: 0}, False), ({0: 0, 9: 1}, True), ({}, False)])
def test_a_queue_has_priorities_if_messages_wait_in_another_step_than_0(lengths, expected):
    assert QueueStats(5, by_priority=lengths).has_priorities == expected


@pytest.mark.parametrize(("waiting", "consumers"), [(4, 0), (0, 5)])
def test_a_consumed_queue_does_not_hide_an_unconsumed_one_with_the_same_label(waiting, consumers):
    queue_stats = {"customer-1": QueueStats(3, 5), "customer-2": QueueStats(waiting, 0)}
    assert customer_queues({}, queue_stats=queue_stats) == [
        QueueView("customer-*", 3 + waiting, consumers, 0, None, 0)
    ]


def test_a_queue_that_does_not_exist_is_not_shown():
    shown = queues({}, sent(queue="dead"), sent("u2", queue="dark"), missing={"dead"})
    assert [queue.name for queue in shown] == ["dark"]


def test_a_queue_that_needs_no_consumer_has_no_count_without_one():
    infos = {"a@h": WorkerInfo(queues=("mine", "bcast.1"), auto_delete=("mine",), pool_size=4)}
    driver = ClusterDriver()
    driver.cluster.record_inspection(infos, driver.timestamp())
    assert [queue.consumers for queue in driver.shown().queues] == [1, 1]
    driver.apply(heartbeat("a@h", kind="offline"))
    shown = driver.shown(
        queue_stats={"bcast.1": QueueStats(9, 0), "q": QueueStats(9, 0), "mine": QueueStats(9, 0)}
    ).queues
    assert {queue.name: queue.consumers for queue in shown} == {"bcast.1": None, "q": 0, "mine": None}


# -- other values ----------------------------------------------------------------------------------------


def test_evictions_and_overflows_are_counted():
    driver = ClusterDriver(Limits(max_tasks=10, max_series=16))
    for number in range(12):
        driver.apply(sent(f"u{number}", name=f"task{number}"))
    driver.apply(started("u11", at=-5))
    driver.aggregates.overflowed = 100
    shown = driver.shown()
    assert (shown.runtime_bounds, shown.wait_bounds) == ((0.1, 1.0, 10.0), (0.1, 1.0, 10.0))
    assert (shown.tasks_tracked, shown.tasks_evicted) == (10, 2)
    assert (shown.series, shown.series_overflowed) == (3, 110)
    assert shown.negative_waits == 1


def test_a_snapshot_does_not_change():
    driver = ClusterDriver()
    driver.apply(sent(), received())
    shown = driver.shown()
    before = (dict(shown.events), dict(shown.fallbacks), dict(shown.limit_rejections))
    driver.cluster.limit_rejections["worker"] += 1
    driver.apply(sent("u2"), started("u3"))
    driver.wait(3)
    assert (shown.events, shown.fallbacks, shown.limit_rejections) == before
    assert (shown.events["task-sent"], driver.shown().events["task-sent"]) == (1, 2)
    assert (shown.limit_rejections["worker"], driver.shown().limit_rejections["worker"]) == (0, 1)
    assert (shown.fallbacks["task_name"], driver.shown().fallbacks["task_name"]) == (0, 1)


def test_a_snapshot_has_the_exporter_state():
    shown = ClusterDriver().shown(version="1.2.3", unacked=5)
    assert (shown.exporter.version, shown.exporter.unacked, shown.exporter.at) == ("1.2.3", 5, T0 + 100)
