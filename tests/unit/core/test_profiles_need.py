"""What only some profiles show: what workers hold, what a host did whose workers are gone, who failed."""

from __future__ import annotations

import pytest

from celery_exporter.core import cluster
from celery_exporter.core.aggregates import Failure
from celery_exporter.core.cluster import Limits
from celery_exporter.core.histogram import Exemplar, Histogram
from celery_exporter.core.types import LabelSet

from .cluster_driver import T0, ClusterDriver, failed, heartbeat, received, sent, started, succeeded

A = LabelSet("add", "q")
BOTH = ("queue_name", "worker")


def life(uuid: str, host: str) -> list[dict]:
    at_host = {"host": host}
    return [sent(uuid), received(uuid, **at_host), started(uuid, **at_host), succeeded(uuid, **at_host)]


# -- what workers hold -----------------------------------------------------------------------------------


def test_tasks_that_are_received_and_not_started_are_counted_by_worker():
    story = ClusterDriver(show=lambda name: "" if name == "noise" else name)
    story.tell(sent("a"), received("a"), sent("b"), received("b"), sent("c"), received("c", host="b@h"))
    story.tell(sent("d"), received("d"), started("d"), sent("e"), sent("f", name="noise"))
    story.tell(received("f", name="noise"))
    assert story.shown(prefetched=True).prefetched == {(A, "w@h"): 2, (A, "b@h"): 1}
    assert story.shown().prefetched is None, "nobody asked"


def test_a_task_that_two_workers_have_is_with_the_newest():
    story = ClusterDriver()
    story.tell(sent(), received(), received(at=9, host="b@h", pid=7), received(at=19, host="c@h", pid=8))
    story.wait(2.5)
    assert story.cluster.tasks.get("u1").story is not None
    assert story.shown(prefetched=True).prefetched == {(A, "c@h"): 1}


def test_what_a_worker_held_that_is_forgotten_is_nobody_s():
    story = ClusterDriver(Limits(worker_timeout=10, worker_purge=10))
    story.tell(heartbeat(), sent(), received())
    story.wait(30)
    assert story.cluster.workers == {}
    assert story.shown(prefetched=True).prefetched == {}


@pytest.mark.parametrize(("most", "shown"), [(2, {(A, "w@h"): 2}), (1, None)])
def test_too_many_are_not_looked_through(monkeypatch, most, shown):
    monkeypatch.setattr(cluster, "MAX_PREFETCHED", most)
    story = ClusterDriver()
    story.tell(sent("a"), received("a"), sent("b"), received("b"))
    assert story.shown(prefetched=True).prefetched == shown


# -- hosts -----------------------------------------------------------------------------------------------


def at_workers(story: ClusterDriver) -> dict[str, int]:
    return {
        key.worker: cell.transitions[3]
        for key, cell in story.ledger.snapshot().items()
        if cell.transitions[3]
    }


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [(True, {"b@box": 1, "@box": 1}), (False, {"b@box": 1, "": 1})],
    ids=["shown", "not"],
)
def test_what_a_worker_did_stays_with_its_host_where_hosts_are_shown(hosts, expected):
    story = ClusterDriver(Limits(worker_timeout=10, worker_purge=10), BOTH, hosts=hosts)
    story.tell(*life("u1", "a@box"), *life("u2", "b@box"), heartbeat("b@box"))
    for _ in range(30):
        story.wait(1)
        story.tell(heartbeat("b@box"))
    assert at_workers(story) == expected
    story.wait(60)
    assert at_workers(story) == {"": 2}, "its last worker is gone"


# -- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("usual", [True, False], ids=["usual", "told in part"])
def test_a_failure_is_remembered_with_when_where_and_what(usual):
    story = ClusterDriver()
    story.tell(sent(), *([received(), started()] if usual else []), failed(at=5, exception="KeyError('x')"))
    (failure,) = story.shown().failures
    assert failure == Failure(T0 + 5, A, "w@h", "KeyError", "u1")


def test_the_newest_failure_is_the_first():
    story = ClusterDriver()
    story.tell(
        *(event for uuid in "ab" for event in (sent(uuid), received(uuid), started(uuid), failed(uuid)))
    )
    assert [failure.uuid for failure in story.shown().failures] == ["b", "a"]


# -- fewer buckets ---------------------------------------------------------------------------------------


def test_fewer_buckets_hold_what_more_did():
    native = {0: 9}
    exemplars = {0: Exemplar("a", 0.1), 2: Exemplar("b", 5.0)}
    thin = Histogram([1, 2, 4, 8], 7.5, native, exemplars).thinned([0, 1, 1, 2])
    assert (thin.counts, thin.total, thin.native) == ([1, 6, 8], 7.5, native)
    assert thin.exemplars == {0: Exemplar("a", 0.1), 1: Exemplar("b", 5.0)}


def test_places_that_are_not_those_of_the_buckets_are_refused():
    with pytest.raises(ValueError, match="argument 2"):
        Histogram([1, 2, 3]).thinned([0, 1])
