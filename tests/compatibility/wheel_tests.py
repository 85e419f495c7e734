"""Runs tests on the installed wheel, and returns what passed."""

from __future__ import annotations

import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

from compatibility.environments import Environment, clean_environment

#: The picture is of textual's version in requirements.lock.
UNIT = ("tests/unit", "--deselect=tests/unit/top/test_app.py::test_the_picture_in_the_docs_is_of_this_screen")
#: A few on real brokers: each kind of event consumer, the web server, workers, queues, and a restart.
INTEGRATION = (
    "tests/integration/test_event_consumers.py",
    "tests/integration/test_http.py",
    "tests/integration/test_queues.py",
    "tests/integration/test_state_file.py::test_counters_and_unfinished_tasks_continue_after_a_restart",
    "tests/integration/test_workers.py::test_workers_of_one_host_have_separate_series",
)
PROCESSES = 2


class Counts(NamedTuple):
    """The result of a run of pytest."""

    passed: int
    skipped: int
    failed: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        numbers = ((self.passed, "passed"), (self.skipped, "skipped"), (len(self.failed), "failed"))
        return ", ".join(f"{number:,} {what}" for number, what in numbers if number) or "none ran"

    @property
    def is_good(self) -> bool:
        return self.passed > 0 and not self.failed


def run(environment: Environment, tree: Path, name: str, tests: tuple[str, ...]) -> Counts:
    """Run these tests in a copy of the checkout; the log and the report are beside the environment."""
    report = environment.folder.parent / f"{name}.xml"
    report.unlink(missing_ok=True)
    options = ("-q", "-n", str(PROCESSES), "--dist", "loadfile", "-p", "no:cacheprovider", "--no-header")
    command = environment.python(
        *("-m", "pytest", *tests, *options, "-p", "compatibility.installed", f"--junitxml={report}")
    )
    variables = clean_environment(PYTHONPATH=str(tree / "tests"))
    begin = time.monotonic()
    with report.with_suffix(".log").open("w") as log:
        code = subprocess.run(
            command, cwd=tree, env=variables, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    seconds = time.monotonic() - begin
    if not report.exists():
        return Counts(0, 0, (f"pytest ended with {code}; see {report.with_suffix('.log')}",), seconds)
    return read(report, seconds)


def read(report: Path, seconds: float) -> Counts:
    """Return the counts of a report of pytest."""
    failed, skipped, passed = [], 0, 0
    for case in ET.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}.{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return Counts(passed, skipped, tuple(failed), seconds)
