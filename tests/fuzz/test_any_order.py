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
from celery_exporter.core import cluster as cluster_module
from celery_exporter.core import queues as queues_module
from celery_exporter.core import transitions as steps_module
from celery_exporter.core.cluster import ANSWER_SECONDS, Limits
from celery_exporter.core.transitions import EFFECTS
from celery_exporter.core.types import State
from celery_exporter.core.workers import WorkerInfo

from . import budget
from .pipeline import Pipeline

LOW = {
    cluster_module: {"MAX_TOMBSTONES": 4, "MAX_PARKED": 5, "MAX_LIMBO": 3, "MAX_WORKERS": 3},
    queues_module: {"MAX_QUEUES": 3},
    steps_module: {"MAX_DELIVERIES": 3},
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
        worker_purge=st.sampled_from([None, 0.0, 30.0]),
        max_tasks=st.integers(1, 5),
    )
    def begin(self, **limits) -> None:
        self.limits = Limits(task_ttl=300.0, max_series=SERIES * len(State), **limits)
        self.story: ClusterDriver = Pipeline(self.limits, self.labels)

    # -- what may happen -----------------------------------------------------------------------------

    @rule(
        kind=st.sampled_from(KINDS),
        uuid=st.sampled_from("uvwxyz"),
        at=few["at"],
        host=few["host"],
        more=fields,
    )
    def tell(self, kind, uuid, at, host, more) -> None:
        self.story.tell(task_event(kind, uuid, at, host, **more))
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
        self.story.tell(heartbeat(host, at, kind, **more))

    @rule(answers=st.dictionaries(few["host"], profiles, max_size=3))
    def learn(self, answers) -> None:
        self.story.cluster.learn(answers, self.story.moment())

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 2.1, 31.0, 61.0, 400.0]))
    def wait(self, seconds) -> None:
        self.story.now += seconds
        self.story.cluster.expire(self.story.moment())

    @precondition(lambda self: self.told.total() > 3)
    @rule(away=st.sampled_from([0.0, 10.0, 1000.0]), clock=st.sampled_from([0.0, 500.0]))
    def restart(self, away, clock) -> None:
        self.story = restarted(self.story, away, clock)

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
        cluster, ledger = self.story.cluster, self.story.ledger
        total: Counter[object] = Counter(
            evicted=cluster.tasks.evicted, folded=cluster.keys.folded, negative=ledger.negative_waits
        )
        for counted in (cluster.events, cluster.fallbacks, cluster.refused, cluster.repeated):
            total.update(counted)
        finest: Counter[object] = Counter()
        for key, cell in ledger.snapshot().items():
            found = Counter(
                {state: cell.transitions[state] for state in State}, redelivered=cell.redeliveries
            )
            found["raised"] = sum(cell.exceptions.values())
            for what, histogram in {
                **cell.runtime,
                "queued": cell.queue_wait,
                "prefetched": cell.prefetch_wait,
            }.items():
                if histogram is not None:
                    found[what, "sum"] = histogram.total
                    found.update({(what, index): count for index, count in enumerate(histogram.counts)})
            total.update(found)
            finest.update({(key.task_name, key.queue_name, what): count for what, count in found.items()})
        return total, finest

    @invariant()
    def every_task_is_in_exactly_one_room(self) -> None:
        tasks = self.story.cluster.tasks
        closed = [tasks.unidentified.tasks, tasks.finished, tasks.taken_out]
        rooms = [*closed, *(room.tasks for room in tasks.rooms())]
        uuids = [uuid for room in rooms for uuid in room]
        assert sorted(uuids) == sorted(set(uuids)) == sorted(tasks.uuids())
        assert all(tasks.get(uuid).room.tasks is room for room in rooms for uuid in room)
        assert set(tasks.deferred) == {*tasks.unidentified.tasks, *tasks.held}
        gauges = sum(group.count for group in tasks.in_states())
        assert gauges + len(tasks.unidentified.tasks) == len(tasks)

    @invariant()
    def tables_are_within_their_limits(self) -> None:
        cluster, low = self.story.cluster, LOW[cluster_module]
        # A finished task that is received anew is one too many, until the next new one comes.
        remembered = self.limits.max_tasks + low["MAX_TOMBSTONES"]
        assert len(cluster.tasks) <= remembered
        assert len(cluster.tasks.uuids()) <= remembered + 1
        assert len(cluster.tasks.unidentified.tasks) <= low["MAX_LIMBO"]
        assert len(cluster.tasks.finished) <= low["MAX_TOMBSTONES"]
        assert len(cluster.tasks.taken_out) <= low["MAX_TOMBSTONES"]
        assert len(cluster.workers) <= low["MAX_WORKERS"]
        assert len(cluster.queues) <= LOW[queues_module]["MAX_QUEUES"]
        others = 2  # with and without a worker
        assert len(cluster.keys) <= SERIES + others
        assert len(self.story.ledger.snapshot()) <= SERIES + others
        for cell in self.story.ledger.snapshot().values():
            assert len(cell.exceptions) <= LOW[ledger_module]["MAX_EXCEPTIONS"] + others  # other, and unknown

    @invariant()
    def it_can_be_shown(self) -> None:
        assert self.story.shown().tasks_tracked == len(self.story.cluster.tasks)

    def teardown(self) -> None:
        try:
            if hasattr(self, "story"):
                self.everything_told_is_counted_once()
        finally:
            self.patch.undo()

    def everything_told_is_counted_once(self) -> None:
        # What a worker received after it restarted waits for its answer.
        self.wait(ANSWER_SECONDS + 2 * self.limits.reorder_window)
        counted: Counter[State] = Counter()
        for cell in self.story.ledger.snapshot().values():
            counted.update({state: cell.transitions[state] for state in State})
        for kind, times in self.story.cluster.repeated.items():
            counted[EFFECTS[kind].counts] += times
        assert +counted == +self.told
        self.no_sum_falls()
        self.every_task_is_in_exactly_one_room()


@pytest.mark.parametrize("labels", [(), ("queue_name",), ("queue_name", "worker")], ids=str)
def test_the_laws_hold_in_any_order(labels):
    case = type("AnyOrder", (AnyOrder,), {"labels": labels}).TestCase
    case.settings = budget.tries(50, stateful_step_count=40)
    case("runTest").runTest()
