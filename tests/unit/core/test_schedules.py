"""Due times: over changes of the clock, at the ends of months, and as Celery's beat has them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab
from hypothesis import example, given
from hypothesis import strategies as st

from celery_exporter.core.schedules import EARLY_SECONDS, Cron, Every, check_cron, time_zone

BERLIN = "Europe/Berlin"
#: Nights in which the clocks of Berlin are changed: 02:00 becomes 03:00, and 03:00 becomes 02:00.
SPRING, AUTUMN = "2026-03-29", "2026-10-25"
EXPRESSIONS = ["30 2 * * *", "*/30 * * * *", "30 * * * *", "0 */2 * * *", "0 3 * * *", "15 1,2,3 * * 0"]


def epoch(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def due_times(expression: str, begin: str, number: int, zone: str = "UTC") -> list[str]:
    """Return the next due times as local times with their offset from UTC."""
    after, times = epoch(begin, zone), []
    for _ in range(number):
        after = Cron(expression, zone).next_due(after)
        times.append(datetime.fromtimestamp(after, ZoneInfo(zone)).isoformat(" ", "minutes"))
    return times


def test_a_task_that_runs_every_hour_is_due_an_hour_later():
    assert Every(3_600.0).next_due(100.5) == 3_700.5


def test_a_daily_task_is_due_at_its_local_time_in_summer_and_winter():
    assert due_times("0 3 * * *", "2026-03-28 12:00", 2, BERLIN) == [
        f"{SPRING} 03:00+02:00",
        "2026-03-30 03:00+02:00",
    ]
    assert due_times("0 3 * * *", "2026-10-24 12:00", 2, BERLIN) == [
        f"{AUTUMN} 03:00+01:00",
        "2026-10-26 03:00+01:00",
    ]


def test_a_time_that_is_skipped_is_due_once_as_much_later():
    times = due_times("30 2 * * *", "2026-03-28 12:00", 2, BERLIN)
    assert times == [f"{SPRING} 03:30+02:00", "2026-03-30 02:30+02:00"]


def test_a_run_at_the_end_of_the_skipped_hour_is_that_of_the_skipped_time():
    """Celery 5.4 sends at 03:00 what was due at 02:30."""
    after = epoch(f"{SPRING} 03:00:01", BERLIN)
    assert Cron("30 2 * * *", BERLIN).next_due(after) == epoch("2026-03-30 02:30", BERLIN)


def test_a_time_that_is_repeated_is_due_the_first_time():
    times = due_times("30 2 * * *", "2026-10-24 12:00", 2, BERLIN)
    assert times == [f"{AUTUMN} 02:30+02:00", "2026-10-26 02:30+01:00"]
    times = due_times("*/30 * * * *", f"{AUTUMN} 01:45", 3, BERLIN)
    assert times == [f"{AUTUMN} 02:00+02:00", f"{AUTUMN} 02:30+02:00", f"{AUTUMN} 03:00+01:00"]


def test_months_without_a_day_have_no_due_time():
    times = due_times("0 0 31 * *", "2026-01-15 00:00", 4)
    assert [time[:10] for time in times] == ["2026-01-31", "2026-03-31", "2026-05-31", "2026-07-31"]


def test_leap_days():
    assert [time[:10] for time in due_times("0 0 29 2 *", "2026-01-01 00:00", 2)] == [
        "2028-02-29",
        "2032-02-29",
    ]
    assert due_times("0 0 29 2 *", "2096-03-01 00:00", 1)[0][:10] == "2104-02-29", "2100 is no leap year"


def test_a_day_matches_both_of_its_fields():
    """As in Celery's crontab: the first Monday of the month. In cron, one of the two is enough."""
    times = due_times("0 0 1-7 * mon", "2026-01-01 00:00", 2)
    assert [time[:10] for time in times] == ["2026-01-05", "2026-02-02"]


def test_a_run_that_is_a_little_early_is_that_of_the_due_time():
    due = epoch("2026-01-02 03:00")
    daily = Cron("0 3 * * *")
    assert daily.next_due(due - EARLY_SECONDS) == due + 86_400
    assert daily.next_due(due - EARLY_SECONDS - 1) == due


def beat_runs(expression: str, begin: float, hours: int, zone: str) -> list[float]:
    """Return when Celery's own crontab is due, asked as its beat does."""
    now = begin
    app = Celery("t", set_as_current=False)
    app.conf.timezone = zone
    minute, hour, day, month, weekday = expression.split()
    schedule = crontab(
        minute=minute, hour=hour, day_of_month=day, month_of_year=month, day_of_week=weekday, app=app,
        nowfun=lambda: datetime.fromtimestamp(now, ZoneInfo(zone)),
    )  # fmt: skip
    last, runs = schedule.nowfun(), []
    while now < begin + 3_600 * hours:
        is_due, seconds = schedule.is_due(last)
        if is_due:
            last = schedule.nowfun()
            runs.append(now)
        now += min(max(seconds, 1), 300)
    return runs


@pytest.mark.parametrize("zone", [BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_beat_sends_is_never_late(expression, zone):
    """In the nights before, in and after both changes of each of these zones: one run for each due time."""
    for day in ("2026-03-07", "2026-03-28", "2026-04-04", "2026-10-03", "2026-10-24", "2026-10-31"):
        begin = epoch(f"{day} 12:05", zone)
        runs = beat_runs(expression, begin, 48, zone)
        due = Cron(expression, zone).next_due(begin)
        for run in runs:
            assert run <= due + 60, f"{datetime.fromtimestamp(run, ZoneInfo(zone))}"
            due = Cron(expression, zone).next_due(run)
        assert due > begin + 48 * 3_600 - 60, "beat would have sent it"


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("61 * * * *", "invalid minute"),
        ("0 0 32 * *", "invalid day-of-month"),
        ("0 3 * *", "not five fields"),
        ("0 0 3 * * *", "not five fields"),
        ("@daily", "not five fields"),
        ("", "not five fields"),
        ("0 0 30 2 *", "no such day exists"),
        ("0 0 31 2,4 *", "no such day exists"),
        ("0 0 31 13 *", "invalid month"),
        ("0 0 32 2 *", "invalid day-of-month"),
        ("0 0 30 2 mon", "no such day exists"),
    ],
)
def test_an_expression_that_cannot_be_used_is_refused(expression, error):
    with pytest.raises(ValueError, match=error):
        check_cron(expression)


NO_NAMES = ["Mars/Olympus", "../etc/passwd", "Europe", "", "/etc/localtime", "a\0b"]
FILES = ["localtime", "posixrules", "Factory", "posix/UTC", "right/Europe/Berlin"]


@pytest.mark.parametrize("name", [*NO_NAMES, *FILES])
def test_an_unknown_time_zone_is_refused(name):
    with pytest.raises(ValueError, match=r".*"):
        time_zone(name)


@given(st.text("0123456789*/,-#LW ", max_size=24))
@example("0 0 * * 1#2/3")
@example("0 0 L/2 * *")
def test_any_expression_is_refused_or_due(expression):
    try:
        check_cron(expression)
    except ValueError:
        return
    assert Cron(expression).next_due(0.0) > 0


@given(
    st.sampled_from(EXPRESSIONS),
    st.sampled_from([BERLIN, "America/Sao_Paulo", "Australia/Lord_Howe", "UTC"]),
    st.floats(0, 4e9),
)
def test_due_times_follow_each_other(expression, zone, after):
    """None comes before the run of which it is the next one; a later run has a later one, or the same."""
    schedule = Cron(expression, zone)
    dues = [schedule.next_due(after + offset) for offset in range(0, 7 * 3_600, 900)]
    assert all(due > after for due in dues)
    assert all(later >= earlier - 3_600 for earlier, later in pairwise(dues)), "an hour is skipped at most"
    local = datetime.fromtimestamp(dues[0], UTC)
    assert (local - datetime.fromtimestamp(after, UTC)) < timedelta(days=8)
