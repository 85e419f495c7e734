"""The entries of an application: of `beat_schedule`, and of the tables of django-celery-beat."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

from celery.app.utils import find_app
from celery.beat import ScheduleEntry
from celery.schedules import ParseException

from celery_exporter.beat_schedule.entries import Entry, entry
from celery_exporter.quoting import printable

#: The application of django-celery-beat.
DJANGO_BEAT = "django_celery_beat"


class AppError(Exception):
    """The application cannot be imported, or its tables cannot be read. The text is one line."""


def entries_of(name: str) -> list[Entry]:
    """Return the entries of an application, which `celery --app` finds by the same name.

    An entry that is in the tables as well is as in the tables: beat's DatabaseScheduler copies the others
    there, where they can be changed or disabled. Raises AppError.
    """
    sys.path.insert(0, str(Path.cwd()))
    with redirect_stdout(sys.stderr):  # what the application prints is no part of the section
        schedule, zone = _settings(name)
        try:
            in_tables = dict(_in_tables()) if _has_tables() else {}
        except (Exception, SystemExit) as error:
            raise AppError(f"cannot read the tables of django-celery-beat: {_text(error)}") from error
        in_settings = {str(key): _in_settings(str(key), value, zone) for key, value in schedule.items()}
    entries = {**in_settings, **in_tables}
    return [each for _, each in sorted(entries.items()) if each is not None]


def _settings(name: str) -> tuple[Mapping[Any, Any], tzinfo]:
    """Return `beat_schedule` and the time zone of an application."""
    app = _loaded(name)
    schedule = app.conf.beat_schedule
    if not isinstance(schedule, Mapping):
        kind = type(schedule).__name__
        raise AppError(f"--from-app: got {name!r}; its beat_schedule is a {kind}, not a dict")
    try:
        return schedule, app.timezone
    except Exception as error:
        raise AppError(f"--from-app: got {name!r}; cannot read its time zone: {_text(error)}") from error


def _loaded(name: str) -> Any:
    """Return an application whose modules are imported, as beat imports them: they may add entries."""
    try:
        app = find_app(name)
        app.loader.import_default_modules()
        app.finalize()
        app.conf.beat_schedule  # noqa: B018  reads the settings
    except (Exception, SystemExit) as error:  # a module may end the process
        raise AppError(f"--from-app: got {name!r}; cannot import it: {_text(error)}") from error
    return app


def _text(error: BaseException) -> str:
    return printable(" ".join(f"{type(error).__name__}: {error}".split()))


def _in_settings(key: str, value: Any, zone: tzinfo) -> Entry:
    """Return an entry of `beat_schedule`: a dict, or an object of beat."""
    if isinstance(value, ScheduleEntry):
        value = {"task": value.task, "schedule": value.schedule}
    if not isinstance(value, Mapping):
        return Entry(key, "", None, f"it is a {type(value).__name__}, not a dict")
    return entry(key, value.get("task"), value.get("schedule"), zone)


# -- django-celery-beat ----------------------------------------------------------------------------------


def _has_tables() -> bool:
    if "DJANGO_SETTINGS_MODULE" not in os.environ or importlib.util.find_spec(DJANGO_BEAT) is None:
        return False
    import django  # noqa: PLC0415  only some applications have it
    from django.apps import apps  # noqa: PLC0415

    django.setup()
    return bool(apps.is_installed(DJANGO_BEAT))


def _in_tables() -> Iterator[tuple[str, Entry | None]]:
    """Yield all rows by their name; None for one that is disabled."""
    from django_celery_beat.models import PeriodicTask  # noqa: PLC0415

    for row in PeriodicTask.objects.select_related("interval", "crontab", "solar", "clocked"):
        yield row.name, _of_row(row) if row.enabled else None


def _of_row(row: Any) -> Entry:
    now = datetime.now(UTC)
    if row.one_off or row.clocked:
        return Entry(row.name, row.task, None, "it runs once")
    if _is_before(row.expires, now):
        return Entry(row.name, row.task, None, f"it expired at {row.expires}")
    if row.start_time and not _is_before(row.start_time, now):
        return Entry(row.name, row.task, None, f"it starts at {row.start_time}")
    if row.solar:
        return Entry(row.name, row.task, None, "a solar schedule has no fixed times")
    try:
        schedule = row.schedule
    except (ArithmeticError, AttributeError, LookupError, ParseException, TypeError, ValueError) as error:
        return Entry(row.name, row.task, None, f"its schedule is invalid: {_text(error)}")
    return entry(row.name, row.task, schedule, row.crontab.timezone if row.crontab else None)


def _is_before(time: datetime | None, now: datetime) -> bool:
    """Return whether a time of a table is before now; without USE_TZ it has no time zone, and is local."""
    return time is not None and time.astimezone(UTC) < now
