"""The table of queue names and their expiry, and the schedule of queries."""

from __future__ import annotations

import uuid
from itertools import pairwise

import pytest

from celery_exporter.core import queues
from celery_exporter.core.queues import (
    MAX_BACK_OFF_SECONDS,
    QUEUE_TTL_SECONDS,
    Absence,
    PollSchedule,
    Queue,
    QueueTable,
)
from celery_exporter.core.task_names import QUEUE_NAME_RULES, shown_as
from celery_exporter.core.workers import WorkerInfo

from .cluster_driver import (
    ClusterDriver,
    heartbeat,
    sent,
)

MISSING, UNREADABLE = Absence.MISSING, Absence.UNREADABLE
LATER = QUEUE_TTL_SECONDS + 1


def table(limit: int = 3, **used: float) -> QueueTable:
    names = QueueTable(limit)
    for name, at in used.items():
        assert names.use(name, at) == 0
    return names


# -- names -----------------------------------------------------------------------------------------------


def test_an_unused_name_expires():
    names = table(old=0, new=LATER)
    names.expire(LATER)
    assert names.names() == ["new"]
    assert names.recent == set()


@pytest.mark.parametrize(
    "keep",
    [
        lambda names: names.request(["q"]),
        lambda names: names.consume({"q": False}, 0),
        lambda names: names.declare({"q": object()}),
    ],
    ids=["requested", "consumed", "declared"],
)
def test_a_requested_consumed_or_declared_name_does_not_expire(keep):
    names = table(q=0)
    keep(names)
    names.expire(LATER)
    assert names.names() == ["q"]


def test_a_name_expires_when_it_is_no_longer_declared_or_consumed():
    names = table(declared=0)
    names.declare({"declared": object()})
    names.consume({"consumed": False}, 5)
    names.declare({"declared": UNREADABLE})
    names.expire(LATER)
    assert names.names() == ["declared", "consumed"], "an error changes nothing"
    names.declare({"declared": MISSING})
    names.consume({}, LATER)
    names.expire(LATER + 5)
    assert names.names() == []


def test_a_full_table_evicts_the_longest_unused_name():
    names = table(a=1, b=2, c=3)
    names.use("a", 4)
    assert names.is_full
    assert names.use("d", 5) == 1
    assert names.names() == ["c", "a", "d"]
    assert names.recent == {"a", "c", "d"}


def test_undeclared_names_are_evicted_before_declared_ones():
    names = table(declared=1, missing=2, unknown=3)
    names.declare({"declared": object(), "missing": MISSING})
    names.use("d", 4)
    names.use("e", 5)
    assert names.names() == ["declared", "d", "e"]
    names.declare({name: object() for name in names.names()})
    assert names.use("f", 6) == 1
    assert names.names() == ["d", "e", "f"], "new names are always admitted"


def test_consumed_and_requested_names_are_never_evicted():
    names = table(2)
    names.request(["requested"])
    names.consume({"a": False, "b": False}, 1)
    assert names.use("c", 2) == 1
    assert names.names() == ["requested", "a", "b"], "requested names do not count towards the limit"
    names.consume({"b": False}, 3)
    assert names.use("c", 4) == 1
    assert names.names() == ["requested", "b", "c"]


def test_a_queue_needs_no_consumer_by_its_name_or_by_its_auto_delete_flag():
    names = QueueTable()
    names.consume({"mine": True, "jobs": False}, 0)
    names.consume({}, 1)
    exempt = [
        "mine",
        "bcast.1",
        "celeryev",
        "celeryev.1",
        "w@h.celery.pidbox",
        "w@h.dq2",
        "celery_delayed_27",
    ]
    assert [name for name in [*exempt, "jobs", "bcast", "dq2"] if names.needs_consumer(name)] == [
        "jobs",
        "bcast",
        "dq2",
    ]


def test_ages_survive_a_restart():
    old = table(a=10, b=600)
    old.declare({"b": object()})
    new = QueueTable(5)
    new.request(["b"])
    new.restore(old.records(), shift=-600, at=5)
    assert [(queue.name, queue.used) for queue in sorted(new.records(), key=lambda queue: queue.used)] == [
        ("a", -590),
        ("b", 0),
    ]
    new.expire(20)
    assert new.names() == ["b"]


def test_restoring_more_names_than_the_limit_keeps_the_newest():
    names = QueueTable(2)
    names.restore([Queue("a", 3), Queue("b", 1), Queue("c", 2)], shift=0, at=9)
    assert names.names() == ["c", "a"]


# -- schedule --------------------------------------------------------------------------------------------


@pytest.fixture
def low_limits(monkeypatch):
    monkeypatch.setattr(queues, "MAX_POLLS", 4)
    monkeypatch.setattr(queues, "MAX_PROBES", 2)


def answered(schedule: PollSchedule[int], queried: list[str], now: float, missing: str = "") -> list[str]:
    """Record an answer to each query; return the queried names."""
    schedule.record({name: MISSING if name in missing else 1 for name in queried}, now, 15)
    return queried


@pytest.mark.usefixtures("low_limits")
def test_queues_take_turns_and_no_value_becomes_stale():
    schedule: PollSchedule[int] = PollSchedule()
    names = [f"q{number}" for number in range(9)]
    for step in range(12):
        queried = answered(schedule, schedule.pick(names, (), 15 * step), 15 * step)
        assert len(queried) <= 5 + 2
        if step > 1:
            assert schedule.values(15 * step, 45) == dict.fromkeys(names, 1)


@pytest.mark.usefixtures("low_limits")
def test_a_missing_queue_is_queried_less_and_less_often():
    schedule: PollSchedule[int] = PollSchedule()
    times = [at for at in range(0, 3600, 15) if answered(schedule, schedule.pick(["q"], (), at), at, "q")]
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[:4] == [30, 60, 120, 240]
    assert gaps == sorted(gaps)
    assert gaps[-1] == MAX_BACK_OFF_SECONDS
    assert schedule.absent(MISSING) == {"q"}


@pytest.mark.usefixtures("low_limits")
def test_queries_for_missing_queues_are_bounded_and_delay_no_other_queue():
    schedule: PollSchedule[int] = PollSchedule()
    existing, missing = ["a", "b", "c"], ["U", "V", "W", "X", "Y", "Z"]
    answered(schedule, [*existing, *missing], 0, "UVWXYZ")
    queried = schedule.pick([*existing, *missing], (), 10_000)
    assert queried[:3] == existing
    assert len(queried) == max(queues.MAX_POLLS, 5) + queues.MAX_PROBES


@pytest.mark.usefixtures("low_limits")
def test_a_consumed_queue_comes_first_and_then_the_newest_names():
    schedule: PollSchedule[int] = PollSchedule()
    names = ["a", "b", "c", "d", "e", "f", "g", "h", "jobs", "i"]
    assert schedule.pick(names, {"jobs"}, 0)[:3] == ["jobs", "i", "h"]


def test_a_newly_consumed_queue_is_queried_at_once():
    schedule: PollSchedule[int] = PollSchedule()
    for at in (0, 100, 200, 300):
        answered(schedule, ["q"], at, "q")
    assert schedule.pick(["q"], (), 301) == []
    assert schedule.pick(["q"], {"q"}, 302) == ["q"]


def test_a_value_is_returned_until_it_is_stale():
    schedule: PollSchedule[int] = PollSchedule()
    schedule.record({"q": 0, "denied": UNREADABLE}, 100, 15)
    assert schedule.values(129, 30) == {"q": 0}
    assert schedule.values(130, 30) == {}
    assert schedule.absent(UNREADABLE) == {"denied"}
    schedule.clear_values()
    assert schedule.values(101, 30) == {}
    assert schedule.pick([], (), 102) == []
    assert schedule.absent(UNREADABLE) == set(), "names that are gone are removed"


# -- default rules   -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (f"bcast.{uuid.UUID(int=7)}", "bcast.*"),
        (f"customer-{uuid.UUID(int=7)}.high-{uuid.UUID(int=8)}", "customer-*"),
        (uuid.UUID(int=7).hex, "*"),
        (f"{uuid.UUID(int=7)}.reply.celery.pidbox", "*.celery.pidbox"),
        ("w1@host.celery.pidbox", "*.celery.pidbox"),
        ("w1@host.dq2", "*.dq2"),
        ("celery_delayed_27", "celery_delayed_*"),
        ("reports-20261128T1200", "reports-*"),
        *(
            (name, name)
            for name in ("celery", "priority.high", "shard-17", "q1234567", "bcast", "*.dq2", "bcast.*")
        ),
    ],
)
def test_generated_names_have_one_label_value_by_default(name, shown):
    assert shown_as(None, None, QUEUE_NAME_RULES)(name) == shown


def test_queues_beyond_the_limit_do_not_replace_consumed_and_declared_ones(monkeypatch):
    monkeypatch.setattr(queues, "MAX_QUEUES", 10)
    driver = ClusterDriver()
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("consumed",))}, driver.timestamp())
    driver.apply(sent(queue="declared"), sent("u2", queue=None))
    driver.cluster.queues.declare({"declared": object()})
    driver.apply(*(sent(f"a{number}", queue=f"q{number}") for number in range(12)))
    newest = {f"q{number}" for number in range(4, 12)}
    assert set(driver.cluster.queues.names()) == {"consumed", "declared", *newest}
    assert driver.cluster.limit_rejections["queue"] == 4


def test_queues_come_from_events_and_from_workers():
    driver = ClusterDriver()
    driver.apply(sent(queue="mail"))
    driver.cluster.record_inspection(
        {"a@h": WorkerInfo(queues=("mail", "celery")), "b@h": WorkerInfo()}, driver.timestamp()
    )
    assert set(driver.cluster.queues.names()) == {"mail", "celery"}


def test_unused_queues_expire():
    driver = ClusterDriver()
    driver.apply(heartbeat("w@h"), sent(queue="once"))
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("consumed",))}, driver.timestamp())
    for _ in range(2):
        driver.now += queues.QUEUE_TTL_SECONDS / 2 + 60
        driver.apply(sent("u2", queue="busy"), heartbeat("w@h"))
        driver.cluster.expire(driver.timestamp())
    assert set(driver.cluster.queues.names()) == {"busy", "consumed"}
    driver.apply(heartbeat("w@h", kind="offline"))
    driver.now += queues.QUEUE_TTL_SECONDS + 60
    driver.cluster.expire(driver.timestamp())
    driver.cluster.expire(driver.timestamp())
    assert driver.cluster.queues.names() == []
