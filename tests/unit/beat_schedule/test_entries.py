"""Schedules of Celery become schedules with the same due times, or say why not."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import BaseSchedule, crontab, schedule
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.beat_schedule.entries import entry
from celery_exporter.core.schedules import Cron, Every

BERLIN = ZoneInfo("Europe/Berlin")


def converted(celery_schedule: BaseSchedule, zone: Any = BERLIN) -> Every | Cron | str:
    result = entry("nightly", "reports.nightly", celery_schedule, zone)
    return result.schedule or result.unfit


@pytest.mark.parametrize(
    ("fields", "expression"),
    [
        ({}, "* * * * *"),
        ({"minute": 0, "hour": 3}, "0 3 * * *"),
        ({"minute": "*/15", "hour": "9-17", "day_of_week": "mon-fri"}, "*/15 9-17 * * mon-fri"),
        ({"minute": {5, 1}, "hour": [2, 1]}, "1,5 1,2 * * *"),
        ({"minute": 0, "hour": "22-2"}, "0 0,1,2,22,23 * * *"),
        ({"minute": 0, "hour": 0, "day_of_month": "1-7", "day_of_week": 1}, "0 0 1-7 * 1"),
        ({"minute": 0, "hour": 0, "day_of_week": "friday"}, "0 0 * * 5"),
        ({"minute": 0, "hour": 0, "month_of_year": "*/3"}, "0 0 * */3 *"),
        ({"minute": 0, "hour": 0, "month_of_year": "1 , 2"}, "0 0 * 1,2 *"),
    ],
)
def test_a_crontab_is_a_cron_expression(fields, expression):
    assert converted(crontab(**fields)) == Cron(expression, "Europe/Berlin")


@given(
    st.fixed_dictionaries(
        {
            "minute": st.sets(st.integers(0, 59), min_size=1, max_size=4),
            "hour": st.sets(st.integers(0, 23), min_size=1, max_size=3),
            "day_of_month": st.sampled_from(["*", "*/2", "1-7", "2,30"]),
            "month_of_year": st.sampled_from(["*", "*/5", "11-2"]),
            "day_of_week": st.sampled_from(["*", "*/2", "sat,sun", "5-1"]),
        }
    )
)
def test_the_expression_is_due_in_every_minute_of_the_crontab_and_in_no_other(fields):
    cron = crontab(**fields)
    result = converted(cron)
    assert isinstance(result, Cron)
    due = datetime.fromtimestamp(result.next_due(1.7e9), BERLIN)
    assert (due.minute in cron.minute, due.hour in cron.hour) == (True, True)
    assert (due.day in cron.day_of_month, due.month in cron.month_of_year) == (True, True)
    assert due.isoweekday() % 7 in cron.day_of_week


def test_an_interval_is_one():
    assert converted(schedule(timedelta(hours=2))) == Every(7_200.0)
    assert converted(schedule(90)) == Every(90.0)


class Moonrise(BaseSchedule):
    """A schedule of an application."""


@pytest.mark.parametrize(
    ("celery_schedule", "zone", "why"),
    [
        (schedule(0.25), BERLIN, "every 0.25 s is not between a second and a year"),
        (Moonrise(), BERLIN, "a schedule of the type Moonrise has no fixed times"),
        (crontab(), "Berlin", "its time zone, Berlin, is not in the IANA database"),
        (crontab(nowfun=datetime.now), BERLIN, "its crontab has a nowfun of its own"),
    ],
)
def test_what_cannot_be_expected_says_why(celery_schedule, zone, why):
    assert converted(celery_schedule, zone) == why


def test_a_crontab_that_is_never_due_is_no_entry():
    cron = crontab(minute=0, hour=0, day_of_month=31)
    cron.month_of_year, cron._orig_month_of_year = {2}, "2"  # as Celery 5.4 allows it
    assert converted(cron) == "its crontab, 0 0 31 2 *: no such day exists"
