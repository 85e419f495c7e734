"""Records of transitions: they add up to the sums, and have what is known of their attempt."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.events import EventWithAncestry, EventWithArguments, decode
from celery_exporter.core.limits import Limits
from celery_exporter.core.records import (
    ATTEMPT_ENDS,
    LATE_SECONDS,
    MAX_HELD,
    NO_ARGUMENTS,
    NO_MEASUREMENTS,
    MeasuredRecord,
    Measurements,
    Record,
    RecordBuilder,
)
from celery_exporter.core.types import State

from .cluster_driver import (
    T0,
    ClusterDriver,
    failed,
    received,
    rejected,
    retried,
    sent,
    started,
    succeeded,
    task_event,
)
from .lives import LIFE, RETRY_ELSEWHERE, RETRY_LIFE, any_task_event

ROOT, PARENT = "0" * 8, "1" * 8


def recording_driver(
    limits: Limits | None = None, sample_rate: float | None = None, **options
) -> ClusterDriver:
    aggregates = Aggregates((0.1, 1.0), (0.1, 1.0), histogram_sample_rate=sample_rate)
    records = RecordBuilder(aggregates, sample_rate)
    return ClusterDriver(limits, aggregates=aggregates, records=records, **options)


def records_of(*events: dict, **options) -> list[Record]:
    driver = recording_driver(**options)
    driver.apply(*events)
    driver.wait(2.5)
    return driver.cluster.take_records()


def test_nothing_is_recorded_while_no_sink_wants_records():
    driver = ClusterDriver()
    driver.apply(*LIFE)
    assert driver.cluster.take_records() == []


def test_a_task_has_a_record_for_each_transition_and_the_last_one_has_all_times():
    ids = {"root_id": ROOT, "parent_id": PARENT}
    eta = "2023-11-14T22:13:21+00:00"  # T0 + 1 s
    events = [sent(eta=eta, **ids), received(at=0.5, eta=eta, **ids), started(at=3), failed(at=7)]
    records = records_of(*events)
    assert [record.state.name for record in records] == ["PENDING", "RECEIVED", "STARTED", "FAILURE"]
    last = records[-1]
    assert (last.uuid, last.root, last.parent) == ("u1", ROOT, PARENT)
    assert (last.name, last.queue, last.worker, last.client) == ("add", "q", "w@h", "client@h")
    assert (last.attempt, last.generation, last.exception) == (0, 0, "ValueError")
    times = (last.first_sent, last.sent, last.eta, last.received, last.started, last.timestamp)
    assert [time and time - T0 for time in times] == [0, 0, 1, 0.5, 3, 7]
    assert (records[2].queue_wait, records[2].prefetch_wait, last.runtime) == (2, 2, 4)
    assert [record.is_final for record in records] == [False, False, False, True]
    assert records[0].worker is None


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_records_do_not_depend_on_the_order_of_events_within_the_window(order):
    usual, records = records_of(*LIFE), records_of(*(LIFE[index] for index in order))
    assert Counter(record.state for record in records) == Counter(record.state for record in usual)
    assert {record.name for record in records} == {"add"}
    (last,) = (record for record in records if record.is_final)
    assert last.queue == "q"


@pytest.mark.parametrize("life", [RETRY_LIFE, RETRY_ELSEWHERE])
def test_each_attempt_of_a_retried_task_has_its_own_times(life):
    ends = [record for record in records_of(*life) if record.state in ATTEMPT_ENDS]
    assert [(record.state.name, record.attempt, record.is_final) for record in ends] == [
        ("RETRY", 0, False),
        ("SUCCESS", 1, True),
    ]
    first, second = ends
    assert first.sent == T0
    assert second.sent == next(event["timestamp"] for event in life if event.get("retries") == 1)
    assert second.first_sent == T0
    assert None not in (first.received, first.started, second.received, second.started)


def test_a_retry_names_itself_as_its_parent_which_is_none():
    own = {"root_id": ROOT, "parent_id": "u1"}
    life = [sent(root_id=ROOT, parent_id=PARENT), received(root_id=ROOT, parent_id=PARENT), started()]
    records = records_of(*life, sent(at=1, retries=1, **own), retried(at=1), received(at=2, retries=1, **own))
    assert {record.parent for record in records} == {PARENT}


def test_a_task_that_is_given_back_is_not_over():
    events = [sent(), received(), rejected(requeue=True), received(at=2), started(at=3), succeeded(at=4)]
    records = records_of(*events)
    assert [record.is_final for record in records] == [False] * 5 + [True]
    assert (records[-1].sent, records[-1].received) == (T0, T0 + 2)


def test_replaced_work_under_the_same_uuid_is_another_generation():
    replaced = [
        sent("u1", 1, name="body"),
        received("u1", 2, name="body"),
        started("u1", 3),
        succeeded("u1", 4),
    ]
    records = records_of(sent(), received(), started(), *replaced)
    assert [(record.name, record.attempt, record.generation) for record in records if record.is_final] == [
        ("body", 0, 1)
    ]


def test_records_of_states_that_no_sink_wants_are_not_made():
    driver = recording_driver()
    driver.cluster.restrict_records([State.SUCCESS])
    driver.apply(*LIFE, *(event | {"uuid": "u2"} for event in LIFE))
    records = driver.cluster.take_records()
    assert [record.state for record in records] == [State.SUCCESS] * 2
    assert None not in (records[0].sent, records[0].received, records[0].started)


def test_excluded_tasks_have_no_records():
    records = records_of(*LIFE, sent("u2", name="kept"), show=lambda name: "" if name == "add" else name)
    assert [record.name for record in records] == ["kept"]


def test_a_sample_rate_applies_to_tasks():
    driver = recording_driver(sample_rate=0.5)
    for number in range(200):
        driver.apply(*(event | {"uuid": f"u{number}"} for event in LIFE))
    records = driver.cluster.take_records()
    assert set(Counter(record.uuid for record in records).values()) == {4}
    assert sum(driver.aggregate().queue_wait.counts) == len({record.uuid for record in records})


def test_arguments_are_recorded_on_request_only():
    events = [
        sent(args="('a',)", kwargs="{}"),
        received(args="('a',)"),
        started(),
        succeeded(result="'x'" + "y" * 9_999),
    ]
    assert [record.arguments for record in records_of(*events)] == [NO_ARGUMENTS] * 4
    aggregates = Aggregates((), ())
    driver = ClusterDriver(aggregates=aggregates, records=RecordBuilder(aggregates, arguments=True))
    for event in decode(json.dumps(events).encode(), EventWithArguments):
        driver.cluster.apply(event, driver.timestamp())
    last = driver.cluster.take_records()[-1].arguments
    assert (last.args, last.kwargs, last.result[:4], len(last.result)) == ("('a',)", "{}", "'x'y", 4_096)


@pytest.mark.parametrize("traces", [False, True])
@pytest.mark.parametrize("root", [ROOT, None])
def test_exemplars_have_the_root_that_records_have_if_there_are_traces(traces, root):
    aggregates = Aggregates((), (), exemplars=True)
    driver = ClusterDriver(aggregates=aggregates, records=RecordBuilder(aggregates))
    if traces:
        aggregates.root_of = driver.cluster.root_of
    driver.apply(sent(root_id=root), received(root_id=root), started(), succeeded())
    expected = (root or "u1") if traces else None
    aggregate = driver.aggregate()
    for histogram in (aggregate.queue_wait, aggregate.prefetch_wait, *aggregate.runtime.values()):
        assert [(each.uuid, each.root) for each in histogram.exemplars.values()] == [("u1", expected)]
    assert {record.root for record in driver.cluster.take_records()} == {root}


@settings(max_examples=200)
@given(st.lists(st.tuples(any_task_event, st.sampled_from([0.0, 0.5, 3.0, 70.0])), max_size=30))
def test_records_add_up_to_the_sums_for_any_events(events):
    driver = recording_driver(Limits(max_tasks=100))
    for event, pause in events:
        driver.apply(event)
        driver.wait(pause)
    driver.wait(3)
    records = driver.cluster.take_records()
    assert Counter((record.name, record.queue, record.state.name) for record in records) == driver.counts()
    for label_set, aggregate in driver.aggregates.snapshot().items():
        key = (label_set.task_name, label_set.queue_name)
        own = [record for record in records if (record.name, record.queue) == key]
        waits = sum(record.queue_wait is not None for record in own)
        # One late task-sent may show how long several deliveries have waited.
        most = waits + sum(record.state is State.PENDING for record in own)
        assert waits <= _count(aggregate.queue_wait) <= most
        assert sum(record.prefetch_wait is not None for record in own) == _count(aggregate.prefetch_wait)
        runtimes = Counter(record.state for record in own if record.runtime is not None)
        assert runtimes == {state: _count(histogram) for state, histogram in aggregate.runtime.items()}
        total = aggregate.prefetch_wait.total if aggregate.prefetch_wait else 0
        assert sum(record.prefetch_wait or 0.0 for record in own) == pytest.approx(total)
    tasks = [driver.cluster.tasks.get(uuid) for uuid in driver.cluster.tasks.uuids()]
    assert all(len(task.details.rest.open) <= 8 for task in tasks if task.details and task.details.rest)


def _count(histogram) -> int:
    return sum(histogram.counts) if histogram else 0


# -- measurements --------------------------------------------------------------------------------------------


def measured(uuid: str = "u1", at: float = 0.25, **fields) -> dict:
    return task_event("measured", uuid, at, **{"name": "add", "fields": {"size": 2}, **fields})


def last_records(driver: ClusterDriver) -> list[Record]:
    return [
        record for record in driver.cluster.take_records() if isinstance(record, Record) and record.is_final
    ]


def test_each_measurement_is_a_record():
    driver = recording_driver(show=lambda name: f"shown {name}")
    first = measured(tags={"a": "b"}, fields={"x": 1, "hit": True, "s": "t"})
    events = [first, sent(root_id="r"), received(), measured(name=None, fields=None, host="v@h")]
    for event in decode(json.dumps([*events, measured("u2", root_id="own")]).encode(), EventWithAncestry):
        driver.cluster.apply(event, driver.timestamp())
    records = [record for record in driver.cluster.take_records() if isinstance(record, MeasuredRecord)]
    assert records == [
        MeasuredRecord(
            "u1",
            None,
            "shown add",
            "w@h",
            T0 + 0.25,
            Measurements({"a": "b"}, {"x": 1.0, "hit": True, "s": "t"}),
        ),
        MeasuredRecord("u1", "r", "shown add", "v@h", T0 + 0.25, NO_MEASUREMENTS),
        MeasuredRecord("u2", "own", "shown add", "w@h", T0 + 0.25, Measurements({}, {"size": 2.0})),
    ]


def test_without_a_builder_nothing_is_kept_of_a_measurement():
    driver = ClusterDriver()
    driver.apply(measured())
    assert driver.cluster.take_records() == []


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("end", [succeeded(), failed()])
def test_the_last_record_has_what_the_task_measured_whenever_it_comes(position, end):
    life = [sent(), received(), started(), end]
    life.insert(position, measured(tags={"a": "b"}))
    driver = recording_driver()
    driver.apply(measured("u0"), *life)
    driver.wait(1)
    (last,) = last_records(driver)
    assert last.measurements == Measurements({"a": "b"}, {"size": 2.0})


def test_only_the_last_record_of_a_task_has_measurements_and_these_are_of_all_attempts():
    driver = recording_driver()
    driver.apply(*RETRY_LIFE[:5], measured(fields={"first": 1, "both": 1}), *RETRY_LIFE[5:7])
    driver.apply(measured(fields={"second": 2, "both": 2}), *RETRY_LIFE[7:])
    driver.wait(1)
    records = [record for record in driver.cluster.take_records() if isinstance(record, Record)]
    assert [record.measurements for record in records[:-1]] == [NO_MEASUREMENTS] * (len(records) - 1)
    assert records[-1].measurements.fields == {"first": 1.0, "both": 2.0, "second": 2.0}


def test_a_last_record_waits_only_if_tasks_of_its_name_measure():
    driver = recording_driver()
    driver.apply(*LIFE)
    assert len(last_records(driver)) == 1
    driver.apply(measured("u0"), *(event | {"uuid": "u2"} for event in LIFE))
    assert last_records(driver) == []
    driver.wait(LATE_SECONDS)
    assert [record.uuid for record in last_records(driver)] == ["u2"]
    driver.apply(measured("u2"))
    driver.apply(sent("u2", at=100), received("u2", at=101), started("u2", at=102), succeeded("u2", at=103))
    driver.wait(1)
    assert [record.measurements for record in last_records(driver)] == [NO_MEASUREMENTS], "it was too late"


def test_records_that_wait_are_returned_at_the_end():
    driver = recording_driver()
    driver.apply(measured("u0"), *LIFE, measured())
    assert [record.is_final for record in driver.cluster.take_records() if isinstance(record, Record)] == [
        False
    ] * 3
    (last,) = driver.cluster.take_records(last=True)
    assert last.measurements.fields == {"size": 2.0}
    assert driver.cluster.take_records(last=True) == []


def test_a_task_that_ends_twice_has_two_last_records():
    driver = recording_driver()
    driver.apply(measured("u0"), *LIFE[:3], received(at=1, host="v@h"), started(at=2, host="v@h"))
    driver.wait(3)
    driver.apply(measured(fields={"first": 1}), succeeded(at=3))
    driver.apply(measured(fields={"second": 2}), succeeded(at=4, host="v@h"), measured(fields={"second": 3}))
    driver.wait(1)
    first, second = (record.measurements.fields for record in last_records(driver))
    assert (first, second) == ({"first": 1.0, "second": 2.0}, {"second": 3.0})


def test_records_that_wait_are_bounded():
    driver = recording_driver()
    driver.apply(measured("u0"))
    for number in range(MAX_HELD + 1):
        driver.apply(*(event | {"uuid": f"u{number}"} for event in LIFE))
    assert [record.uuid for record in last_records(driver)] == [f"u{n}" for n in range(1 + MAX_HELD // 100)]
    driver.wait(1)
    assert len(last_records(driver)) == MAX_HELD - MAX_HELD // 100


def test_measurements_of_a_task_that_never_ends_expire():
    driver = recording_driver(Limits(task_ttl=10))
    driver.apply(measured())
    driver.wait(12)
    driver.apply(*LIFE)
    driver.wait(1)
    assert [record.measurements for record in last_records(driver)] == [NO_MEASUREMENTS]


def test_excluded_and_other_samples_have_no_measured_records():
    driver = recording_driver(show=lambda name: "" if name == "add" else name)
    driver.apply(measured(), measured("u2", name="mul"))
    assert [record.name for record in driver.cluster.take_records()] == ["mul"]
    driver = recording_driver(sample_rate=0.5)
    driver.apply(*(event | {"uuid": f"u{number}"} for number in range(200) for event in (*LIFE, measured())))
    driver.wait(1)
    records = driver.cluster.take_records()
    assert {*Counter(record.uuid for record in records).values()} == {5}


def test_measuring_names_are_bounded():
    driver = recording_driver()
    driver.apply(*(measured(f"m{number}", name=f"name {number}") for number in range(2_000)))
    driver.apply(*(event | {"uuid": "m1999", "name": "name 1999"} for event in LIFE))
    (last,) = last_records(driver)
    assert last.measurements.fields == {"size": 2.0}, "it does not wait, and what came in time is there"
