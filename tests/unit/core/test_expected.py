"""Expected tasks are overdue after their grace, and not because the exporter received nothing."""

from __future__ import annotations

import msgspec
import pytest

from celery_exporter.core.expected import MAX_GAP_SECONDS, ExpectedTask, ExpectedTasks, SavedExpected
from celery_exporter.core.limits import Limits
from celery_exporter.core.schedules import Cron, Every
from celery_exporter.core.types import State

from .cluster_driver import T0, ClusterDriver, received, sent, started, succeeded

HOUR = 3_600.0
HOURLY = ExpectedTask("add", Every(HOUR), grace=300.0)
#: T0 is 2023-11-14 22:13:20 UTC, so it is due 1000 s after it for the first time.
AT_HALF = ExpectedTask("add", Cron("30 * * * *"), grace=300.0)
FIRST = T0 + 1_000
BOTH = {State.PENDING: True, State.SUCCESS: True}


class Scene:
    """A cluster that expects tasks; each step is seconds after T0."""

    def __init__(self, *tasks: ExpectedTask, saved: SavedExpected | None = None, **options) -> None:
        self.driver = ClusterDriver(**options, expected=tasks)
        self.driver.epoch, self.driver.now = T0, 0.0
        self.expected = self.driver.cluster.expected
        if saved is not None:
            self.expected.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(saved), type=SavedExpected))

    def watch(self, second: float) -> dict[State, bool]:
        """Receive events without a pause up to a second, and return what is overdue."""
        step = MAX_GAP_SECONDS - 1
        while self.driver.now < second:
            self.resume(min(self.driver.now + step, second))
        return self.overdue()

    def resume(self, second: float) -> dict[State, bool]:
        """Receive nothing until a second, and then something."""
        self.driver.now = second
        self.driver.cluster.expire(self.driver.timestamp())
        self.expected.watch(T0 + second, self.driver.aggregates)
        return self.overdue()

    def run(self, second: float, number: int = 0, *, succeeds: bool = True) -> None:
        self.watch(second)
        uuid = f"u{second}-{number}"
        ends = [received(uuid, second), started(uuid, second), succeeded(uuid, second)] if succeeds else []
        self.driver.apply(sent(uuid, second), *ends)

    def overdue(self) -> dict[State, bool]:
        return {view.state: view.overdue for view in self.expected.views if view.name == "add"}

    def due(self, state: State = State.PENDING) -> float:
        return next(view.due for view in self.expected.views if view.state == state)

    def saved(self) -> SavedExpected:
        assert self.expected.watched is not None
        return SavedExpected(self.expected.watched, self.expected.watches)


@pytest.mark.parametrize(("task", "due"), [(HOURLY, HOUR), (AT_HALF, 1_000.0)])
def test_without_a_run_it_is_overdue_after_the_first_due_time_and_its_grace(task, due):
    scene = Scene(task)
    scene.resume(0)
    assert scene.due() == T0 + due
    assert scene.watch(due + 300) == dict.fromkeys(BOTH, False)
    assert scene.watch(due + 302) == BOTH
    assert scene.due() == T0 + due, "it stays until it is sent"
    scene.run(due + 400)
    assert scene.watch(due + 405) == dict.fromkeys(BOTH, False)


def test_sent_and_succeeded_are_judged_separately():
    scene = Scene(AT_HALF)
    scene.run(1_000, succeeds=False)
    assert scene.watch(1_400) == {State.PENDING: False, State.SUCCESS: True}
    assert (scene.due(State.PENDING), scene.due(State.SUCCESS)) == (FIRST + HOUR, FIRST)


def test_a_task_that_was_received_was_sent():
    scene = Scene(AT_HALF)
    scene.watch(1_010)
    scene.driver.apply(received("u1", 1_010))
    assert scene.watch(1_400) == {State.PENDING: False, State.SUCCESS: True}


def test_another_task_and_another_time_do_not_count():
    scene = Scene(AT_HALF)
    scene.run(500)
    scene.watch(1_010)
    scene.driver.apply(sent("other", 1_010, name="mul"))
    assert scene.watch(1_400) == BOTH


def test_a_run_just_before_the_due_time_counts():
    scene = Scene(AT_HALF)
    scene.run(999)
    assert scene.watch(1_400) == dict.fromkeys(BOTH, False)


def test_of_several_schedules_one_that_is_overdue_is_enough():
    weekly = ExpectedTask("add", Every(7 * 24 * HOUR))
    scene = Scene(weekly, AT_HALF)
    assert scene.watch(1_400) == BOTH
    assert scene.due() == FIRST
    scene.run(1_500)
    assert scene.watch(1_510) == dict.fromkeys(BOTH, False)
    assert scene.due() == FIRST + HOUR, "the earliest"


# -- pauses: events that are sent meanwhile are lost -------------------------------------------------------


@pytest.mark.parametrize(("begin", "end"), [(900, 1_100), (999, 1_005), (1_250, 1_400), (10, 1_001)])
def test_what_was_due_in_a_pause_or_whose_grace_had_one_is_not_judged(begin, end):
    scene = Scene(AT_HALF)
    scene.watch(begin)
    scene.resume(end)
    assert scene.watch(1_500) == dict.fromkeys(BOTH, False)
    assert scene.due() == FIRST + HOUR
    assert scene.watch(HOUR + 1_302) == BOTH


@pytest.mark.parametrize(("begin", "end"), [(500, 990), (100, 200)])
def test_a_pause_before_changes_nothing(begin, end):
    scene = Scene(AT_HALF)
    scene.watch(begin)
    scene.resume(end)
    assert scene.watch(1_302) == BOTH


def test_what_is_overdue_stays_so_until_it_was_due_again_in_a_pause():
    scene = Scene(AT_HALF)
    scene.watch(1_400)
    assert scene.resume(2_000) == BOTH
    scene.watch(2_100)
    assert scene.resume(1_000 + HOUR + 10) == dict.fromkeys(BOTH, False), "it may have run"


def test_a_new_subscription_is_a_pause_however_short():
    scene = Scene(AT_HALF)
    scene.watch(1_000)
    scene.expected.interrupt()
    assert scene.watch(1_400) == dict.fromkeys(BOTH, False)
    assert scene.due() == FIRST + HOUR


def test_a_clock_that_is_set_back_or_forward_raises_no_alarm():
    scene = Scene(AT_HALF)
    scene.watch(900)
    scene.resume(500)
    assert scene.watch(990) == dict.fromkeys(BOTH, False)
    scene.resume(5_000)
    assert scene.overdue() == dict.fromkeys(BOTH, False)


# -- series that are removed, and clocks of senders --------------------------------------------------------


def test_the_last_run_is_known_after_its_series_was_removed():
    scene = Scene(HOURLY, limits=Limits(series_ttl=30.0))
    scene.run(10)
    scene.watch(200)
    assert scene.driver.by_state() == {}, "it is counted as other"
    assert scene.due() == T0 + 10 + HOUR
    scene.watch(3_900)
    scene.driver.apply(sent("u2", 3_900))
    scene.watch(3_905)
    assert scene.due() == T0 + 3_900 + HOUR


def test_expected_tasks_have_series_beyond_the_limit():
    scene = Scene(HOURLY, limits=Limits(max_series=16))
    scene.watch(2)
    scene.driver.apply(*(sent(f"t{number}", 1, name=f"t{number}") for number in range(5)), sent("u1", 2))
    scene.watch(5)
    assert scene.due() == T0 + 2 + HOUR


def test_a_sender_whose_clock_is_ahead_once_hides_nothing():
    scene = Scene(HOURLY)
    scene.watch(10)
    scene.driver.apply(sent("u1", 1e6))
    scene.watch(15)
    first = scene.due()
    assert T0 + 10 + HOUR <= first <= T0 + 15 + HOUR
    scene.watch(1_000)
    assert scene.due() == first
    scene.driver.apply(sent("u2", 1_000))
    scene.watch(1_005)
    assert scene.due() >= T0 + 1_000 + HOUR


# -- restarts ----------------------------------------------------------------------------------------------


def test_a_restart_before_the_due_time_changes_nothing():
    before = Scene(AT_HALF)
    before.watch(700)
    after = Scene(AT_HALF, saved=before.saved())
    after.resume(800)
    assert after.due() == FIRST
    assert after.watch(1_302) == BOTH


def test_a_task_that_is_overdue_is_so_at_once_after_a_restart():
    before = Scene(AT_HALF)
    before.watch(1_400)
    after = Scene(AT_HALF, saved=before.saved())
    assert after.overdue() == BOTH, "before the broker answers"
    assert after.resume(1_500) == BOTH


def test_what_was_due_while_no_exporter_ran_is_not_judged():
    before = Scene(AT_HALF)
    before.run(700)
    before.watch(705)
    after = Scene(AT_HALF, saved=before.saved())
    after.resume(30 * HOUR)
    assert after.overdue() == dict.fromkeys(BOTH, False)
    assert after.due() > T0 + 30 * HOUR


def test_a_changed_schedule_is_watched_from_now_on():
    before = Scene(ExpectedTask("add", Every(60.0)))
    before.watch(1_000)
    assert before.overdue() == BOTH
    after = Scene(HOURLY, AT_HALF, saved=before.saved())
    assert after.resume(1_010) == dict.fromkeys(BOTH, False)
    assert after.watch(1_500) == dict.fromkeys(BOTH, False)
    assert {watch.due for watch in after.expected.watches} == {T0 + 1_010 + HOUR, FIRST + HOUR}


def test_a_changed_grace_restarts_nothing():
    before = Scene(AT_HALF)
    before.watch(1_250)
    after = Scene(ExpectedTask("add", AT_HALF.schedule, grace=600.0), saved=before.saved())
    after.expected.watched = T0 + 999  # no pause to speak of
    assert after.due() == FIRST


def test_without_expected_tasks_there_is_nothing():
    expected = ExpectedTasks()
    expected.watch(T0, ClusterDriver().aggregates)
    assert (expected.views, expected.watched) == ((), None)
