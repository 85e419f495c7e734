"""Schedules: when a periodic task is due, from the time at which it was sent or succeeded last.

Times are epoch seconds. Local times are computed without a time zone, and converted at the end, as Celery's
beat does it. So a due time exists once on each day, also when clocks are changed: cronsim's own rules are
those of Debian's cron, which runs `*/30 * * * *` in a repeated hour twice. Beat (5.4 to 5.7, simulated in the
tests) runs it once. A due time within a skipped hour is that many minutes after its beginning; beat 5.4 sends
at the end of the hour.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from msgspec import Struct

#: Fields of a cron expression. cronsim also takes six, the first of which is seconds.
FIELDS = 5
#: The shortest and the longest time of `Every`: judgements are a second apart, and no schedule is rarer.
MIN_EVERY_SECONDS, MAX_EVERY_SECONDS = 1, 366 * 86_400
#: A run that begins so many seconds before a due time is that of the due time: clocks of hosts differ.
EARLY_SECONDS = 2.0
#: The indexes of the day of the month and of the month. Each may be valid, and both together not.
_DAY_AND_MONTH = (2, 3)
_NO_SUCH_DAY = "no such day exists"
#: Files and folders beside the time zones of a system, which are no names of the IANA database: the time zone
#: of the host, that of POSIX rules, a placeholder, and copies with and without leap seconds.
_NO_ZONES = frozenset({"localtime", "posixrules", "Factory"})
_COPIES = ("posix/", "right/")
#: A day on which the clocks are not changed in any time zone, to check expressions.
_ANY_DAY = datetime(2024, 1, 1)  # noqa: DTZ001  local times have no time zone here


class Every(Struct, frozen=True, tag=True):
    """Due so many seconds after the last time."""

    seconds: float

    def next_due(self, after: float) -> float:
        """Return when a run is due after one at a time."""
        return after + self.seconds


class Cron(Struct, frozen=True, tag=True):
    """Due at the local times of a cron expression. The day has to match both of its fields, as in Celery."""

    expression: str
    timezone: str = "UTC"

    def next_due(self, after: float) -> float:
        """Return the first due time of which a run at a time is not the run.

        That run may be `EARLY_SECONDS` early.
        """
        zone = time_zone(self.timezone)
        local = datetime.fromtimestamp(after, zone).replace(tzinfo=None)
        for due in _due_times(self.expression, local):
            # The two are different in an hour that is skipped, where the second is the earlier one (PEP 495),
            # and in one that is repeated.
            first = due.replace(tzinfo=zone).timestamp()
            second = due.replace(tzinfo=zone, fold=1).timestamp()
            if min(first, second) > after + EARLY_SECONDS:
                return first
        raise ValueError(self.expression)  # `check_cron` refuses an expression that is never due


def check_cron(expression: str) -> None:
    """Raise ValueError, with the reason, for an expression that is invalid or never due."""
    fields = expression.split()
    if len(fields) != FIELDS:
        raise ValueError("not five fields (minute, hour, day of the month, month, day of the week)")
    try:
        due = next(_due_times(expression, _ANY_DAY), None)
    except CronSimError as error:
        if all(_is_valid(*fields[:index], "*", *fields[index + 1 :]) for index in _DAY_AND_MONTH):
            raise ValueError(_NO_SUCH_DAY) from None
        raise ValueError(str(error).replace("Bad", "invalid")) from None
    if due is None:
        raise ValueError(_NO_SUCH_DAY)


@lru_cache
def time_zone(name: str) -> ZoneInfo:
    """Return a time zone of the IANA database. Raises ValueError for a name that is none."""
    if name in _NO_ZONES or name.startswith(_COPIES):
        raise ValueError(name)
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # of a name that is unknown, a directory, or no path below it
        raise ValueError(name) from None


def _is_valid(*fields: str) -> bool:
    try:
        CronSim(" ".join(fields), _ANY_DAY)
    except CronSimError:
        return False
    return True


def _due_times(expression: str, after: datetime) -> CronSim:
    """Return an iterator over the local times of an expression after a local time."""
    times = CronSim(expression, after)
    times.day_and = True  # Celery's crontab: both day fields have to match; in cron, one of the two
    return times
