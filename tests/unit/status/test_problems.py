"""The tables of problems: each row is filled by a check, and names an alert that exists."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

import celery_exporter
from celery_exporter.doctor import problems as doctor_problems
from celery_exporter.status import problems as status_problems
from celery_exporter.status.finding import Problem
from celery_exporter.status.thresholds import BY_ALERT

PACKAGE = Path(celery_exporter.__file__).parent
PROBLEMS = {
    name: row
    for module in (status_problems, doctor_problems)
    for name, row in vars(module).items()
    if isinstance(row, Problem)
}
#: Chosen by a function before they are filled.
CHOSEN = {"WORKERS_DOWN", "NO_WORKERS", "EVICTS_WHEN_LIMITED", "EVICTS_RESULTS", "EVICTS_QUEUES"}


def fields(problem: Problem) -> set[str]:
    parts = [*Formatter().parse(problem.message), *Formatter().parse(problem.remedy)]
    return {field for _, field, _, _ in parts if field is not None}


def calls() -> Iterator[tuple[str, set[str | None]]]:
    """Yield the constant and the keywords of each `CONSTANT.finding(…)`."""
    for path in (*PACKAGE.glob("status/*.py"), *PACKAGE.glob("doctor/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(ast.Name(name), "finding"), keywords=keywords):
                    if name.isupper():
                        yield name, {keyword.arg for keyword in keywords}


def test_every_call_fills_the_fields_of_its_row():
    """Else it raises KeyError, but only once the problem occurs."""
    assert [(name, given) for name, given in calls() if given != fields(PROBLEMS[name])] == []


def test_every_row_is_used():
    assert {name for name, _ in calls()} | CHOSEN == PROBLEMS.keys()


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_row_has_a_remedy_and_a_severity_and_an_alert_that_exists(name):
    problem = PROBLEMS[name]
    assert problem.remedy
    assert problem.severity in ("warning", "critical")
    assert problem.alert in {"", *BY_ALERT}


def test_values_may_contain_braces():
    """They come from the wire."""
    problem = Problem("check", "warning", "names: {names}", "exclude {names}", "Alert")
    finding = problem.finding(names="{shop}")
    assert (finding.message, finding.remedy) == ("names: {shop}", "exclude {shop}")
    with pytest.raises(KeyError):
        problem.finding()
