"""Classic and native buckets, exemplars, and the sample rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core.aggregates import Aggregates, is_sampled
from celery_exporter.core.histogram import MAX_INDEX, SCHEMA, ZERO_INDEX, Exemplar, Histogram, native_index
from celery_exporter.core.types import LabelSet, State
from celery_exporter.persistence import state
from unit.persistence.state_records import saved_cluster

from .aggregate_ops import apply_all, merge, observe_prefetch_wait, observe_queue_wait, observe_runtime
from .cluster_driver import ClusterDriver, failed, received, retried, sent, started, succeeded

A, B = LabelSet("a", "q"), LabelSet("b", "q")
BOUNDS = (1.0, 2.0)


def bound(index: int) -> float:
    return 2.0 ** (index / 2**SCHEMA)


@given(st.floats(bound(ZERO_INDEX + 1), bound(MAX_INDEX)))
def test_a_native_bucket_has_the_values_between_its_bounds(value):
    index = native_index(value)
    assert bound(index - 1) * (1 - 1e-12) < value <= bound(index) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("value", "index"), [(0.0, ZERO_INDEX), (1e-9, ZERO_INDEX), (1.0, 0), (2.0, 8), (1e11, MAX_INDEX)]
)
def test_native_buckets_are_bounded(value, index):
    assert native_index(value) == index


def test_classic_and_native_buckets_observe_every_value():
    histogram = Histogram([0, 0, 0], native={}, exemplars={})
    for value, uuid in ((0.5, "u1"), (0.5, "u2"), (2.0, "u3"), (3.0, None), (9.0, "x" * 122)):
        histogram.observe(BOUNDS, value, uuid)
    assert (histogram.counts, histogram.total) == ([2, 1, 2], 15.0)
    assert histogram.native == {-8: 2, 8: 1, native_index(3.0): 1, native_index(9.0): 1}
    assert histogram.exemplars == {0: Exemplar("u2", 0.5), 1: Exemplar("u3", 2.0)}


def test_an_exemplar_and_its_label_have_at_most_128_characters():
    histogram = Histogram([0], exemplars={})
    histogram.observe((), 1.0, "x" * (128 - len("task_id")))
    assert len(histogram.exemplars) == 1


@pytest.mark.parametrize(("length", "has_trace"), [(36, True), (81, True), (82, False), (121, False)])
def test_an_exemplar_names_the_trace_if_both_ids_fit(length, has_trace):
    """The trace of the workflow is found by the id of its first task."""
    exemplar = Exemplar("x" * length, 1.0, "8c9973a6-c3dc-4aff-a799-b6cff97bdfd0")
    trace = {"trace_id": "8c9973a6c3dc4affa799b6cff97bdfd0"} if has_trace else {}
    assert exemplar.labels() == {"task_id": "x" * length, **trace}
    assert sum(map(len, (*exemplar.labels(), *exemplar.labels().values()))) <= 128
    assert Exemplar("x" * length, 1.0).labels() == {"task_id": "x" * length}


@pytest.mark.parametrize("uuid", ["a\0b", "a\nb", "\x1b[2J", "a\x85b", "a\u202eb", "\ufeff"])
def test_an_exemplar_has_printable_characters_only(uuid):
    histogram = Histogram([0], exemplars={})
    histogram.observe((), 1.0, "ключ é")
    histogram.observe((), 1.0, uuid)
    assert histogram.exemplars == {0: Exemplar("ключ é", 1.0)}


def test_a_copy_of_an_empty_histogram_is_independent():
    histogram = Histogram([0, 0, 0], native={}, exemplars={})
    copy = histogram.copy()
    histogram.observe(BOUNDS, 0.5, "u1")
    assert copy == Histogram([0, 0, 0], native={}, exemplars={})
    assert histogram.copy() == histogram
    assert histogram.empty() == Histogram([0, 0, 0], native={})
    assert Histogram([1]).empty() == Histogram([0])


def aggregates_after_one_task(**options) -> Aggregates:
    aggregates = Aggregates(BOUNDS, BOUNDS, **options)
    apply_all(
        aggregates,
        [
            observe_runtime(A, State.SUCCESS, 0.5, "u1"),
            observe_queue_wait(A, 3.0, "u1"),
            observe_prefetch_wait(A, 1.5, "u1"),
        ],
    )
    return aggregates


def test_merging_adds_native_buckets_up_and_keeps_exemplars():
    aggregates = aggregates_after_one_task(native_histograms=True, exemplars=True)
    apply_all(
        aggregates,
        [
            observe_queue_wait(A, 7.0),
            observe_queue_wait(B, 3.0, "u2"),
            observe_queue_wait(B, 0.5, "u3"),
            merge(A, B),
        ],
    )
    queue_wait = aggregates.snapshot()[B].queue_wait
    assert queue_wait.native == {native_index(3.0): 2, -8: 1, native_index(7.0): 1}
    assert queue_wait.exemplars == {2: Exemplar("u1", 3.0), 0: Exemplar("u3", 0.5)}


SENT, RECEIVED, STARTED = sent(), received(), started()


@pytest.mark.parametrize("end", [succeeded(), failed(), retried()], ids=["success", "failure", "retry"])
@pytest.mark.parametrize(
    "order",
    [(SENT, RECEIVED, STARTED), (RECEIVED, STARTED, SENT), (SENT, STARTED, RECEIVED)],
    ids=["in order", "task-sent is late", "task-received is late"],
)
def test_every_observation_has_the_id_of_its_task(order, end):
    """The uuid determines whether it is sampled, and is the value of the exemplar."""
    driver = ClusterDriver(aggregates=Aggregates((0.1, 1.0, 10.0), (0.1, 1.0, 10.0), exemplars=True))
    driver.apply(*order, end)
    driver.wait(3)
    aggregate = driver.aggregate()
    for histogram in (*aggregate.runtime.values(), aggregate.queue_wait, aggregate.prefetch_wait):
        assert [exemplar.uuid for exemplar in histogram.exemplars.values()] == ["u1"]
    assert len(aggregate.runtime) == 1


def test_a_late_observation_of_a_retry_has_the_id_of_its_task():
    driver = ClusterDriver(aggregates=Aggregates((0.1, 1.0, 10.0), (0.1, 1.0, 10.0), exemplars=True))
    driver.apply(sent(), received(), started(), retried(), received(at=1, retries=1), started(at=2))
    driver.wait(3)
    driver.apply(sent(at=0.5, retries=1))
    queue_wait = driver.aggregate().queue_wait
    assert {exemplar.uuid for exemplar in queue_wait.exemplars.values()} == {"u1"}
    assert sum(queue_wait.counts) == len(queue_wait.exemplars) == 2


def test_native_buckets_and_exemplars_are_off_by_default():
    aggregate = aggregates_after_one_task().snapshot()[A]
    assert (aggregate.queue_wait.native, aggregate.queue_wait.exemplars) == (None, None)


@given(st.lists(st.text(max_size=40), min_size=1), st.floats(0.01, 1))
def test_a_task_is_observed_completely_or_not_at_all(uuids, sample_rate):
    aggregates = Aggregates(BOUNDS, BOUNDS, histogram_sample_rate=sample_rate)
    for uuid in uuids:
        apply_all(
            aggregates,
            [
                observe_runtime(A, State.SUCCESS, 0.5, uuid),
                observe_queue_wait(A, 3.0, uuid),
                observe_prefetch_wait(A, 1.5, uuid),
            ],
        )
    aggregate, sampled = aggregates.snapshot()[A], sum(is_sampled(uuid, sample_rate) for uuid in uuids)
    assert [
        sum(histogram.counts)
        for histogram in (aggregate.runtime[State.SUCCESS], aggregate.queue_wait, aggregate.prefetch_wait)
    ] == [sampled] * 3


def test_invariant_7_negative_waits_are_counted_for_all_tasks():
    aggregates = Aggregates(BOUNDS, BOUNDS, histogram_sample_rate=0.01)
    apply_all(aggregates, [observe_queue_wait(A, -1.0, f"task-{number}") for number in range(200)])
    assert aggregates.negative_waits == 200


def test_the_sample_rate_is_the_ratio_of_observed_tasks():
    uuids = [f"task-{number}" for number in range(10_000)]
    assert sum(is_sampled(uuid, 0.1) for uuid in uuids) == pytest.approx(1_000, rel=0.1)
    assert all(is_sampled(uuid, 1) for uuid in uuids)


@pytest.mark.parametrize(("before", "after"), [(False, False), (False, True), (True, False), (True, True)])
def test_invariant_5_native_histograms_survive_a_restart_unless_the_setting_changed(before, after):
    old = ClusterDriver(aggregates=aggregates_after_one_task(native_histograms=before))
    new = ClusterDriver(aggregates=Aggregates(BOUNDS, BOUNDS, native_histograms=after, exemplars=True))
    state.restore(saved_cluster(old), new.cluster, new.timestamp())
    aggregate = new.aggregates.snapshot()[A]
    is_kept = before or not after
    assert (
        State.SUCCESS in aggregate.runtime,
        aggregate.queue_wait is not None,
        aggregate.prefetch_wait is not None,
    ) == (is_kept,) * 3
    if is_kept:
        assert aggregate.queue_wait.native == ({native_index(3.0): 1} if after else None)
        assert aggregate.queue_wait.exemplars == {}


def test_a_state_with_inconsistent_histograms_is_rejected():
    old, new = (
        ClusterDriver(aggregates=aggregates_after_one_task(native_histograms=True)),
        ClusterDriver(aggregates=Aggregates(BOUNDS, BOUNDS, native_histograms=True)),
    )
    saved = saved_cluster(old)
    saved.aggregates[A].queue_wait.native = None
    with pytest.raises(ValueError, match="not native"):
        state.restore(saved, new.cluster, new.timestamp())


def test_rebucketing_moves_every_count_and_exemplar():
    native = {0: 9}
    exemplars = {0: Exemplar("a", 0.1), 2: Exemplar("b", 5.0)}
    rebucketed = Histogram([1, 2, 4, 8], 7.5, native, exemplars).rebucketed([0, 1, 1, 2])
    assert (rebucketed.counts, rebucketed.total, rebucketed.native) == ([1, 6, 8], 7.5, native)
    assert rebucketed.exemplars == {0: Exemplar("a", 0.1), 1: Exemplar("b", 5.0)}


def test_rebucketing_with_too_few_indexes_is_an_error():
    with pytest.raises(ValueError, match="argument 2"):
        Histogram([1, 2, 3]).rebucketed([0, 1])
