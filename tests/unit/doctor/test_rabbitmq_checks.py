"""Whether RabbitMQ denies transient queues; the rest needs a server, see integration/test_doctor.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_exporter.doctor.rabbitmq_checks import check_transient_queues, consider_workers


@pytest.mark.parametrize(
    ("workers", "level"),
    [
        ((), "warning"),
        ((("py-celery", "5.7.0"),), "ok"),
        ((("py-celery", "5.10.0rc1"), ("py-celery", "6.0")), "ok"),
        ((("py-celery", "5.7.0"), ("py-celery", "5.6.9")), "warning"),
        ((("py-celery", "5.7.0"), (None, None)), "warning"),
        ((("gocelery", "9.0"),), "warning"),
    ],
)
def test_transient_queues_by_the_versions_of_workers(workers, level):
    """Of those that are up."""
    views = [SimpleNamespace(software=name, version=version, up=True) for name, version in workers]
    down = SimpleNamespace(software="py-celery", version="5.4.0", up=False)
    denied = check_transient_queues("4.3.0", permitted=False)
    finding = consider_workers(denied, [*views, down])
    assert (finding.severity, bool(finding.remedy)) == (level, level == "warning")
    permitted = check_transient_queues("4.2.1", permitted=True)
    assert consider_workers(permitted, views) is permitted


@pytest.mark.parametrize(
    ("version", "permitted", "level"),
    [
        ("3.10.8", True, "ok"),
        ("4.2.1", True, "ok"),
        ("4.3.0", True, "ok"),
        ("4.3.0", False, "warning"),
        ("4.3.0-rc.1", None, "warning"),
        ("5.0", None, "warning"),
        ("", None, "ok"),
    ],
)
def test_transient_queues_by_version_and_by_trying(version, permitted, level):
    finding = check_transient_queues(version, permitted=permitted)
    assert finding.severity == level
    assert ("permit.transient_nonexcl_queues = true" in finding.remedy) == (level == "warning")
