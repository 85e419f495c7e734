"""The comparison itself: what it takes from a ledger, and that it sees what is wrong."""

from __future__ import annotations

from collections import Counter

from harness.outcomes import FileOutcomes, Outcome

from .sums import FAILURES, PREFETCHED, QUEUED, REDELIVERIES, RUNS, TASKS, differences, excesses, written

WORKER = "w@h"


def entries(**counts: int) -> Counter[Outcome]:
    states = {state.replace("exception_", "exception="): count for state, count in counts.items()}
    return Counter({Outcome("add", "q", state, WORKER): count for state, count in states.items()})


def place(metric: tuple[str, ...], *more: str) -> tuple[str, ...]:
    return (metric[0], "add", "q", WORKER, *more)


def test_each_start_is_a_wait_and_each_end_a_run():
    assert written(entries(STARTED=3, SUCCESS=2, RETRY=1, redelivered=1)) == {
        place(TASKS, "STARTED"): 3,
        place(TASKS, "SUCCESS"): 2,
        place(TASKS, "RETRY"): 1,
        place(RUNS, "SUCCESS"): 2,
        place(RUNS, "RETRY"): 1,
        place(QUEUED): 3,
        place(PREFETCHED): 3,
        (REDELIVERIES[0], "add", "q"): 1,
    }


def test_what_is_not_registered_fails_without_having_run():
    assert written(entries(FAILURE=2, exception_NotRegistered=1, exception_KeyError=1)) == {
        place(TASKS, "FAILURE"): 2,
        place(FAILURES, "NotRegistered"): 1,
        place(FAILURES, "KeyError"): 1,
        place(RUNS, "FAILURE"): 1,
    }


def test_without_task_sent_a_task_waits_from_its_redelivery_only():
    sums = written(entries(STARTED=3, redelivered=1), lambda _: False)
    assert (sums[place(QUEUED)], sums[place(PREFETCHED)]) == (1, 3)


def test_a_sum_too_few_too_many_or_elsewhere_is_a_difference():
    want = written(entries(STARTED=3))
    assert differences(want, want) == {}
    few, elsewhere = place(TASKS, "STARTED"), (TASKS[0], "add", "other", WORKER, "STARTED")
    assert differences({**want, few: 2, elsewhere: 1}, want) == {few: (2, 3), elsewhere: (1, 0)}


def test_an_excess_is_what_did_not_happen_in_any_queue():
    want = written(entries(STARTED=3))
    started, moved = place(TASKS, "STARTED"), (TASKS[0], "add", "unknown", WORKER, "STARTED")
    assert excesses({started: 1, moved: 2}, want) == {}
    assert excesses({started: 2, moved: 2}, want) == {("add", WORKER, "STARTED"): (4, 3)}


def test_a_task_without_a_name_is_one_of_those_that_are_missing():
    want = written(entries(STARTED=3))
    started, nameless = place(TASKS, "STARTED"), (TASKS[0], "unknown", "unknown", WORKER, "STARTED")
    assert excesses({started: 2, nameless: 1}, want) == {}
    assert excesses({started: 2, nameless: 2}, want) == {("unknown", WORKER, "STARTED"): (2, 1)}
    other = (*nameless[:4], "SUCCESS")
    assert excesses({started: 2, other: 1}, want) == {("unknown", WORKER, "SUCCESS"): (1, 0)}


def test_a_ledger_in_a_file_counts_alike(tmp_path):
    ledger = FileOutcomes(tmp_path / "ledger")
    assert ledger.counts_by_worker() == {}
    for _ in range(2):
        ledger.record(Outcome("add", "q", "SUCCESS", WORKER))
    assert ledger.counts_by_worker() == entries(SUCCESS=2)
    assert (ledger.total("SUCCESS"), ledger.total("FAILURE")) == (2, 0)
