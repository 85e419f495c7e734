"""Which workers are inspected for their tasks, and for how long their counts are known."""

from __future__ import annotations

import pytest

from celery_exporter.core.task_counts import (
    MAX_COUNT_AGE_SECONDS,
    MAX_COUNT_WAIT_SECONDS,
    MAX_COUNTED_TASKS,
    MAX_COUNTED_WORKERS,
    MAX_SILENT_ROUNDS,
    SECONDS_PER_TASK,
    TaskCounts,
    TaskCountSchedule,
)

INTERVAL = 15.0


def some(tasks: int) -> TaskCounts:
    return TaskCounts(scheduled=tasks, reserved=0, active=0)


class Rounds:
    """Rounds of a schedule; each returns the workers that it inspects."""

    def __init__(self, *names: str) -> None:
        self.schedule = TaskCountSchedule()
        self.starts = dict.fromkeys(names, 0)
        self.now = 1_000.0

    def run(self, counts: dict[str, TaskCounts], silent: set[str] = frozenset()) -> list[str]:
        """Run a round, in which workers reply with these counts, and the silent ones to no command."""
        self.now += INTERVAL
        self.schedule.begin_round(self.starts)
        picked = self.schedule.pick([name for name in self.starts if name not in silent], self.now)
        self.schedule.record(picked, counts, self.now, INTERVAL)
        return picked

    def known(self) -> dict[str, TaskCounts]:
        return self.schedule.values(self.now)


def test_a_worker_with_few_tasks_is_inspected_in_each_round():
    rounds = Rounds("a@h")
    assert [rounds.run({"a@h": some(number)}) for number in range(3)] == [["a@h"]] * 3
    assert rounds.known() == {"a@h": some(2)}


def test_workers_take_turns():
    names = [f"w{number}@h" for number in range(2 * MAX_COUNTED_WORKERS + 1)]
    rounds = Rounds(*names)
    picked = [rounds.run(dict.fromkeys(names, some(0))) for _ in range(3)]
    assert picked == [
        names[:MAX_COUNTED_WORKERS],
        names[MAX_COUNTED_WORKERS:-1],
        [names[-1], *names[: MAX_COUNTED_WORKERS - 1]],
    ]
    assert rounds.known().keys() == set(names)


def test_the_more_tasks_a_worker_has_the_less_often_it_is_inspected():
    rounds = Rounds("few@h", "many@h")
    counts = {"few@h": some(3), "many@h": some(1_000)}
    picked = [rounds.run(counts) for _ in range(8)]
    wait = round(1_000 * SECONDS_PER_TASK / INTERVAL + 0.5)
    assert [number for number, names in enumerate(picked) if "many@h" in names] == [0, wait]
    assert all("few@h" in names for names in picked)
    assert rounds.known() == counts


def test_the_longest_wait_is_bounded():
    rounds = Rounds("a@h")
    rounds.run({"a@h": some(10**9)})
    rounds.now += MAX_COUNT_WAIT_SECONDS
    assert rounds.run({"a@h": some(10**9)}) == ["a@h"]
    assert MAX_COUNT_WAIT_SECONDS < MAX_COUNT_AGE_SECONDS


def test_the_workers_of_a_round_have_a_bounded_number_of_tasks():
    rounds = Rounds("a@h", "b@h", "c@h")
    tasks = MAX_COUNTED_TASKS // 2 + 1
    counts = dict.fromkeys(rounds.starts, some(tasks))
    assert rounds.run(counts) == ["a@h", "b@h", "c@h"], "nothing is known of them"
    rounds.now += MAX_COUNT_WAIT_SECONDS
    assert [rounds.run(counts) for _ in range(3)] == [["a@h"], ["b@h"], ["c@h"]]


def test_counts_of_a_worker_that_falls_silent_are_kept_for_some_rounds():
    rounds = Rounds("a@h")
    rounds.run({"a@h": some(3)})
    for _ in range(MAX_SILENT_ROUNDS):
        assert rounds.run({}, silent={"a@h"}) == []
        assert rounds.known() == {"a@h": some(3)}
    rounds.run({}, silent={"a@h"})
    assert rounds.known() == {}
    assert rounds.run({"a@h": some(4)}) == ["a@h"]
    assert rounds.known() == {"a@h": some(4)}


def test_a_worker_without_complete_replies_is_inspected_less_often_and_then_unknown():
    rounds = Rounds("a@h")
    rounds.run({"a@h": some(3)})
    picked = [bool(rounds.run({})) for _ in range(8)]
    assert picked == [True, False, True, False, False, False, True, False]
    assert rounds.known() == {}
    for _ in range(100):
        rounds.run({})
    rounds.now += MAX_COUNT_WAIT_SECONDS
    assert rounds.run({"a@h": some(1)}) == ["a@h"]
    assert rounds.known() == {"a@h": some(1)}


@pytest.mark.parametrize("change", [{"a@h": 1}, {}], ids=["restarted", "down"])
def test_counts_are_those_of_the_process_that_runs(change):
    rounds = Rounds("a@h")
    rounds.run({"a@h": some(3)})
    rounds.starts = change
    rounds.schedule.begin_round(rounds.starts)
    assert rounds.known() == {}


def test_counts_expire_without_rounds():
    rounds = Rounds("a@h")
    rounds.run({"a@h": some(3)})
    rounds.now += MAX_COUNT_AGE_SECONDS - 1
    assert rounds.known() == {"a@h": some(3)}
    rounds.now += 1
    assert rounds.known() == {}


def test_the_total_has_all_tasks():
    assert TaskCounts(scheduled=1, reserved=2, active=4).total == 7
