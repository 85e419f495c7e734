"""The comparison itself: it derives the right sums from recorded outcomes, and finds differences."""

from __future__ import annotations

from collections import Counter

from harness.outcomes import Attempt, FileOutcomes, Outcome

from .sums import (
    EXCEEDED,
    FAILURES,
    PREFETCH_WAITS,
    QUEUE_WAITS,
    REDELIVERIES,
    RUNTIMES,
    TASKS,
    differences,
    excesses,
    recorded_sums,
)

WORKER = "w@h"


def entries(**counts: int) -> Counter[Outcome]:
    """Return recorded outcomes of one task, by state."""
    states = {state.replace("exception_", "exception="): count for state, count in counts.items()}
    return Counter({Outcome("add", "q", state, WORKER): count for state, count in states.items()})


def key(metric: tuple[str, ...], *more: str) -> tuple[str, ...]:
    """Return the key of a sum of that task."""
    return (metric[0], "add", "q", WORKER, *more)


def test_every_start_has_waits_and_every_end_has_a_runtime():
    assert recorded_sums(entries(STARTED=3, SUCCESS=2, RETRY=1, redelivered=1)) == {
        key(TASKS, "STARTED"): 3,
        key(TASKS, "SUCCESS"): 2,
        key(TASKS, "RETRY"): 1,
        key(RUNTIMES, "SUCCESS"): 2,
        key(RUNTIMES, "RETRY"): 1,
        key(QUEUE_WAITS): 3,
        key(PREFETCH_WAITS): 3,
        (REDELIVERIES[0], "add", "q"): 1,
    }


def test_an_unregistered_task_fails_without_a_runtime():
    assert recorded_sums(
        entries(FAILURE=2, exception_NotRegistered=1, exception_KeyError=1, retries_exceeded=1)
    ) == {
        key(TASKS, "FAILURE"): 2,
        key(FAILURES, "NotRegistered"): 1,
        key(FAILURES, "KeyError"): 1,
        key(EXCEEDED): 1,
        key(RUNTIMES, "FAILURE"): 1,
    }


def test_without_task_sent_a_task_waits_from_its_redelivery_only():
    sums = recorded_sums(entries(STARTED=3, redelivered=1), lambda _: False)
    assert (sums[key(QUEUE_WAITS)], sums[key(PREFETCH_WAITS)]) == (1, 3)


def test_a_sum_that_is_lower_higher_or_in_another_queue_is_a_difference():
    recorded = recorded_sums(entries(STARTED=3))
    assert differences(recorded, recorded) == {}
    lower, elsewhere = key(TASKS, "STARTED"), (TASKS[0], "add", "other", WORKER, "STARTED")
    assert differences({**recorded, lower: 2, elsewhere: 1}, recorded) == {lower: (2, 3), elsewhere: (1, 0)}


def test_an_excess_is_more_than_happened_in_all_queues():
    recorded = recorded_sums(entries(STARTED=3))
    started, moved = key(TASKS, "STARTED"), (TASKS[0], "add", "unknown", WORKER, "STARTED")
    assert excesses({started: 1, moved: 2}, recorded) == {}
    assert excesses({started: 2, moved: 2}, recorded) == {("add", WORKER, "STARTED"): (4, 3)}


def test_a_transition_without_a_name_counts_for_a_missing_one():
    recorded = recorded_sums(entries(STARTED=3))
    started, nameless = key(TASKS, "STARTED"), (TASKS[0], "unknown", "unknown", WORKER, "STARTED")
    assert excesses({started: 2, nameless: 1}, recorded) == {}
    assert excesses({started: 2, nameless: 2}, recorded) == {("unknown", WORKER, "STARTED"): (2, 1)}
    other = (*nameless[:4], "SUCCESS")
    assert excesses({started: 2, other: 1}, recorded) == {("unknown", WORKER, "SUCCESS"): (1, 0)}


def test_outcomes_in_a_file_have_the_same_counts(tmp_path):
    outcomes = FileOutcomes(tmp_path / "outcomes")
    assert outcomes.counts_by_worker() == {}
    for _ in range(2):
        outcomes.record(Outcome("add", "q", "SUCCESS", WORKER), Attempt("id", 0))
    assert outcomes.counts_by_worker() == entries(SUCCESS=2)
    assert (outcomes.total("SUCCESS"), outcomes.total("FAILURE")) == (2, 0)
