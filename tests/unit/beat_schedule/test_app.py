"""`celery-exporter expected` prints what the beat of a real application sends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.exporter import clean_environment, run_cli

from celery_exporter.config.config_file import read
from celery_exporter.core.expected import ExpectedTask
from celery_exporter.core.schedules import Cron, Every
from celery_exporter.installation import install_command

PLAIN = """
from datetime import timedelta
from celery import Celery
from celery.schedules import crontab

print("importing")
app = Celery("shop")
app.conf.timezone = "Europe/Berlin"
app.conf.beat_schedule = {
    "sync": {"task": "shop.sync", "schedule": 30.0},
    "tidy": {"task": "shop.tidy", "schedule": timedelta(hours=2)},
    "nightly": {"task": "reports.nightly", "schedule": crontab(minute=0, hour=3)},
}

@app.on_after_finalize.connect
def add(sender, **kwargs):
    sender.add_periodic_task(3600, sender.signature("shop.added"), name="added")
"""
SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = ["django_celery_beat"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
USE_TZ = True
TIME_ZONE = "UTC"
"""
DJANGO_APP = """
from celery import Celery

app = Celery("shop")
app.conf.beat_scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
app.conf.beat_schedule = {
    "stopped": {"task": "shop.stopped", "schedule": 30.0},
    "settings": {"task": "shop.settings", "schedule": 60.0},
}
"""
ROWS = """
from datetime import timedelta
import django
django.setup()
from django.core.management import call_command
from django.utils.timezone import now
from django_celery_beat.models import *
call_command("migrate", verbosity=0)
hours = IntervalSchedule.objects.create(every=2, period="hours")
night = CrontabSchedule.objects.create(minute="0", hour="3", timezone="America/New_York")
add = PeriodicTask.objects.create
add(name="sync", task="shop.sync", interval=hours)
add(name="night", task="reports.nightly", crontab=night)
add(name="stopped", task="shop.stopped", interval=hours, enabled=False)
add(name="once", task="shop.once", interval=hours, one_off=True)
add(name="at", task="shop.at", one_off=True, clocked=ClockedSchedule.objects.create(clocked_time=now()))
sun = SolarSchedule.objects.create(event="sunset", latitude=52, longitude=13)
add(name="sun", task="shop.sun", solar=sun)
add(name="old", task="shop.old", interval=hours, expires=now() - timedelta(days=1))
never = CrontabSchedule.objects.create(minute="99")
add(name="bad", task="shop.bad", crontab=never)
add(name="new", task="shop.new", interval=hours, start_time=now() + timedelta(days=1))
"""


ONE = """
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab
app = Celery("shop")
{}
"""
ENTRIES = """app.conf.beat_schedule = {
    1: {"task": "shop.int", "schedule": 10},
    "object": ScheduleEntry("object", "shop.object", schedule=20, app=app),
    "cron": ScheduleEntry("cron", "shop.cron", schedule=crontab(minute=0, app=app), app=app),
    "no task": {"schedule": 10},
    "empty": {"task": "", "schedule": 10},
    "number": {"task": 3, "schedule": 10},
    "surrogate": {"task": "t\\ud800", "schedule": 10},
    "no schedule": {"task": "t"},
    "text": {"task": "t", "schedule": "10"},
    "nan": {"task": "t", "schedule": float("nan")},
    "inf": {"task": "t", "schedule": float("inf")},
    "list": ["t", 10],
}"""
WHY = {
    "empty": "it has no task",
    "inf": "its schedule, inf, is no number of seconds and no schedule",
    "list": "it is a list, not a dict",
    "nan": "its schedule, nan, is no number of seconds and no schedule",
    "no schedule": "it has no schedule",
    "no task": "it has no task",
    "number": "its task, 3, is no name",
    "surrogate": "its task is no valid text",
    "text": "its schedule, '10', is no number of seconds and no schedule",
}


def section(folder: Path, app: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the folder of the application."""
    command = [sys.executable, "-m", "celery_exporter", "expected", "--from-app", app]
    environ = clean_environment(environment)
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def accepted(folder: Path, text: str) -> dict[str, ExpectedTask]:
    """Return the tasks of a section, which check-config accepts."""
    file = folder / "config.yml"
    file.write_text(f"broker_url: redis://127.0.0.1\n{text}")
    assert run_cli("check-config", str(file)).returncode == 0
    return {task.name: task for task in read(file).expected[""]}


@pytest.mark.parametrize("name", ["shop", "shop:app"])
def test_an_application_is_found_as_celery_finds_it(tmp_path, name):
    (tmp_path / "shop.py").write_text(PLAIN)
    done = section(tmp_path, name)
    assert (done.returncode, done.stderr) == (0, "importing\n")
    assert {name: task.schedule for name, task in accepted(tmp_path, done.stdout).items()} == {
        "shop.sync": Every(30.0),
        "shop.tidy": Every(7_200.0),
        "shop.added": Every(3_600.0),
        "reports.nightly": Cron("0 3 * * *", "Europe/Berlin"),
    }


@pytest.fixture
def django_project(tmp_path: Path) -> Path:
    (tmp_path / "settings.py").write_text(SETTINGS)
    (tmp_path / "shop.py").write_text(DJANGO_APP)
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings"}
    subprocess.run([sys.executable, "-c", ROWS], cwd=tmp_path, env=environ, check=True)
    return tmp_path


def test_the_tables_of_django_celery_beat_are_read(django_project):
    done = section(django_project, "shop:app", DJANGO_SETTINGS_MODULE="settings")
    assert (done.returncode, done.stderr) == (0, "")
    assert {name: task.schedule for name, task in accepted(django_project, done.stdout).items()} == {
        "shop.sync": Every(7_200.0),
        "reports.nightly": Cron("0 3 * * *", "America/New_York"),
        "shop.settings": Every(60.0),
    }
    left_out = [line.strip() for line in done.stdout.splitlines() if "left out" in line]
    assert [line.partition(" at ")[0] for line in left_out] == [
        "# left out:",
        "# left out: bad (task shop.bad): its schedule is invalid: ValueError: Invalid end range: 99 > 59.",
        "# left out: new (task shop.new): it starts",
        "# left out: old (task shop.old): it expired",
        "# left out: once (task shop.once): it runs once",
        "# left out: sun (task shop.sun): a solar schedule has no fixed times",
    ]
    assert left_out[0] == "# left out: at (task shop.at): it runs once"


def error_of(folder: Path, app: str = "shop:app", **environment: str) -> str:
    """Return the error, which is one line, and all that the command prints."""
    done = section(folder, app, **environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    return done.stderr.removeprefix("celery-exporter: ").rstrip("\n")


def test_tables_that_are_missing_are_an_error_with_the_command_that_creates_them(django_project):
    (django_project / "db.sqlite3").unlink()
    error = error_of(django_project, DJANGO_SETTINGS_MODULE="settings")
    assert "cannot read the tables of django-celery-beat: OperationalError: no such table" in error
    assert error.endswith("; run: python manage.py migrate")


def test_a_database_that_cannot_be_opened_needs_no_migration(django_project):
    text = SETTINGS.replace("db.sqlite3", "no/folder")
    (django_project / "settings.py").write_text(text)
    error = error_of(django_project, DJANGO_SETTINGS_MODULE="settings")
    assert error.endswith("OperationalError: unable to open database file")


UNINSTALLED = 'import sys\nsys.modules["django_celery_beat"] = None\n'
#: Why the tables are not read: what is different in the project, and the environment → the end of the error.
NO_TABLES = {
    "no settings": ("", SETTINGS, {}, "DJANGO_SETTINGS_MODULE is not set"),
    "not installed": (
        UNINSTALLED,
        SETTINGS.replace('"django_celery_beat"', ""),
        {"DJANGO_SETTINGS_MODULE": "settings"},
        "django-celery-beat is not installed; run: " + install_command("django-celery-beat"),
    ),
    "not an app": (
        "",
        SETTINGS.replace('"django_celery_beat"', ""),
        {"DJANGO_SETTINGS_MODULE": "settings"},
        "django_celery_beat is not in INSTALLED_APPS; add it, and run: python manage.py migrate",
    ),
}


@pytest.mark.parametrize(("source", "settings", "environment", "why"), NO_TABLES.values(), ids=NO_TABLES)
@pytest.mark.parametrize("scheduler", ["django_celery_beat.schedulers:DatabaseScheduler", "django", None])
def test_tables_that_are_not_read_are_an_error_if_beat_reads_them_or_if_there_is_nothing_else(
    tmp_path, scheduler, source, settings, environment, why
):
    (tmp_path / "settings.py").write_text(settings)
    conf = f"app.conf.beat_scheduler = {scheduler!r}" if scheduler else ""
    schedule = 'app.conf.beat_schedule = {"a": {"task": "t", "schedule": 1}}' if scheduler else ""
    (tmp_path / "shop.py").write_text(source + ONE.format(f"{conf}\n{schedule}"))
    begin = (
        f"its beat_scheduler is {scheduler}, but the tables of django-celery-beat cannot be read: "
        if scheduler
        else "it has no periodic tasks: beat_schedule is empty, and the tables of django-celery-beat "
        "are not read: "
    )
    assert error_of(tmp_path, **environment) == f"--from-app: got 'shop:app'; {begin}{why}"


def test_beat_with_another_scheduler_needs_no_tables(tmp_path):
    conf = 'app.conf.beat_scheduler = "django_redis_beat.Scheduler"'
    schedule = 'app.conf.beat_schedule = {"a": {"task": "t", "schedule": 1}}'
    (tmp_path / "shop.py").write_text(ONE.format(f"{conf}\n{schedule}"))
    assert section(tmp_path, "shop:app").returncode == 0


@pytest.mark.parametrize("change", ["all().delete()", "update(enabled=False)"])
def test_tables_without_an_enabled_task_are_an_error_that_says_so(django_project, change):
    (django_project / "shop.py").write_text(ONE.format(""))
    models = "from django_celery_beat.models import PeriodicTask"
    script = f"import django; django.setup(); {models}; PeriodicTask.objects.{change}"
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings"}
    subprocess.run([sys.executable, "-c", script], cwd=django_project, env=environ, check=True)
    assert error_of(django_project, DJANGO_SETTINGS_MODULE="settings") == (
        "--from-app: got 'shop:app'; it has no periodic tasks: beat_schedule and the tables of "
        "django-celery-beat have no enabled one; create one"
    )


def test_a_module_that_is_elsewhere_is_an_error_with_the_folder_to_run_in(tmp_path):
    remedy = "; run this in the folder that has shop (for Django: the one of manage.py)"
    assert error_of(tmp_path, "shop.celery:app").endswith(f"No module named 'shop'{remedy}")
    (tmp_path / "shop.py").write_text("import nosuch")
    assert error_of(tmp_path, "shop:app").endswith("No module named 'nosuch'")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise ValueError('no')", "cannot import it: ValueError: "),
        ("app = 3", "cannot import it: AttributeError: "),
        ("", "cannot import it: "),
        ("import sys; sys.exit(3)", "cannot import it: SystemExit: 3"),
        (ONE.format("app.conf.timezone = 'Foo/Bar'"), "cannot read its time zone: "),
        (ONE.format("app.conf.beat_schedule = []"), "its beat_schedule is a list, not a dict"),
        (ONE.format("app.conf.beat_schedule = None"), "its beat_schedule is a NoneType, not a dict"),
        ("from celery import Celery\napp = Celery()", "it has no periodic tasks: beat_schedule is empty"),
    ],
)
def test_an_application_that_cannot_be_used_is_one_line(tmp_path, source, error):
    (tmp_path / "shop.py").write_text(source)
    done = section(tmp_path, "shop:app")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("celery-exporter: --from-app: got 'shop:app'")
    assert error in done.stderr


def test_a_bad_entry_is_a_comment_that_says_why_and_hides_no_other(tmp_path):
    (tmp_path / "shop.py").write_text(ONE.replace("{}", ENTRIES))
    done = section(tmp_path, "shop:app")
    assert (done.returncode, done.stderr) == (0, "")
    assert {name: task.schedule for name, task in accepted(tmp_path, done.stdout).items()} == {
        "shop.int": Every(10.0),
        "shop.object": Every(20.0),
        "shop.cron": Cron("0 * * * *", "UTC"),
    }
    comments = [line.partition(": ")[2] for line in done.stdout.splitlines() if "# left out" in line]
    reasons = {name.partition(" (")[0]: why for name, _, why in (line.partition(": ") for line in comments)}
    assert reasons == WHY


def test_if_all_entries_are_left_out_the_reasons_are_printed(tmp_path):
    (tmp_path / "shop.py").write_text(ONE.format("app.conf.beat_schedule = {'a': {'task': 't'}}"))
    done = section(tmp_path, "shop:app")
    assert (done.returncode, done.stdout) == (1, "  # left out: a (task t): it has no schedule\n")
    assert done.stderr.endswith("its periodic tasks cannot be expected, for the printed reasons\n")
    assert done.stderr.count("\n") == 1


def test_the_application_has_to_be_named():
    done = run_cli("expected")
    assert done.returncode == 2
    assert "--from-app" in done.stderr
