"""Expected tasks are overdue after their grace, and not because the exporter received nothing."""

from __future__ import annotations

import msgspec
import pytest

from celery_exporter.core.expected import MAX_GAP_SECONDS, ExpectedTask, SavedExpected
from celery_exporter.core.limits import Limits
from celery_exporter.core.schedules import Cron, Every
from celery_exporter.core.types import State

from .cluster_driver import T0, ClusterDriver, received, retried, sent, started, succeeded

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
        self.driver.cluster.watch_expected(self.driver.timestamp())
        return self.overdue()

    def run(self, second: float, number: int = 0, *, succeeds: bool = True) -> None:
        self.watch(second)
        uuid = f"u{second}-{number}"
        ends = [received(uuid, second), started(uuid, second), succeeded(uuid, second)] if succeeds else []
        self.driver.apply(sent(uuid, second), *ends)
        self.resume(second + 1)

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


@pytest.mark.parametrize("task", [AT_HALF, HOURLY])
def test_a_clock_that_is_wrong_for_a_time_raises_no_alarm_and_hides_none(task):
    scene = Scene(task)
    scene.watch(900)
    scene.resume(500)
    assert scene.watch(990) == dict.fromkeys(BOTH, False)
    scene.resume(30 * 24 * HOUR)
    scene.run(30 * 24 * HOUR + 1)
    scene.resume(30 * 24 * HOUR + 5)
    assert scene.overdue() == dict.fromkeys(BOTH, False)
    scene.resume(1_400)  # the clock is right again
    assert scene.overdue() == dict.fromkeys(BOTH, False)
    assert scene.watch(1_400 + HOUR + 302) == BOTH
    scene.run(10_000)
    assert scene.watch(10_010) == dict.fromkeys(BOTH, False)
    assert scene.watch(10_000 + 2 * HOUR) == BOTH


def test_times_of_a_wrong_clock_in_the_state_file_hide_no_alarm():
    before = Scene(HOURLY)
    before.resume(30 * 24 * HOUR)
    before.run(30 * 24 * HOUR + 1)
    before.resume(30 * 24 * HOUR + 5)
    after = Scene(HOURLY, saved=before.saved())
    assert after.resume(0) == dict.fromkeys(BOTH, False)
    assert after.watch(HOUR + 302) == BOTH


DENSE = ExpectedTask("add", Every(300.0), grace=300.0)


@pytest.mark.parametrize(
    "task", [DENSE, HOURLY, ExpectedTask("add", Every(400.0), grace=300.0), AT_HALF], ids=str
)
def test_what_is_overdue_stays_so_over_pauses_shorter_than_its_grace(task):
    scene = Scene(task)
    scene.watch(2 * HOUR + 1_320)  # in the case of AT_HALF, due a third time before
    for _ in range(40):
        scene.resume(scene.driver.now + 150)
        assert scene.overdue() == BOTH
        scene.expected.interrupt()
        assert scene.watch(scene.driver.now + 10) == BOTH
    scene.run(scene.driver.now + 1)
    assert scene.watch(scene.driver.now + 5) == dict.fromkeys(BOTH, False)


@pytest.mark.parametrize("task", [DENSE, ExpectedTask("add", Cron("*/5 * * * *"), grace=300.0)], ids=str)
def test_a_task_that_is_due_within_its_grace_is_overdue_in_the_end_over_short_pauses(task):
    scene = Scene(task)
    seconds = 0.0
    while not any(scene.watch(seconds + 250).values()):
        scene.resume(seconds := scene.driver.now + 6)
        assert seconds < HOUR
    assert seconds > 500, "a run may have been hidden by a pause"


def test_a_run_that_is_hidden_by_a_pause_is_no_alarm():
    scene = Scene(DENSE)
    for second in range(0, 36_000, 300):
        if second % 900 == 600:
            scene.watch(second - 3)
            scene.resume(second + 3)
        else:
            scene.run(second)
        assert scene.watch(second + 290) == dict.fromkeys(BOTH, False)


# -- what is evidence of a sending -------------------------------------------------------------------------


def test_a_message_that_is_received_late_or_again_or_retried_is_no_sending():
    scene = Scene(HOURLY)
    scene.driver.apply(sent("u1", 0), sent("late", 0), received("u1", 1), started("u1", 1))
    for retry, second in enumerate(range(1_800, 4_000, 600), 1):
        scene.watch(second)
        scene.driver.apply(retried("u1", second), sent("u1", second, retries=retry))
        scene.driver.apply(received("u1", second + 1, retries=retry), started("u1", second + 1))
    scene.driver.apply(received("late", 3_700), started("late", 3_700))
    assert scene.watch(4_000)[State.PENDING]


def test_after_a_restart_a_receipt_of_a_task_that_had_task_sent_events_is_no_sending():
    before = Scene(HOURLY)
    before.run(10)
    before.watch(1_000)
    after = Scene(HOURLY, saved=before.saved())
    after.resume(1_001)
    after.watch(3_700)
    after.driver.apply(received("old", 3_700))
    assert after.watch(4_000)[State.PENDING]


def test_without_task_sent_events_retries_and_redeliveries_are_no_sendings():
    scene = Scene(HOURLY)
    scene.watch(10)
    scene.driver.apply(received("u1", 10), started("u1", 10), received("u2", 10))
    for retry, second in enumerate(range(1_800, 4_200, 600), 1):
        scene.watch(second)
        scene.driver.apply(retried("u1", second))
        scene.watch(second + 300)
        scene.driver.apply(received("u1", second + 300, retries=retry), started("u1", second + 300))
        scene.watch(second + 310)
        scene.driver.apply(received("u2", second + 310, hostname=f"w{retry}@h"))
    assert scene.watch(4_210)[State.PENDING]


def test_without_task_sent_events_a_first_receipt_is_a_sending_while_others_wait_for_a_retry():
    scene = Scene(HOURLY)
    for hour in range(5):
        scene.watch(hour * HOUR + 10)
        uuid, second = f"u{hour}", hour * HOUR + 10
        scene.driver.apply(received(uuid, second), started(uuid, second))
        scene.watch(second + 5)
        scene.driver.apply(retried(uuid, second + 5))
        assert not scene.watch(second + 600)[State.PENDING]
        assert second + T0 + HOUR <= scene.due() <= second + T0 + HOUR + 10


# -- clocks of senders, and backlogs -----------------------------------------------------------------------


@pytest.mark.parametrize("task", [AT_HALF, ExpectedTask("add", Every(HOUR), grace=60.0)], ids=str)
def test_a_sender_whose_clock_is_behind_raises_no_alarm(task):
    scene = Scene(task)
    for due in range(1_000, 40_000, 3_600):
        scene.watch(due)
        uuid, at = f"u{due}", due - 900
        scene.driver.apply(sent(uuid, at), received(uuid, at), started(uuid, at), succeeded(uuid, at))
        assert scene.watch(due + 1_000) == dict.fromkeys(BOTH, False)


def test_an_event_that_waited_in_a_durable_queue_does_not_count_for_a_newer_due_time():
    scene = Scene(AT_HALF)
    scene.watch(900)
    scene.resume(1_000 + HOUR - 10)
    scene.watch(1_000 + HOUR + 10)
    scene.driver.apply(sent("u1", 1_000), received("u1", 1_000), succeeded("u1", 1_001))
    assert scene.watch(1_302 + HOUR) == BOTH


# -- series that are removed, and clocks of senders --------------------------------------------------------


def test_the_last_run_is_known_after_its_series_was_removed():
    scene = Scene(HOURLY, limits=Limits(series_ttl=30.0))
    scene.run(10)
    scene.watch(200)
    assert scene.driver.by_state() == {}, "it is counted as other"
    assert scene.due() == T0 + 10 + HOUR
    scene.watch(3_900)
    scene.driver.apply(sent("u2", 3_900))
    scene.resume(3_901)
    assert scene.due() == T0 + 3_900 + HOUR


def test_expected_tasks_have_series_beyond_the_limit():
    scene = Scene(HOURLY, limits=Limits(max_series=16))
    scene.watch(2)
    scene.driver.apply(*(sent(f"t{number}", 1, name=f"t{number}") for number in range(5)), sent("u1", 2))
    scene.resume(3)
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
    driver = ClusterDriver()
    driver.cluster.watch_expected(driver.timestamp())
    expected = driver.cluster.expected
    assert (expected.views, expected.watched) == ((), None)
