"""Sums only grow, folding moves them, and there are no more series than somebody chose."""

from __future__ import annotations

import pytest

from celery_exporter.core.aggregates import MAX_CLIENTS, MAX_EXCEPTIONS, MAX_FAILURES, Aggregate, Aggregates
from celery_exporter.core.histogram import Histogram
from celery_exporter.core.types import EXCLUDED, LabelSet, State

from .aggregate_ops import (
    Booking,
    Folded,
    Moved,
    Prefetched,
    Queued,
    Raised,
    Ran,
    Redelivered,
    SentBy,
    book,
)

A, B, C = LabelSet("a", "q"), LabelSet("b", "q"), LabelSet("c", "q")


def ledger(*bookings: Booking, most: int = 1000) -> Aggregates:
    made = Aggregates((1.0, 2.0), (10.0,), most)
    book(made, bookings)
    return made


def raised(key: LabelSet, count: int, first: int = 0) -> list[Booking]:
    return [Raised(key, f"Error{number}") for number in range(first, first + count)]


def test_an_observation_is_in_the_first_bucket_that_is_not_below_it():
    found = ledger(*(Ran(A, State.SUCCESS, seconds) for seconds in (0.0, 1.0, 1.5, 2.0, 2.1)))
    histogram = found.snapshot()[A].runtime[State.SUCCESS]
    assert (histogram.counts, histogram.total) == ([2, 2, 1], pytest.approx(6.6))


def test_waits_have_bounds_of_their_own():
    aggregate = ledger(Queued(A, 9.0), Queued(A, 11.0), Prefetched(A, 10.0)).snapshot()[A]
    assert (aggregate.queue_wait.counts, aggregate.prefetch_wait.counts) == ([1, 1], [1, 0])


def test_a_time_below_0_is_0_and_counted():
    found = ledger(Ran(A, State.RETRY, -1.0), Queued(A, -0.1), Prefetched(A, -5.0), Queued(A, 0.0))
    aggregate = found.snapshot()[A]
    assert (
        aggregate.runtime[State.RETRY].total,
        aggregate.queue_wait.total,
        aggregate.prefetch_wait.total,
    ) == (
        0.0,
        0.0,
        0.0,
    )
    assert found.negative_waits == 3


def test_the_newest_moment_of_a_state_is_kept():
    aggregate = ledger(Moved(A, State.SUCCESS, 5.0), Moved(A, State.SUCCESS, 3.0)).snapshot()[A]
    assert (aggregate.transitions[State.SUCCESS], aggregate.last) == (2, {State.SUCCESS: 5.0})


def test_a_task_has_so_many_exceptions_and_the_rest_is_other():
    found = ledger(*raised(A, MAX_EXCEPTIONS + 7), *raised(A, 1), Raised(A, "unknown"), *raised(B, 1))
    aggregate = found.snapshot()[A]
    assert len(aggregate.exceptions) == MAX_EXCEPTIONS + 2
    assert (
        aggregate.exceptions["other"],
        aggregate.exceptions["Error0"],
        aggregate.exceptions["unknown"],
    ) == (7, 2, 1)
    assert found.snapshot()[B].exceptions == {"Error0": 1}
    assert found.overflowed == 7


def test_all_tasks_together_have_so_many_exceptions():
    found = ledger(*raised(A, 3), *raised(B, 3), most=4)
    assert found.snapshot()[A].exceptions == {"Error0": 1, "Error1": 1, "Error2": 1}
    assert found.snapshot()[B].exceptions == {"Error0": 1, "other": 2}
    assert found.overflowed == 2


def test_the_newest_failures_are_remembered_but_for_those_of_hidden_tasks():
    many = [Raised(A, "Error", f"u{number}") for number in range(MAX_FAILURES + 5)]
    found = ledger(*many, Raised(EXCLUDED, "Error", "hidden"))
    assert [failure.uuid for failure in found.failures] == [f"u{n}" for n in range(5, MAX_FAILURES + 5)]


def sent_by(key: LabelSet, count: int, first: int = 0) -> list[Booking]:
    return [SentBy(key, f"host-{number}") for number in range(first, first + count)]


def test_a_task_has_so_many_clients_and_the_rest_is_other():
    found = ledger(*sent_by(A, MAX_CLIENTS + 7), *sent_by(A, 1), *sent_by(B, 1))
    clients = found.snapshot()[A].clients
    assert len(clients) == MAX_CLIENTS + 1
    assert (clients["other"], clients["host-0"]) == (7, 2)
    assert found.snapshot()[B].clients == {"host-0": 1}
    assert found.overflowed == 7


def test_all_tasks_together_have_so_many_clients_which_take_no_room_from_exceptions():
    found = ledger(*sent_by(A, 3), *sent_by(B, 3), *raised(A, 4), most=4)
    assert found.snapshot()[A].clients == {"host-0": 1, "host-1": 1, "host-2": 1}
    assert found.snapshot()[B].clients == {"host-0": 1, "other": 2}
    assert "other" not in found.snapshot()[A].exceptions


def test_folding_adds_clients_up_and_gives_room_back():
    found = ledger(*sent_by(A, 2), *sent_by(B, 2, first=1), most=4)
    book(found, [Folded(A, B)])
    assert found.snapshot()[B].clients == {"host-0": 1, "host-1": 2, "host-2": 1}
    book(found, sent_by(C, 2))  # for one of which there is room
    assert found.snapshot()[C].clients == {"host-0": 1, "other": 1}


def test_folding_moves_no_more_clients_than_there_is_room_for():
    found = ledger(*sent_by(A, MAX_CLIENTS), *sent_by(B, MAX_CLIENTS, first=10))
    book(found, [Folded(A, B)])
    clients = found.snapshot()[B].clients
    assert (len(clients), clients["other"], clients["host-10"]) == (MAX_CLIENTS + 1, 10, 2)


def test_folding_moves_every_sum_and_gives_room_back():
    everything = [
        Moved(A, State.FAILURE, 5.0),
        Ran(A, State.FAILURE, 1.5),
        Queued(A, 3.0),
        Prefetched(A, 4.0),
        Redelivered(A),
        *raised(A, 2),
    ]
    found = ledger(*everything, *raised(B, 1), Moved(B, State.FAILURE, 6.0), Redelivered(B), most=3)
    before = found.snapshot()[A]
    book(found, [Folded(A, B)])
    aggregate = found.snapshot()[B]
    assert A not in found.snapshot()
    assert aggregate.transitions[State.FAILURE] == 2
    assert aggregate.last == {State.FAILURE: 6.0}
    assert (aggregate.runtime, aggregate.queue_wait, aggregate.prefetch_wait) == (
        before.runtime,
        before.queue_wait,
        before.prefetch_wait,
    )
    assert aggregate.redeliveries == 2
    assert aggregate.exceptions == {"Error0": 2, "Error1": 1}
    book(found, raised(B, 1, first=5))  # two were left
    assert aggregate.exceptions | {"Error5": 1} == found.snapshot()[B].exceptions
    assert found.overflowed == 0


def test_folding_adds_histograms_up():
    waits = [Queued(A, 3.0), Queued(B, 20.0), Prefetched(A, 4.0), Prefetched(B, 30.0)]
    found = ledger(*waits, Ran(A, State.SUCCESS, 1.0), Ran(B, State.SUCCESS, 2.0))
    book(found, [Folded(A, B)])
    aggregate = found.snapshot()[B]
    assert (aggregate.prefetch_wait.counts, aggregate.prefetch_wait.total) == ([1, 1], 34.0)
    assert (aggregate.queue_wait.counts, aggregate.queue_wait.total) == ([1, 1], 23.0)
    assert (aggregate.runtime[State.SUCCESS].counts, aggregate.runtime[State.SUCCESS].total) == (
        [1, 1, 0],
        3.0,
    )


def test_sums_that_do_not_match_are_refused_and_not_cut_to_fit():
    """A state file may hold them."""
    with pytest.raises(ValueError, match="shorter"):
        Histogram([1, 2, 3]).merge(Histogram([1, 2]))
    aggregate = Aggregate.empty()
    aggregate.transitions.pop()
    with pytest.raises(ValueError, match="shorter"):
        Aggregate.empty().merge(aggregate)


@pytest.mark.parametrize("counts", [[Moved(B, State.FAILURE, 6.0)], []], ids=["counted", "new"])
def test_sums_that_moved_here_are_marked_and_stay_so(counts):
    found = ledger(Moved(A, State.FAILURE, 5.0), *counts)
    assert not any(aggregate.inherited for aggregate in found.snapshot().values())
    book(found, [Folded(A, B)])
    assert found.snapshot()[B].inherited is True
    assert found.snapshot()[B].copy().inherited is True
    book(found, [Moved(A, State.FAILURE, 7.0), Moved(C, State.FAILURE, 7.0), Folded(B, A)])
    assert {key: aggregate.inherited for key, aggregate in found.snapshot().items()} == {A: True, C: False}


def test_folding_what_nobody_counted_is_nothing():
    found = ledger(Folded(A, B))
    assert found.snapshot() == {}


def test_a_snapshot_does_not_change_with_what_comes_later():
    bookings = [Moved(A, State.SUCCESS, 1.0), Ran(A, State.SUCCESS, 1.0), Queued(A, 1.0), *raised(A, 1)]
    bookings += sent_by(A, 1)
    found = ledger(*bookings, Prefetched(A, 1.0))
    before = found.snapshot()
    book(found, [*bookings, Prefetched(A, 1.0), Redelivered(A)])
    assert before == ledger(*bookings, Prefetched(A, 1.0)).snapshot()


def test_what_clients_of_a_host_sent_is_forgotten_and_gives_room_back():
    found = ledger(*sent_by(A, 3), *sent_by(B, 1, first=3), most=3)
    assert found.snapshot()[B].clients == {"other": 1}
    found.remove_clients({"host-1", "host-2", "host-9"})
    book(found, sent_by(B, 1, first=3))
    assert found.snapshot()[A].clients == {"host-0": 1}
    assert found.snapshot()[B].clients == {"other": 1, "host-3": 1}
