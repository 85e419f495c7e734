"""The entries of an application: of `beat_schedule`, and of the tables of django-celery-beat."""

from __future__ import annotations

import importlib.util
import os
import re
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
from celery_exporter.installation import install_command
from celery_exporter.quoting import printable

#: The application of django-celery-beat.
DJANGO_BEAT = "django_celery_beat"
#: What databases answer, in the words of SQLite, PostgreSQL and MySQL, if a migration was not run.
_NOT_MIGRATED = re.compile(
    r"no such (table|column)|(relation|column) .* does not exist|Table .* doesn't exist|Unknown column",
    re.ASCII,
)


class AppError(Exception):
    """The application has no entries, or they cannot be read. The text is one line."""


def entries_of(name: str) -> list[Entry]:
    """Return the entries of an application, which `celery --app` finds by the same name.

    An entry that is in the tables as well is as in the tables: beat's DatabaseScheduler copies the others
    there, where they can be changed or disabled. Raises AppError, also if there is none.
    """
    sys.path.insert(0, str(Path.cwd()))
    with redirect_stdout(sys.stderr):  # what the application prints is no part of the section
        app = _loaded(name)
        schedule, zone = _settings(name, app)
        in_tables, not_read = _tables()
        if not_read and _reads_tables(scheduler := _scheduler(app)):
            why = f"its beat_scheduler is {scheduler}, but the tables of django-celery-beat cannot be read"
            raise AppError(f"--from-app: got {name!r}; {why}: {not_read}")
        in_settings = {str(key): _in_settings(str(key), value, zone) for key, value in schedule.items()}
    entries = {**in_settings, **in_tables}
    if not any(entries.values()):
        raise AppError(f"--from-app: got {name!r}; it has no periodic tasks: {_why_none(not_read)}")
    return [each for _, each in sorted(entries.items()) if each is not None]


def _why_none(not_read: str) -> str:
    if not_read:
        return f"beat_schedule is empty, and the tables of django-celery-beat are not read: {not_read}"
    return "beat_schedule and the tables of django-celery-beat have no enabled one; create one"


def _settings(name: str, app: Any) -> tuple[Mapping[Any, Any], tzinfo]:
    """Return `beat_schedule` and the time zone of an application."""
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
        text = f"{_text(error)}{_where_to_run(name, error)}"
        raise AppError(f"--from-app: got {name!r}; cannot import it: {text}") from error
    return app


def _where_to_run(name: str, error: BaseException) -> str:
    """Return what to do if the module of the application itself is not found, with a semicolon before it."""
    package = name.partition(":")[0].partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or error.name != package:
        return ""
    return f"; run this in the folder that has {package} (for Django: the one of manage.py)"


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


def _scheduler(app: Any) -> str:
    """Return the configured scheduler of beat: a name, or a class as its module."""
    scheduler = app.conf.beat_scheduler
    return scheduler if isinstance(scheduler, str) else str(getattr(scheduler, "__module__", ""))


def _reads_tables(scheduler: str) -> bool:
    return scheduler == "django" or scheduler.startswith(DJANGO_BEAT)  # the short name is for `--scheduler`


def _tables() -> tuple[dict[str, Entry | None], str]:
    """Return the rows of the tables, or why they are not read."""
    try:
        not_read = _why_not_read()
        return ({}, not_read) if not_read else (dict(_in_tables()), "")
    except (Exception, SystemExit) as error:
        text = _text(error)
        remedy = "; run: python manage.py migrate" if _NOT_MIGRATED.search(text) else ""
        raise AppError(f"cannot read the tables of django-celery-beat: {text}{remedy}") from error


def _why_not_read() -> str:
    if "DJANGO_SETTINGS_MODULE" not in os.environ:
        return "DJANGO_SETTINGS_MODULE is not set"
    if importlib.util.find_spec(DJANGO_BEAT) is None:
        command = install_command("django-celery-beat")
        return f"django-celery-beat is not installed; run: {command}"
    import django  # noqa: PLC0415  only some applications have it
    from django.apps import apps  # noqa: PLC0415

    django.setup()
    if not apps.is_installed(DJANGO_BEAT):
        return f"{DJANGO_BEAT} is not in INSTALLED_APPS; add it, and run: python manage.py migrate"
    return ""


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
