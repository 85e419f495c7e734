"""What is shown: what is known, and nothing in the place of what is not."""

from __future__ import annotations

import re

import pytest

from celery_exporter.core.limits import Limits
from celery_exporter.core.snapshot import QueueStats, QueueView, WorkerView
from celery_exporter.core.task_names import shown_as
from celery_exporter.core.workers import WorkerInfo

from .cluster_driver import T0, ClusterDriver, heartbeat, received, sent, started

SAID = {"sw_ident": "py-celery", "sw_ver": "5.5.3", "sw_sys": "Linux", "loadavg": [0.5, 1.5, 2.5]}
ANSWERED = WorkerInfo(
    queues=("q",),
    registered=("add",),
    pool="prefork",
    pool_size=4,
    pool_max=8,
    prefetch_count=16,
    max_resident_bytes=2**20,
)


def test_a_worker_is_shown_as_it_said_and_answered():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=100, processed=3, **SAID), heartbeat(at=100, pid=2, processed=0, **SAID))
    driver.apply(started(at=101), heartbeat(at=102, pid=2, processed=3, active=1, **SAID))
    driver.apply(heartbeat(at=104, pid=2, processed=3, active=1, **SAID))
    driver.cluster.record_inspection({"w@h": ANSWERED}, driver.moment())
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
        )
    ]


def test_what_a_worker_does_now_is_not_known_of_one_that_is_down():
    driver = ClusterDriver()
    driver.apply(heartbeat(active=2, processed=7))
    driver.cluster.record_inspection({"w@h": ANSWERED}, driver.moment())
    driver.apply(heartbeat(kind="offline", active=2, processed=7))
    (worker,) = driver.shown().workers
    assert not worker.up
    assert (worker.active, worker.loadavg, worker.pool_size, worker.pool_max, worker.prefetch_count) == (
        None,
    ) * 5
    assert (worker.processed_total, worker.pool, worker.max_resident_bytes) == (7, "prefork", 2**20)


def test_a_worker_that_said_nothing_of_itself_is_shown_with_nothing_in_its_place():
    driver = ClusterDriver()
    driver.apply(started())
    (worker,) = driver.shown().workers
    assert (worker.name, worker.up, worker.events) == ("w@h", True, True)
    assert (worker.active, worker.loadavg, worker.heartbeat, worker.clock_skew) == (None,) * 4
    assert (worker.software, worker.version, worker.system) == ("", "", "")


# -- queues ----------------------------------------------------------------------------------------------


def queues(profiles: dict[str, WorkerInfo], *events: dict, **around) -> list[QueueView]:
    """Tell events, let these workers answer, and return the queues that are shown."""
    driver = ClusterDriver()
    driver.apply(*events)
    driver.cluster.record_inspection(profiles, driver.moment())
    return driver.shown(**around).queues


def test_a_queue_is_served_by_the_workers_that_consume_it():
    profiles = {
        "a@h": WorkerInfo(queues=("mail", "both"), pool_size=4),
        "b@h": WorkerInfo(queues=("both",), pool_size=2),
    }
    assert queues(profiles, sent(queue="lonely")) == [
        QueueView("both", None, 2, 6, None, 2),
        QueueView("lonely", None, 0, 0, None, 0),
        QueueView("mail", None, 1, 4, None, 1),
    ]


@pytest.mark.parametrize(
    ("profiles", "around", "shown"),
    [
        ({"a@h": WorkerInfo(queues=("q",), pool_size=4)}, {"workers_known": False}, (None, None)),
        ({"a@h": WorkerInfo(queues=("q",), pool_size=4), "b@h": WorkerInfo()}, {}, (None, None)),
        ({"a@h": WorkerInfo(queues=("q",), pool_size=4), "b@h": WorkerInfo(queues=("q",))}, {}, (2, None)),
        ({"a@h": WorkerInfo(queues=("q",), pool_size=0)}, {}, (1, 0)),
    ],
    ids=["nobody-answered", "one-did-not-say-its-queues", "one-did-not-say-its-size", "an-empty-pool"],
)
def test_consumers_and_processes_are_known_when_all_workers_said_so(profiles, around, shown):
    (queue,) = queues(profiles, sent(), **around)
    assert (queue.consumers, queue.worker_processes) == shown


def test_a_worker_that_left_serves_no_queue():
    profiles = {"a@h": WorkerInfo(queues=("q",), pool_size=4)}
    (queue,) = queues(profiles, heartbeat("a@h", kind="offline"))
    assert (queue.name, queue.consumers, queue.worker_processes) == ("q", 0, 0)


def test_a_worker_that_left_without_an_answer_makes_nothing_unknown():
    profiles = {"a@h": WorkerInfo(queues=("q",), pool_size=4)}
    (queue,) = queues(profiles, heartbeat("gone@h", kind="offline"))
    assert (queue.consumers, queue.worker_processes) == (1, 4)


@pytest.mark.parametrize(("told", "consumers"), [(None, 1), (0, 0), (3, 3)])
def test_what_the_broker_says_of_a_queue_comes_first(told, consumers):
    profiles = {"a@h": WorkerInfo(queues=("q",), pool_size=4)}
    assert queues(profiles, queue_stats={"q": QueueStats(7, told), "other": QueueStats(1, 5)}) == [
        QueueView("other", 1, 5, 0, None, 0),
        QueueView("q", 7, consumers, 4, None, 1),
    ]


def test_the_oldest_of_a_queue_waits_since_the_earliest_of_the_tasks_at_its_heads():
    depth = QueueStats(3, None, ("u1", "u2", "unheard of", "not sent"))
    events = [sent("u1", at=5), sent("u2", at=3), received("not sent")]
    (queue,) = queues({}, *events, queue_stats={"q": depth})
    assert queue.oldest == T0 + 3


def test_a_retry_at_the_head_of_a_queue_waits_since_it_was_sent_anew():
    events = [sent(at=1), received(at=2), sent(at=9, retries=1), sent(at=30, retries=2)]
    (queue,) = queues({}, *events, queue_stats={"q": QueueStats(1, None, ("u1",))})
    assert queue.oldest == T0 + 30


def overflowed(profiles: dict[str, WorkerInfo], *events: dict, **around) -> list[QueueView]:
    """Return the queues of customers, which have one name."""
    rules = [(re.compile("customer-[0-9]+"), "customer-*")]
    driver = ClusterDriver(show_queue=shown_as(None, None, rules))
    driver.apply(*events)
    driver.cluster.record_inspection(profiles, driver.moment())
    return driver.shown(**around).queues


def test_queues_of_one_name_are_added_up_and_a_worker_of_several_is_one_worker():
    profiles = {
        "a@h": WorkerInfo(queues=("customer-1", "customer-2"), pool_size=4),
        "b@h": WorkerInfo(queues=("customer-2", "q"), pool_size=2),
    }
    queue_stats = {
        "customer-1": QueueStats(3, None, ("u1",)),
        "customer-2": QueueStats(4, None, ("u2",)),
        "q": QueueStats(1),
    }
    events = [sent("u1", at=5, queue="customer-1"), sent("u2", at=3, queue="customer-2")]
    assert overflowed(profiles, *events, sent("u3", queue="customer-3"), queue_stats=queue_stats) == [
        QueueView("customer-*", 7, 3, 6, T0 + 3, 2),
        QueueView("q", 1, 1, 2, None, 1),
    ]


@pytest.mark.parametrize(("waiting", "consumers"), [(4, 0), (0, 5)])
def test_one_consumed_queue_does_not_hide_another_of_its_name_in_which_messages_wait(waiting, consumers):
    told = {"customer-1": QueueStats(3, 5), "customer-2": QueueStats(waiting, 0)}
    assert overflowed({}, queue_stats=told) == [QueueView("customer-*", 3 + waiting, consumers, 0, None, 0)]


def test_a_queue_that_the_broker_does_not_have_is_not_shown():
    shown = queues({}, sent(queue="dead"), sent("u2", queue="dark"), missing={"dead"})
    assert [queue.name for queue in shown] == ["dark"]


def test_a_queue_without_a_consumer_that_needs_none_has_no_number_of_them():
    profiles = {"a@h": WorkerInfo(queues=("mine", "bcast.1"), auto_delete=("mine",), pool_size=4)}
    driver = ClusterDriver()
    driver.cluster.record_inspection(profiles, driver.moment())
    assert [queue.consumers for queue in driver.shown().queues] == [1, 1]
    driver.apply(heartbeat("a@h", kind="offline"))
    shown = driver.shown(
        queue_stats={"bcast.1": QueueStats(9, 0), "q": QueueStats(9, 0), "mine": QueueStats(9, 0)}
    ).queues
    assert {queue.name: queue.consumers for queue in shown} == {"bcast.1": None, "q": 0, "mine": None}


# -- the rest --------------------------------------------------------------------------------------------


def test_what_was_bounded_forgotten_and_folded_is_shown_in_numbers():
    driver = ClusterDriver(Limits(max_tasks=10, max_series=16))
    for number in range(12):
        driver.apply(sent(f"u{number}", name=f"task{number}"))
    driver.apply(started("u11", at=-5))
    driver.ledger.overflowed = 100
    shown = driver.shown()
    assert (shown.runtime_bounds, shown.wait_bounds) == ((0.1, 1.0, 10.0), (0.1, 1.0, 10.0))
    assert (shown.tasks_tracked, shown.tasks_evicted) == (10, 2)
    assert (shown.series, shown.series_overflowed) == (3, 110)
    assert shown.negative_waits == 1


def test_a_snapshot_stays_as_it_was_taken():
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


def test_a_snapshot_carries_what_is_not_of_the_cluster():
    shown = ClusterDriver().shown(version="1.2.3", unacked=5)
    assert (shown.exporter.version, shown.exporter.unacked, shown.exporter.at) == ("1.2.3", 5, T0 + 100)
