"""Entries of a schedule of Celery → expected tasks, or why there is none."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, tzinfo
from typing import Any

from celery.schedules import BaseSchedule, crontab, maybe_schedule, schedule
from cronsim import CronSim, CronSimError
from msgspec import Struct

from celery_exporter.core.schedules import (
    MAX_EVERY_SECONDS,
    MIN_EVERY_SECONDS,
    Cron,
    Every,
    check_cron,
    time_zone,
)

#: The index of the day of the week: cron has Sunday as 0 and as 7.
_WEEKDAY = 4
_ANY_TIME = datetime(2024, 1, 1)  # noqa: DTZ001  only to parse


class UnfitError(Exception):
    """A schedule cannot be expected; the text says why, without a period."""


class Entry(Struct, frozen=True):
    """One entry of a schedule; `unfit` says why it has none that can be expected."""

    name: str
    task: str
    schedule: Every | Cron | None
    unfit: str = ""


def entry(name: str, task: Any, celery_schedule: Any, zone: tzinfo | None) -> Entry:
    """Return an entry with the schedule that Celery has; a crontab is in this time zone."""
    shown = task if isinstance(task, str) else ""
    try:
        _check_task(task)
        return Entry(name, shown, _converted(_as_schedule(celery_schedule), zone))
    except UnfitError as error:
        return Entry(name, shown, None, str(error))


def _check_task(task: Any) -> None:
    if task is None or task == "":
        raise UnfitError("it has no task")
    if not isinstance(task, str) or not task.strip():
        raise UnfitError(f"its task, {task!r:.80}, is no name")
    try:
        task.encode()
    except UnicodeEncodeError:
        raise UnfitError("its task is no valid text") from None


def _as_schedule(value: Any) -> BaseSchedule:
    """Return a schedule object of Celery, which also takes seconds."""
    if value is None:
        raise UnfitError("it has no schedule")
    try:
        return maybe_schedule(value)
    except (AttributeError, OverflowError, TypeError, ValueError):  # no schedule, inf, nan
        raise UnfitError(f"its schedule, {value!r:.80}, is no number of seconds and no schedule") from None


def _converted(celery_schedule: BaseSchedule, zone: tzinfo | None) -> Every | Cron:
    if isinstance(celery_schedule, crontab):
        if type(celery_schedule) is crontab and celery_schedule.nowfun is not None:
            raise UnfitError("its crontab has a nowfun of its own")
        return Cron(_checked(_expression(celery_schedule)), _zone_name(zone))
    if type(celery_schedule) is not schedule:
        raise UnfitError(f"a schedule of the type {type(celery_schedule).__name__} has no fixed times")
    seconds = celery_schedule.run_every.total_seconds()
    if not MIN_EVERY_SECONDS <= seconds <= MAX_EVERY_SECONDS:
        raise UnfitError(f"every {seconds:g} s is not between a second and a year")
    return Every(seconds)


def _checked(expression: str) -> str:
    try:
        check_cron(expression)
    except ValueError as error:
        raise UnfitError(f"its crontab, {expression}: {error}") from None
    return expression


def _zone_name(zone: tzinfo | None) -> str:
    try:
        return time_zone(str(zone)).key
    except ValueError:
        raise UnfitError(f"its time zone, {zone}, is not in the IANA database") from None


def _expression(cron: Any) -> str:
    """Return a cron expression with the fields of a crontab."""
    fields = (
        (cron._orig_minute, cron.minute, range(60)),  # noqa: SLF001  what the application wrote is more readable
        (cron._orig_hour, cron.hour, range(24)),  # noqa: SLF001
        (cron._orig_day_of_month, cron.day_of_month, range(1, 32)),  # noqa: SLF001
        (cron._orig_month_of_year, cron.month_of_year, range(1, 13)),  # noqa: SLF001
        (cron._orig_day_of_week, cron.day_of_week, range(7)),  # noqa: SLF001
    )
    return " ".join(
        _field(index, str(written), values, everything)
        for index, (written, values, everything) in enumerate(fields)
    )


def _field(index: int, written: str, values: Collection[int], everything: Iterable[int]) -> str:
    """Return a field as it was written, if cron reads it as the same values; else list these."""
    if values == {*everything}:
        return "*"
    text = "".join(written.split())
    return text if _read(index, text) == values else ",".join(map(str, sorted(values)))


def _read(index: int, text: str) -> set[Any] | None:
    """Return the values that cron reads from a field, None if it cannot."""
    parts = ["*"] * 5
    parts[index] = text
    try:
        times = CronSim(" ".join(parts), _ANY_TIME)
    except CronSimError:
        return None
    read = (times.minutes, times.hours, times.days, times.months, times.weekdays)[index]
    return {value % 7 if index == _WEEKDAY and isinstance(value, int) else value for value in read}
