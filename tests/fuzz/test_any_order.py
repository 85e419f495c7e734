"""The invariants of the core for valid events of few tasks, workers and queues, in any order and at any time.

The limits of the cluster are so low that each of them is reached.
"""

from __future__ import annotations

import string
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from unit.core.cluster_driver import T0, ClusterDriver, heartbeat, task_event
from unit.persistence.test_state import restarted

from celery_exporter.core import aggregates as aggregates_module
from celery_exporter.core import queues as queues_module
from celery_exporter.core import task_lifecycle as lifecycle_module
from celery_exporter.core import transitions as transitions_module
from celery_exporter.core import worker_registry as registry_module
from celery_exporter.core.limits import Limits
from celery_exporter.core.transitions import EFFECTS
from celery_exporter.core.types import State
from celery_exporter.core.worker_registry import REPLY_SECONDS
from celery_exporter.core.workers import WorkerInfo

from . import budget
from .pipeline import Pipeline

LOW_LIMITS = {
    lifecycle_module: {"MAX_TOMBSTONES": 4, "MAX_DEFERRED_EVENTS": 5, "MAX_UNIDENTIFIED": 3},
    registry_module: {"MAX_WORKERS": 3},
    queues_module: {"MAX_QUEUES": 3},
    transitions_module: {"MAX_DELIVERIES": 3},
    aggregates_module: {"MAX_EXCEPTIONS": 2},
}
SERIES = 4
KINDS = [kind.removeprefix("task-") for kind in EFFECTS]

few: dict[str, st.SearchStrategy] = {
    "uuid": st.sampled_from("uvwxyz"),
    "name": st.sampled_from([None, "add", "mul", "unknown"]),
    "queue": st.sampled_from([None, "q", "r", "s", "other"]),
    "host": st.sampled_from(["a@h", "b@h", "other"]) | st.sampled_from(string.ascii_lowercase),
    "pid": st.none() | st.integers(1, 3),
    "at": st.integers(-9, 9) | st.sampled_from([1 - T0, 9e10]),
}
fields = st.fixed_dictionaries(
    {},
    optional={
        "name": few["name"],
        "queue": few["queue"],
        "pid": few["pid"],
        "retries": st.none() | st.integers(0, 3),
        "runtime": st.none() | st.sampled_from([0, 0.5, 9.9e10]),
        "exception": st.none()
        | st.sampled_from(["A()", "B()", "C()", "other()", "NotRegistered('add')", "?"]),
        "requeue": st.none() | st.booleans(),
        "eta": st.none()
        | st.sampled_from(["2023-11-14T22:13:25Z", "0001-01-01T00:00:00", "9999-12-31T23:59:59", "?"]),
    },
)
worker_infos = st.builds(
    WorkerInfo,
    queues=st.none() | st.lists(st.sampled_from(["q", "r", "s"]), max_size=2).map(tuple),
    registered=st.none() | st.lists(st.sampled_from(["add", "mul", "div"]), max_size=2).map(tuple),
    pool=st.sampled_from([None, "solo", "prefork"]),
    pool_size=st.none() | st.integers(0, 4),
)


class AnyOrder(RuleBasedStateMachine):
    labels: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        budget.count()
        self.patch = pytest.MonkeyPatch()
        for module, limits in LOW_LIMITS.items():
            for name, value in limits.items():
                self.patch.setattr(module, name, value)
        self.sent: Counter[State] = Counter()
        self.totals: Counter[object] = Counter()
        self.by_label: Counter[object] = Counter()

    @initialize(
        series_ttl=st.sampled_from([None, 50.0]),
        purge_offline_worker_metrics=st.sampled_from([None, 0.0, 30.0]),
        max_tasks=st.integers(1, 5),
    )
    def begin(self, **limits) -> None:
        self.limits = Limits(task_ttl=300.0, max_series=SERIES * len(State), **limits)
        self.driver: ClusterDriver = Pipeline(self.limits, self.labels)

    # -- rules ---------------------------------------------------------------------------------------

    @rule(
        kind=st.sampled_from(KINDS),
        uuid=st.sampled_from("uvwxyz"),
        at=few["at"],
        host=few["host"],
        more=fields,
    )
    def apply_event(self, kind, uuid, at, host, more) -> None:
        self.driver.apply(task_event(kind, uuid, at, host, **more))
        self.sent[EFFECTS[f"task-{kind}"].counts] += 1

    @rule(kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=8), more=fields)
    def apply_events_of_one_task(self, kinds, more) -> None:
        for at, kind in enumerate(kinds):
            self.apply_event(kind, "t", at, "a@h", more)

    @rule(
        kind=st.sampled_from(["online", "heartbeat", "offline"]),
        host=few["host"],
        at=few["at"],
        pid=few["pid"],
        processed=st.none() | st.sampled_from([0, 1, 5, 2**40 - 1]),
        freq=st.none() | st.sampled_from([0, 2.0, 9e8]),
    )
    def apply_worker_event(self, kind, host, at, **more) -> None:
        self.driver.apply(heartbeat(host, at, kind, **more))

    @rule(replies=st.dictionaries(few["host"], worker_infos, max_size=3))
    def record_inspection(self, replies) -> None:
        self.driver.cluster.record_inspection(replies, self.driver.timestamp())

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 2.1, 31.0, 61.0, 400.0]))
    def wait(self, seconds) -> None:
        self.driver.now += seconds
        self.driver.cluster.expire(self.driver.timestamp())

    @precondition(lambda self: self.sent.total() > 3)
    @rule(down_seconds=st.sampled_from([0.0, 10.0, 1000.0]), clock=st.sampled_from([0.0, 500.0]))
    def restart(self, down_seconds, clock) -> None:
        self.driver = restarted(self.driver, down_seconds, clock)

    # -- invariants ------------------------------------------------------------------------------------

    @invariant()
    def no_sum_falls(self) -> None:
        totals, by_label = self.sums()
        assert {key: value for key, value in self.totals.items() if totals[key] < value} == {}
        self.totals = totals
        if self.limits.series_ttl is None:  # otherwise an idle task may move to other
            assert {key: value for key, value in self.by_label.items() if by_label[key] < value} == {}
            self.by_label = by_label

    def sums(self) -> tuple[Counter[object], Counter[object]]:
        """Return the sums over all tasks, and those by task and queue over all workers."""
        cluster, aggregates = self.driver.cluster, self.driver.aggregates
        totals: Counter[object] = Counter(
            evicted=cluster.tasks.evicted,
            overflowed=cluster.label_sets.overflowed,
            negative=aggregates.negative_waits,
        )
        for counter in (cluster.events, cluster.fallbacks, cluster.limit_rejections, cluster.repeated):
            totals.update(counter)
        by_label: Counter[object] = Counter()
        for label_set, aggregate in aggregates.snapshot().items():
            counts = Counter(
                {state: aggregate.transitions[state] for state in State}, redelivered=aggregate.redeliveries
            )
            counts["raised"] = sum(aggregate.exceptions.values())
            for name, histogram in {
                **aggregate.runtime,
                "queued": aggregate.queue_wait,
                "prefetched": aggregate.prefetch_wait,
            }.items():
                if histogram is not None:
                    counts[name, "sum"] = histogram.total
                    counts.update({(name, index): count for index, count in enumerate(histogram.counts)})
            totals.update(counts)
            labels = label_set.task_name, label_set.queue_name
            by_label.update({(*labels, name): count for name, count in counts.items()})
        return totals, by_label

    @invariant()
    def every_task_is_in_exactly_one_bucket(self) -> None:
        tasks = self.driver.cluster.tasks
        closed = [tasks.unidentified.tasks, tasks.finished, tasks.ended_silently]
        buckets = [*closed, *(bucket.tasks for bucket in tasks.buckets())]
        uuids = [uuid for bucket in buckets for uuid in bucket]
        assert sorted(uuids) == sorted(set(uuids)) == sorted(tasks.uuids())
        assert all(tasks.get(uuid).bucket.tasks is bucket for bucket in buckets for uuid in bucket)
        assert set(tasks.deferred) == {*tasks.unidentified.tasks, *tasks.awaiting_sent}
        gauges = sum(group.count for group in tasks.in_states())
        assert gauges + len(tasks.unidentified.tasks) == len(tasks)

    @invariant()
    def tables_are_within_their_limits(self) -> None:
        cluster, low = self.driver.cluster, LOW_LIMITS[lifecycle_module]
        # A finished task that is received again exceeds the limit by one until the next new task.
        max_stored = self.limits.max_tasks + low["MAX_TOMBSTONES"]
        assert len(cluster.tasks) <= max_stored
        assert len(cluster.tasks.uuids()) <= max_stored + 1
        assert len(cluster.tasks.unidentified.tasks) <= low["MAX_UNIDENTIFIED"]
        assert len(cluster.tasks.finished) <= low["MAX_TOMBSTONES"]
        assert len(cluster.tasks.ended_silently) <= low["MAX_TOMBSTONES"]
        assert len(cluster.workers) <= LOW_LIMITS[registry_module]["MAX_WORKERS"]
        assert len(cluster.queues) <= LOW_LIMITS[queues_module]["MAX_QUEUES"]
        others = 2  # with and without a worker
        assert len(cluster.label_sets) <= SERIES + others
        assert len(self.driver.aggregates.snapshot()) <= SERIES + others
        for aggregate in self.driver.aggregates.snapshot().values():
            assert (
                len(aggregate.exceptions) <= LOW_LIMITS[aggregates_module]["MAX_EXCEPTIONS"] + others
            )  # other, and unknown

    @invariant()
    def a_snapshot_can_be_taken(self) -> None:
        assert self.driver.shown().tasks_tracked == len(self.driver.cluster.tasks)

    def teardown(self) -> None:
        try:
            if hasattr(self, "driver"):
                self.every_event_is_counted_once()
        finally:
            self.patch.undo()

    def every_event_is_counted_once(self) -> None:
        # Tasks that a worker received after a restart wait for its reply.
        self.wait(REPLY_SECONDS + 2 * self.limits.reorder_window)
        counted: Counter[State] = Counter()
        for aggregate in self.driver.aggregates.snapshot().values():
            counted.update({state: aggregate.transitions[state] for state in State})
        for kind, times in self.driver.cluster.repeated.items():
            counted[EFFECTS[kind].counts] += times
        assert +counted == +self.sent
        self.no_sum_falls()
        self.every_task_is_in_exactly_one_bucket()


@pytest.mark.parametrize("labels", [(), ("queue_name",), ("queue_name", "worker")], ids=str)
def test_the_invariants_hold_in_any_order(labels):
    case = type("AnyOrder", (AnyOrder,), {"labels": labels}).TestCase
    case.settings = budget.examples(50, stateful_step_count=40)
    case("runTest").runTest()
