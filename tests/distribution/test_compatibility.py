"""The tool behind `make pythons`, `make lowest`, `make latest` and `make celery-versions`, and its page."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from compatibility import interpreters, page
from compatibility.__main__ import PAGE, PYTHONS
from compatibility.celery_versions import NOT_IN_VERSION, SINCE, VERSIONS
from compatibility.environments import _reason
from compatibility.page import CHECKS, Column, Row
from compatibility.wheel_tests import read
from harness.processes import TESTS

PASSED = dict.fromkeys(CHECKS)


def test_tests_of_a_wheel_stop_if_the_checkout_would_be_tested():
    """The package of this environment is an editable one."""
    command = [sys.executable, "-m", "pytest", "-p", "compatibility.installed", "--collect-only"]
    result = subprocess.run(
        [*command, TESTS / "unit/test_quoting.py"],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "which is not in" in result.stdout + result.stderr


def test_the_interpreter_of_this_version_is_found():
    version = "{}.{}".format(*sys.version_info)
    interpreter = interpreters.find(version)
    command = [*interpreter.wrapper, interpreter.path, "--version"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.startswith(f"Python {version}.")


def test_a_version_that_is_not_run_is_refused_with_those_that_are():
    command = [sys.executable, "-m", "compatibility", "celery-versions", "4.4"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (
        1,
        f"no Celery 4.4. Choose from {', '.join(VERSIONS)}\n",
    )


def test_a_package_that_cannot_be_compiled_is_named():
    stderr = (
        "  Failed to build `google-re2==1.1.20251105`\n"
        "  _re2.cc:15:10: fatal error: absl/strings/string_view.h: No such file or directory\n"
        "  error: command failed\n"
    )
    assert _reason(stderr) == (
        "google-re2==1.1.20251105 has no wheel, and cannot be compiled: "
        "fatal error: absl/strings/string_view.h: No such file or directory"
    )
    assert _reason("another\nerror") == "another error"


def test_a_report_is_counted_and_its_failures_are_named(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a.b" name="c"/>'
        '<testcase classname="a.b" name="d"><failure/></testcase>'
        '<testcase classname="a.b" name="e"><skipped/></testcase></testsuite></testsuites>'
    )
    counts = read(report, 1.0)
    assert (str(counts), counts.failed, counts.is_good) == (
        "1 passed, 1 skipped, 1 failed",
        ("a.b.d",),
        False,
    )
    text = page.of_rows(
        ["Python", "found in"], [Row("3.11", "PATH", counts, counts), Row("3.12", problem="x")]
    )
    assert "| 3.12 |  | x |  |" in text
    assert text.endswith("- 3.11: `a.b.d`, `a.b.d`")


def test_a_check_that_differs_is_no_and_explained():
    text = page.of_celery(
        {
            "5.6": Column(
                {"celery": "5.6.3"},
                {"Redis": {**PASSED, "beat": NOT_IN_VERSION}, "RabbitMQ": {**PASSED, "beat": NOT_IN_VERSION}},
            ),
            "5.7": Column(
                {"celery": "5.7.0"}, {"Redis": PASSED, "RabbitMQ": {**PASSED, "tasks": "got 1, want 2"}}
            ),
        }
    )
    assert "| beat up [1] | no | yes |" in text
    assert f"[1] {SINCE['beat'][1]}" in text
    assert f"| {CHECKS['tasks']} | yes | Redis only |" in text
    assert text.endswith(f"- Celery 5.7, RabbitMQ, {CHECKS['tasks']}: got 1, want 2")


def test_the_page_has_every_version():
    text = PAGE.read_text()
    rows = re.findall(r"^\| (3\.\d+)[. ]", text, re.MULTILINE)
    assert tuple(rows) == PYTHONS
    assert re.findall(r"Celery (5\.\d+)\.\d+ \|", text) == list(VERSIONS)
