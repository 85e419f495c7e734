"""Sums only grow, merging moves them, and the number of series has a limit."""

from __future__ import annotations

import pytest

from celery_exporter.core.aggregates import (
    MAX_CLIENTS,
    MAX_EXCEPTIONS,
    MAX_FAILURES,
    Aggregate,
    Aggregates,
    Failure,
)
from celery_exporter.core.histogram import Histogram
from celery_exporter.core.types import EXCLUDED, LabelSet, State

from .aggregate_ops import (
    Operation,
    apply_all,
    count_failure,
    count_redelivery,
    count_sender,
    count_transition,
    exceed_retries,
    merge,
    observe_prefetch_wait,
    observe_queue_wait,
    observe_runtime,
)
from .cluster_driver import T0, ClusterDriver, failed, received, sent, started

A, B, C = LabelSet("a", "q"), LabelSet("b", "q"), LabelSet("c", "q")


def aggregates_after(*operations: Operation, max_series: int = 1000) -> Aggregates:
    aggregates = Aggregates((1.0, 2.0), (10.0,), max_series)
    apply_all(aggregates, operations)
    return aggregates


def failures(label_set: LabelSet, count: int, first: int = 0) -> list[Operation]:
    return [count_failure(label_set, f"Error{number}") for number in range(first, first + count)]


def test_an_observation_is_counted_in_the_first_bucket_with_an_equal_or_greater_bound():
    aggregates = aggregates_after(
        *(observe_runtime(A, State.SUCCESS, seconds) for seconds in (0.0, 1.0, 1.5, 2.0, 2.1))
    )
    histogram = aggregates.snapshot()[A].runtime[State.SUCCESS]
    assert (histogram.counts, histogram.total) == ([2, 2, 1], pytest.approx(6.6))


def test_waits_have_their_own_bounds():
    aggregate = aggregates_after(
        observe_queue_wait(A, 9.0), observe_queue_wait(A, 11.0), observe_prefetch_wait(A, 10.0)
    ).snapshot()[A]
    assert (aggregate.queue_wait.counts, aggregate.prefetch_wait.counts) == ([1, 1], [1, 0])


@pytest.mark.parametrize(
    ("ready", "received", "latency"),
    [(15.0, 19.5, 5.0), (None, 19.5, 0.5), (15.0, None, 5.0), (21.0, 19.5, 0.0)],
)
def test_the_latency_is_the_time_since_sent_or_else_since_received(ready, received, latency):
    aggregates = Aggregates((1.0,), (1.0, 10.0), latency=True)
    aggregates.observe_start(A, 20.0, ready, received, "u1")
    aggregates.observe_start(A, 20.0, None, None, "u2")
    assert aggregates.snapshot()[A].latency.total == latency
    assert sum(aggregates.snapshot()[A].latency.counts) == 1


def test_there_is_no_latency_unless_a_profile_shows_it():
    aggregates = Aggregates((1.0,), (1.0, 10.0))
    aggregates.observe_start(A, 20.0, 15.0, 19.5, "u1")
    assert aggregates.snapshot()[A].latency is None


def test_the_latency_moves_with_the_other_sums_and_a_snapshot_keeps_its_own():
    aggregates = Aggregates((1.0,), (1.0, 10.0), latency=True)
    for label_set, ready in ((A, 15.0), (B, 18.0)):
        aggregates.observe_start(label_set, 20.0, ready, None, "u1")
    before = aggregates.snapshot()
    aggregates.merge(A, B)
    aggregates.merge(B, C)
    assert aggregates.snapshot()[C].latency.total == 7.0
    assert (before[A].latency.total, before[B].latency.total) == (5.0, 2.0)


def test_a_negative_time_counts_as_0_and_is_counted():
    aggregates = aggregates_after(
        observe_runtime(A, State.RETRY, -1.0),
        observe_queue_wait(A, -0.1),
        observe_prefetch_wait(A, -5.0),
        observe_queue_wait(A, 0.0),
    )
    aggregate = aggregates.snapshot()[A]
    assert (
        aggregate.runtime[State.RETRY].total,
        aggregate.queue_wait.total,
        aggregate.prefetch_wait.total,
    ) == (
        0.0,
        0.0,
        0.0,
    )
    assert aggregates.negative_waits == 3


def test_the_newest_timestamp_of_a_state_is_kept():
    aggregate = aggregates_after(
        count_transition(A, State.SUCCESS, 5.0), count_transition(A, State.SUCCESS, 3.0)
    ).snapshot()[A]
    assert (aggregate.transitions[State.SUCCESS], aggregate.last) == (2, {State.SUCCESS: 5.0})


def test_exceptions_of_a_label_set_beyond_the_limit_are_counted_as_other():
    aggregates = aggregates_after(
        *failures(A, MAX_EXCEPTIONS + 7), *failures(A, 1), count_failure(A, "unknown"), *failures(B, 1)
    )
    aggregate = aggregates.snapshot()[A]
    assert len(aggregate.exceptions) == MAX_EXCEPTIONS + 2
    assert (
        aggregate.exceptions["other"],
        aggregate.exceptions["Error0"],
        aggregate.exceptions["unknown"],
    ) == (7, 2, 1)
    assert aggregates.snapshot()[B].exceptions == {"Error0": 1}
    assert aggregates.overflowed == 7


def test_exceptions_of_all_label_sets_beyond_the_limit_are_counted_as_other():
    aggregates = aggregates_after(*failures(A, 3), *failures(B, 3), max_series=4)
    assert aggregates.snapshot()[A].exceptions == {"Error0": 1, "Error1": 1, "Error2": 1}
    assert aggregates.snapshot()[B].exceptions == {"Error0": 1, "other": 2}
    assert aggregates.overflowed == 2


def test_the_newest_failures_are_kept_except_those_of_excluded_tasks():
    many = [count_failure(A, "Error", f"u{number}") for number in range(MAX_FAILURES + 5)]
    aggregates = aggregates_after(*many, count_failure(EXCLUDED, "Error", "excluded"))
    assert [failure.uuid for failure in aggregates.failures] == [f"u{n}" for n in range(5, MAX_FAILURES + 5)]


def sendings(label_set: LabelSet, count: int, first: int = 0) -> list[Operation]:
    return [count_sender(label_set, f"host-{number}") for number in range(first, first + count)]


def test_clients_of_a_label_set_beyond_the_limit_are_counted_as_other():
    aggregates = aggregates_after(*sendings(A, MAX_CLIENTS + 7), *sendings(A, 1), *sendings(B, 1))
    clients = aggregates.snapshot()[A].clients
    assert len(clients) == MAX_CLIENTS + 1
    assert (clients["other"], clients["host-0"]) == (7, 2)
    assert aggregates.snapshot()[B].clients == {"host-0": 1}
    assert aggregates.overflowed == 7


def test_clients_of_all_label_sets_have_a_limit_of_their_own():
    aggregates = aggregates_after(*sendings(A, 3), *sendings(B, 3), *failures(A, 4), max_series=4)
    assert aggregates.snapshot()[A].clients == {"host-0": 1, "host-1": 1, "host-2": 1}
    assert aggregates.snapshot()[B].clients == {"host-0": 1, "other": 2}
    assert "other" not in aggregates.snapshot()[A].exceptions


def test_merging_adds_clients_up_and_frees_their_series():
    aggregates = aggregates_after(*sendings(A, 2), *sendings(B, 2, first=1), max_series=4)
    apply_all(aggregates, [merge(A, B)])
    assert aggregates.snapshot()[B].clients == {"host-0": 1, "host-1": 2, "host-2": 1}
    apply_all(aggregates, sendings(C, 2))  # the limit allows one of them
    assert aggregates.snapshot()[C].clients == {"host-0": 1, "other": 1}


def test_merging_respects_the_limit_of_clients():
    aggregates = aggregates_after(*sendings(A, MAX_CLIENTS), *sendings(B, MAX_CLIENTS, first=10))
    apply_all(aggregates, [merge(A, B)])
    clients = aggregates.snapshot()[B].clients
    assert (len(clients), clients["other"], clients["host-10"]) == (MAX_CLIENTS + 1, 10, 2)


def test_merging_moves_every_sum_and_frees_series():
    operations = [
        count_transition(A, State.FAILURE, 5.0),
        observe_runtime(A, State.FAILURE, 1.5),
        observe_queue_wait(A, 3.0),
        observe_prefetch_wait(A, 4.0),
        count_redelivery(A),
        *failures(A, 2),
        exceed_retries(A),
    ]
    aggregates = aggregates_after(
        *operations,
        *failures(B, 1),
        count_transition(B, State.FAILURE, 6.0),
        count_redelivery(B),
        observe_runtime(B, State.RETRY, 2.0),
        exceed_retries(B),
        max_series=3,
    )
    before = aggregates.snapshot()[A]
    apply_all(aggregates, [merge(A, B)])
    aggregate = aggregates.snapshot()[B]
    assert A not in aggregates.snapshot()
    assert aggregate.transitions[State.FAILURE] == 2
    assert aggregate.last == {State.FAILURE: 6.0}
    assert (aggregate.execution_seconds, aggregate.retries_exceeded) == (3.5, 2)
    assert (aggregate.runtime[State.FAILURE], aggregate.queue_wait, aggregate.prefetch_wait) == (
        before.runtime[State.FAILURE],
        before.queue_wait,
        before.prefetch_wait,
    )
    assert aggregate.redeliveries == 2
    assert aggregate.exceptions == {"Error0": 4, "Error1": 1}
    apply_all(aggregates, failures(B, 1, first=5))  # the limit is 3
    assert aggregate.exceptions | {"Error5": 1} == aggregates.snapshot()[B].exceptions
    assert aggregates.overflowed == 0


def test_merging_adds_histograms_up():
    waits = [
        observe_queue_wait(A, 3.0),
        observe_queue_wait(B, 20.0),
        observe_prefetch_wait(A, 4.0),
        observe_prefetch_wait(B, 30.0),
    ]
    aggregates = aggregates_after(
        *waits, observe_runtime(A, State.SUCCESS, 1.0), observe_runtime(B, State.SUCCESS, 2.0)
    )
    apply_all(aggregates, [merge(A, B)])
    aggregate = aggregates.snapshot()[B]
    assert (aggregate.prefetch_wait.counts, aggregate.prefetch_wait.total) == ([1, 1], 34.0)
    assert (aggregate.queue_wait.counts, aggregate.queue_wait.total) == ([1, 1], 23.0)
    assert (aggregate.runtime[State.SUCCESS].counts, aggregate.runtime[State.SUCCESS].total) == (
        [1, 1, 0],
        3.0,
    )


def test_merging_sums_of_different_lengths_is_an_error():
    """A damaged state file may contain such sums."""
    with pytest.raises(ValueError, match="shorter"):
        Histogram([1, 2, 3]).merge(Histogram([1, 2]))
    aggregate = Aggregate.empty()
    aggregate.transitions.pop()
    with pytest.raises(ValueError, match="shorter"):
        Aggregate.empty().merge(aggregate)


@pytest.mark.parametrize("counts", [[count_transition(B, State.FAILURE, 6.0)], []], ids=["counted", "new"])
def test_merged_sums_are_marked_as_inherited(counts):
    aggregates = aggregates_after(count_transition(A, State.FAILURE, 5.0), *counts)
    assert not any(aggregate.inherited for aggregate in aggregates.snapshot().values())
    apply_all(aggregates, [merge(A, B)])
    assert aggregates.snapshot()[B].inherited is True
    assert aggregates.snapshot()[B].copy().inherited is True
    apply_all(
        aggregates,
        [count_transition(A, State.FAILURE, 7.0), count_transition(C, State.FAILURE, 7.0), merge(B, A)],
    )
    assert {label_set: aggregate.inherited for label_set, aggregate in aggregates.snapshot().items()} == {
        A: True,
        C: False,
    }


def test_merging_an_unknown_label_set_changes_nothing():
    aggregates = aggregates_after(merge(A, B))
    assert aggregates.snapshot() == {}


def test_later_changes_do_not_affect_a_snapshot():
    operations = [
        count_transition(A, State.SUCCESS, 1.0),
        observe_runtime(A, State.SUCCESS, 1.0),
        observe_queue_wait(A, 1.0),
        *failures(A, 1),
    ]
    operations += sendings(A, 1)
    aggregates = aggregates_after(*operations, observe_prefetch_wait(A, 1.0))
    before = aggregates.snapshot()
    apply_all(aggregates, [*operations, observe_prefetch_wait(A, 1.0), count_redelivery(A)])
    assert before == aggregates_after(*operations, observe_prefetch_wait(A, 1.0)).snapshot()


def test_removing_the_clients_of_a_host_frees_their_series():
    aggregates = aggregates_after(*sendings(A, 3), *sendings(B, 1, first=3), max_series=3)
    assert aggregates.snapshot()[B].clients == {"other": 1}
    aggregates.remove_clients({"host-1", "host-2", "host-9"})
    apply_all(aggregates, sendings(B, 1, first=3))
    assert aggregates.snapshot()[A].clients == {"host-0": 1}
    assert aggregates.snapshot()[B].clients == {"other": 1, "host-3": 1}


@pytest.mark.parametrize("usual", [True, False], ids=["usual", "reported in part"])
def test_a_failure_is_kept_with_its_details(usual):
    driver = ClusterDriver()
    driver.apply(sent(), *([received(), started()] if usual else []), failed(at=5, exception="KeyError('x')"))
    (failure,) = driver.shown().failures
    assert failure == Failure(T0 + 5, LabelSet("add", "q"), "w@h", "KeyError", "u1")


def test_the_newest_failure_comes_first():
    driver = ClusterDriver()
    driver.apply(
        *(event for uuid in "ab" for event in (sent(uuid), received(uuid), started(uuid), failed(uuid)))
    )
    assert [failure.uuid for failure in driver.shown().failures] == ["b", "a"]
