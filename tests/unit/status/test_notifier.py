"""Which findings are logged: a problem once, and its end once."""

from __future__ import annotations

from celery_exporter.status.finding import Finding
from celery_exporter.status.notifier import HOLD_SECONDS, FindingNotifier
from celery_exporter.status.problems import FAILURES
from celery_exporter.status.thresholds import BY_ALERT

HOLD = HOLD_SECONDS
OK, WARNING, CRITICAL = (
    Finding("clock-skew", severity, severity) for severity in ("ok", "warning", "critical")
)


def logged(*runs: tuple[float, list[Finding]]) -> list[str]:
    """Return the severities of the logged findings, run after run."""
    notifier = FindingNotifier()
    return [finding.severity for now, findings in runs for finding in notifier.changes(findings, now)]


def test_a_problem_is_logged_once_when_it_has_lasted_and_once_when_it_ends():
    assert logged((0, [WARNING]), (HOLD - 1, [WARNING])) == []
    assert logged((0, [WARNING]), (HOLD, [WARNING]), (HOLD + 1, [WARNING]), (HOLD + 2, [OK]), (99, [OK])) == [
        "warning",
        "ok",
    ]


def test_a_short_problem_is_not_logged():
    assert logged((0, [WARNING]), (HOLD - 1, [OK]), (HOLD, [WARNING]), (HOLD + 1, [])) == []


def test_a_problem_that_becomes_worse_is_logged_again_and_one_that_becomes_better_is_not():
    assert logged((0, [WARNING]), (HOLD, [WARNING]), (HOLD + 1, [CRITICAL])) == ["warning", "critical"]
    assert logged((0, [CRITICAL]), (HOLD, [CRITICAL]), (HOLD + 1, [WARNING]), (99, [OK])) == [
        "critical",
        "ok",
    ]


def test_a_check_without_a_finding_has_not_ended():
    """While the broker is away no check but one says anything."""
    assert logged((0, [WARNING]), (HOLD, [WARNING]), (HOLD + 1, []), (60, [WARNING]), (99, [WARNING])) == [
        "warning"
    ]


def test_what_is_logged_elsewhere_is_not_logged_twice():
    assert (
        logged(
            (0, [Finding("subscription", "critical", "")]), (99, [Finding("subscription", "critical", "")])
        )
        == []
    )


def test_a_problem_that_returns_after_hours_is_logged_again():
    problem = Finding("series", "warning", "x", "y")
    notifier = FindingNotifier()
    assert [len(notifier.changes([problem], now)) for now in (0.0, 20.0, 40.0)] == [0, 1, 0]
    assert [len(notifier.changes([], now)) for now in (60.0, 5_000.0)] == [0, 0]
    assert [len(notifier.changes([problem], now)) for now in (9_000.0, 9_020.0)] == [0, 1]


def test_the_log_waits_as_long_as_the_alert_is_pending():
    """So a single failure is no warning there, however few tasks there are."""
    pending = BY_ALERT[FAILURES.alert].pending
    problem = Finding("failures", "critical", "x", "y", "CeleryHighFailureRate")
    notifier = FindingNotifier()
    assert notifier.changes([problem], 0.0) == notifier.changes([problem], pending - 1.0) == []
    assert notifier.changes([problem], float(pending)) == [problem]
