"""Buckets, native ones, exemplars, and the share of tasks that is observed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core.aggregates import Aggregates, is_sampled
from celery_exporter.core.histogram import MAX_INDEX, SCHEMA, ZERO_INDEX, Exemplar, Histogram, native_index
from celery_exporter.core.types import LabelSet, State
from celery_exporter.persistence import state as memory
from unit.persistence.state_records import remembered

from .aggregate_ops import Folded, Prefetched, Queued, Ran, book
from .cluster_driver import ClusterDriver, failed, received, retried, sent, started, succeeded

A, B = LabelSet("a", "q"), LabelSet("b", "q")
BOUNDS = (1.0, 2.0)


def bound(index: int) -> float:
    return 2.0 ** (index / 2**SCHEMA)


@given(st.floats(bound(ZERO_INDEX + 1), bound(MAX_INDEX)))
def test_a_native_bucket_has_what_is_between_its_bounds(value):
    index = native_index(value)
    assert bound(index - 1) * (1 - 1e-12) < value <= bound(index) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("value", "index"), [(0.0, ZERO_INDEX), (1e-9, ZERO_INDEX), (1.0, 0), (2.0, 8), (1e11, MAX_INDEX)]
)
def test_native_buckets_end_somewhere(value, index):
    assert native_index(value) == index


def test_everything_is_observed_in_the_buckets_and_natively():
    found = Histogram([0, 0, 0], native={}, exemplars={})
    for value, uuid in ((0.5, "u1"), (0.5, "u2"), (2.0, "u3"), (3.0, None), (9.0, "x" * 122)):
        found.observe(BOUNDS, value, uuid)
    assert (found.counts, found.total) == ([2, 1, 2], 15.0)
    assert found.native == {-8: 2, 8: 1, native_index(3.0): 1, native_index(9.0): 1}
    assert found.exemplars == {0: Exemplar("u2", 0.5), 1: Exemplar("u3", 2.0)}


def test_an_exemplar_has_128_characters_with_its_label_at_most():
    found = Histogram([0], exemplars={})
    found.observe((), 1.0, "x" * (128 - len("task_id")))
    assert len(found.exemplars) == 1


@pytest.mark.parametrize("uuid", ["a\0b", "a\nb", "\x1b[2J", "a\x85b", "a\u202eb", "\ufeff"])
def test_an_exemplar_has_printable_characters_only(uuid):
    found = Histogram([0], exemplars={})
    found.observe((), 1.0, "ключ é")
    found.observe((), 1.0, uuid)
    assert found.exemplars == {0: Exemplar("ключ é", 1.0)}


def test_a_copy_goes_its_own_way_though_nothing_was_observed_yet():
    found = Histogram([0, 0, 0], native={}, exemplars={})
    copy = found.copy()
    found.observe(BOUNDS, 0.5, "u1")
    assert copy == Histogram([0, 0, 0], native={}, exemplars={})
    assert found.copy() == found
    assert found.empty() == Histogram([0, 0, 0], native={})
    assert Histogram([1]).empty() == Histogram([0])


def ledger(**options) -> Aggregates:
    made = Aggregates(BOUNDS, BOUNDS, **options)
    book(made, [Ran(A, State.SUCCESS, 0.5, "u1"), Queued(A, 3.0, "u1"), Prefetched(A, 1.5, "u1")])
    return made


def test_folding_adds_native_buckets_up_and_keeps_exemplars():
    found = ledger(native_histograms=True, exemplars=True)
    book(found, [Queued(A, 7.0), Queued(B, 3.0, "u2"), Queued(B, 0.5, "u3"), Folded(A, B)])
    queued = found.snapshot()[B].queue_wait
    assert queued.native == {native_index(3.0): 2, -8: 1, native_index(7.0): 1}
    assert queued.exemplars == {2: Exemplar("u1", 3.0), 0: Exemplar("u3", 0.5)}


SENT, RECEIVED, STARTED = sent(), received(), started()


@pytest.mark.parametrize("end", [succeeded(), failed(), retried()], ids=["success", "failure", "retry"])
@pytest.mark.parametrize(
    "order",
    [(SENT, RECEIVED, STARTED), (RECEIVED, STARTED, SENT), (SENT, STARTED, RECEIVED)],
    ids=["in order", "task-sent is late", "task-received is late"],
)
def test_whatever_is_observed_is_of_a_task_that_is_known(order, end):
    """By its uuid: of that hangs whether it is of the share, and who is the exemplar."""
    driver = ClusterDriver(ledger=Aggregates((0.1, 1.0, 10.0), (0.1, 1.0, 10.0), exemplars=True))
    driver.apply(*order, end)
    driver.wait(3)
    aggregate = driver.aggregate()
    for observed in (*aggregate.runtime.values(), aggregate.queue_wait, aggregate.prefetch_wait):
        assert [exemplar.uuid for exemplar in observed.exemplars.values()] == ["u1"]
    assert len(aggregate.runtime) == 1


def test_late_news_of_a_retry_is_of_its_task_too():
    driver = ClusterDriver(ledger=Aggregates((0.1, 1.0, 10.0), (0.1, 1.0, 10.0), exemplars=True))
    driver.apply(sent(), received(), started(), retried(), received(at=1, retries=1), started(at=2))
    driver.wait(3)
    driver.apply(sent(at=0.5, retries=1))
    queued = driver.aggregate().queue_wait
    assert {exemplar.uuid for exemplar in queued.exemplars.values()} == {"u1"}
    assert sum(queued.counts) == len(queued.exemplars) == 2


def test_what_nobody_asked_for_is_not_kept():
    aggregate = ledger().snapshot()[A]
    assert (aggregate.queue_wait.native, aggregate.queue_wait.exemplars) == (None, None)


@given(st.lists(st.text(max_size=40), min_size=1), st.floats(0.01, 1))
def test_of_a_task_all_is_observed_or_nothing(uuids, share):
    found = Aggregates(BOUNDS, BOUNDS, histogram_sample_rate=share)
    for uuid in uuids:
        book(found, [Ran(A, State.SUCCESS, 0.5, uuid), Queued(A, 3.0, uuid), Prefetched(A, 1.5, uuid)])
    aggregate, chosen = found.snapshot()[A], sum(is_sampled(uuid, share) for uuid in uuids)
    assert [
        sum(each.counts)
        for each in (aggregate.runtime[State.SUCCESS], aggregate.queue_wait, aggregate.prefetch_wait)
    ] == [chosen] * 3


def test_invariant_7_waits_below_0_are_counted_of_all_tasks():
    found = Aggregates(BOUNDS, BOUNDS, histogram_sample_rate=0.01)
    book(found, [Queued(A, -1.0, f"task-{number}") for number in range(200)])
    assert found.negative_waits == 200


def test_the_share_is_the_share_and_1_is_all():
    uuids = [f"task-{number}" for number in range(10_000)]
    assert sum(is_sampled(uuid, 0.1) for uuid in uuids) == pytest.approx(1_000, rel=0.1)
    assert all(is_sampled(uuid, 1) for uuid in uuids)


@pytest.mark.parametrize(("before", "after"), [(False, False), (False, True), (True, False), (True, True)])
def test_invariant_5_native_histograms_outlast_a_restart_unless_they_are_new_or_gone(before, after):
    old = ClusterDriver(ledger=ledger(native_histograms=before))
    new = ClusterDriver(ledger=Aggregates(BOUNDS, BOUNDS, native_histograms=after, exemplars=True))
    memory.restore(remembered(old), new.cluster, new.moment())
    aggregate = new.ledger.snapshot()[A]
    kept = before or not after
    assert (
        State.SUCCESS in aggregate.runtime,
        aggregate.queue_wait is not None,
        aggregate.prefetch_wait is not None,
    ) == (kept,) * 3
    if kept:
        assert aggregate.queue_wait.native == ({native_index(3.0): 1} if after else None)
        assert aggregate.queue_wait.exemplars == {}


def test_a_state_whose_histograms_do_not_agree_is_refused():
    old, new = (
        ClusterDriver(ledger=ledger(native_histograms=True)),
        ClusterDriver(ledger=Aggregates(BOUNDS, BOUNDS, native_histograms=True)),
    )
    kept = remembered(old)
    kept.aggregates[A].queue_wait.native = None
    with pytest.raises(ValueError, match="not native"):
        memory.restore(kept, new.cluster, new.moment())
