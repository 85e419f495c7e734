"""The invariants of the core, for well-formed events of few tasks, workers and queues, in any order, over any
time.

hypothesis plays against a cluster whose limits are so low that each of them is reached.
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

from celery_exporter.core import aggregates as ledger_module
from celery_exporter.core import queues as queues_module
from celery_exporter.core import task_lifecycle as lifecycle_module
from celery_exporter.core import transitions as transitions_module
from celery_exporter.core import worker_registry as registry_module
from celery_exporter.core.limits import Limits
from celery_exporter.core.transitions import EFFECTS
from celery_exporter.core.types import State
from celery_exporter.core.worker_registry import ANSWER_SECONDS
from celery_exporter.core.workers import WorkerInfo

from . import budget
from .pipeline import Pipeline

LOW = {
    lifecycle_module: {"MAX_TOMBSTONES": 4, "MAX_DEFERRED_EVENTS": 5, "MAX_UNIDENTIFIED": 3},
    registry_module: {"MAX_WORKERS": 3},
    queues_module: {"MAX_QUEUES": 3},
    transitions_module: {"MAX_DELIVERIES": 3},
    ledger_module: {"MAX_EXCEPTIONS": 2},
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
profiles = st.builds(
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
        for module, limits in LOW.items():
            for name, value in limits.items():
                self.patch.setattr(module, name, value)
        self.told: Counter[State] = Counter()
        self.before: Counter[object] = Counter()
        self.finest: Counter[object] = Counter()

    @initialize(
        series_ttl=st.sampled_from([None, 50.0]),
        purge_offline_worker_metrics=st.sampled_from([None, 0.0, 30.0]),
        max_tasks=st.integers(1, 5),
    )
    def begin(self, **limits) -> None:
        self.limits = Limits(task_ttl=300.0, max_series=SERIES * len(State), **limits)
        self.driver: ClusterDriver = Pipeline(self.limits, self.labels)

    # -- what may happen -----------------------------------------------------------------------------

    @rule(
        kind=st.sampled_from(KINDS),
        uuid=st.sampled_from("uvwxyz"),
        at=few["at"],
        host=few["host"],
        more=fields,
    )
    def tell(self, kind, uuid, at, host, more) -> None:
        self.driver.apply(task_event(kind, uuid, at, host, **more))
        self.told[EFFECTS[f"task-{kind}"].counts] += 1

    @rule(kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=8), more=fields)
    def tell_a_life(self, kinds, more) -> None:
        for at, kind in enumerate(kinds):
            self.tell(kind, "t", at, "a@h", more)

    @rule(
        kind=st.sampled_from(["online", "heartbeat", "offline"]),
        host=few["host"],
        at=few["at"],
        pid=few["pid"],
        processed=st.none() | st.sampled_from([0, 1, 5, 2**40 - 1]),
        freq=st.none() | st.sampled_from([0, 2.0, 9e8]),
    )
    def beat(self, kind, host, at, **more) -> None:
        self.driver.apply(heartbeat(host, at, kind, **more))

    @rule(answers=st.dictionaries(few["host"], profiles, max_size=3))
    def learn(self, answers) -> None:
        self.driver.cluster.record_inspection(answers, self.driver.timestamp())

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 2.1, 31.0, 61.0, 400.0]))
    def wait(self, seconds) -> None:
        self.driver.now += seconds
        self.driver.cluster.expire(self.driver.timestamp())

    @precondition(lambda self: self.told.total() > 3)
    @rule(away=st.sampled_from([0.0, 10.0, 1000.0]), clock=st.sampled_from([0.0, 500.0]))
    def restart(self, away, clock) -> None:
        self.driver = restarted(self.driver, away, clock)

    # -- what has to hold ------------------------------------------------------------------------------

    @invariant()
    def no_sum_falls(self) -> None:
        now, finest = self.sums()
        assert {key: value for key, value in self.before.items() if now[key] < value} == {}
        self.before = now
        if self.limits.series_ttl is None:  # else an idle task may move to other
            assert {key: value for key, value in self.finest.items() if finest[key] < value} == {}
            self.finest = finest

    def sums(self) -> tuple[Counter[object], Counter[object]]:
        """Over all tasks; and by task and queue, over all workers."""
        cluster, ledger = self.driver.cluster, self.driver.aggregates
        total: Counter[object] = Counter(
            evicted=cluster.tasks.evicted,
            overflowed=cluster.label_sets.overflowed,
            negative=ledger.negative_waits,
        )
        for counted in (cluster.events, cluster.fallbacks, cluster.limit_rejections, cluster.repeated):
            total.update(counted)
        finest: Counter[object] = Counter()
        for key, aggregate in ledger.snapshot().items():
            found = Counter(
                {state: aggregate.transitions[state] for state in State}, redelivered=aggregate.redeliveries
            )
            found["raised"] = sum(aggregate.exceptions.values())
            for what, histogram in {
                **aggregate.runtime,
                "queued": aggregate.queue_wait,
                "prefetched": aggregate.prefetch_wait,
            }.items():
                if histogram is not None:
                    found[what, "sum"] = histogram.total
                    found.update({(what, index): count for index, count in enumerate(histogram.counts)})
            total.update(found)
            finest.update({(key.task_name, key.queue_name, what): count for what, count in found.items()})
        return total, finest

    @invariant()
    def every_task_is_in_exactly_one_room(self) -> None:
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
        cluster, low = self.driver.cluster, LOW[lifecycle_module]
        # A finished task that is received anew is one too many, until the next new one comes.
        remembered = self.limits.max_tasks + low["MAX_TOMBSTONES"]
        assert len(cluster.tasks) <= remembered
        assert len(cluster.tasks.uuids()) <= remembered + 1
        assert len(cluster.tasks.unidentified.tasks) <= low["MAX_UNIDENTIFIED"]
        assert len(cluster.tasks.finished) <= low["MAX_TOMBSTONES"]
        assert len(cluster.tasks.ended_silently) <= low["MAX_TOMBSTONES"]
        assert len(cluster.workers) <= LOW[registry_module]["MAX_WORKERS"]
        assert len(cluster.queues) <= LOW[queues_module]["MAX_QUEUES"]
        others = 2  # with and without a worker
        assert len(cluster.label_sets) <= SERIES + others
        assert len(self.driver.aggregates.snapshot()) <= SERIES + others
        for aggregate in self.driver.aggregates.snapshot().values():
            assert (
                len(aggregate.exceptions) <= LOW[ledger_module]["MAX_EXCEPTIONS"] + others
            )  # other, and unknown

    @invariant()
    def it_can_be_shown(self) -> None:
        assert self.driver.shown().tasks_tracked == len(self.driver.cluster.tasks)

    def teardown(self) -> None:
        try:
            if hasattr(self, "driver"):
                self.everything_told_is_counted_once()
        finally:
            self.patch.undo()

    def everything_told_is_counted_once(self) -> None:
        # What a worker received after it restarted waits for its answer.
        self.wait(ANSWER_SECONDS + 2 * self.limits.reorder_window)
        counted: Counter[State] = Counter()
        for aggregate in self.driver.aggregates.snapshot().values():
            counted.update({state: aggregate.transitions[state] for state in State})
        for kind, times in self.driver.cluster.repeated.items():
            counted[EFFECTS[kind].counts] += times
        assert +counted == +self.told
        self.no_sum_falls()
        self.every_task_is_in_exactly_one_room()


@pytest.mark.parametrize("labels", [(), ("queue_name",), ("queue_name", "worker")], ids=str)
def test_the_laws_hold_in_any_order(labels):
    case = type("AnyOrder", (AnyOrder,), {"labels": labels}).TestCase
    case.settings = budget.tries(50, stateful_step_count=40)
    case("runTest").runTest()
