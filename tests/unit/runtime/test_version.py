"""The texts of --version."""

from __future__ import annotations

from celery_exporter.runtime import version


def test_first_line_is_for_scripts_and_second_for_bug_reports(monkeypatch):
    monkeypatch.setattr(version, "revision", lambda: "0123abc")
    first, second = version.version_text("1.2.3").splitlines()
    assert first == "celery-exporter 1.2.3"
    assert second.startswith("commit 0123abc, Python 3.")
    for dependency in ("celery ", "kombu ", "redis ", "prometheus_client "):
        assert f", {dependency}" in second


def test_missing_commit_and_dependency_are_omitted(monkeypatch):
    monkeypatch.setattr(version, "revision", lambda: None)
    monkeypatch.setattr(version, "_DEPENDENCIES", ("celery", "no-such-package"))
    second = version.version_text("1.2.3").splitlines()[1]
    assert second.startswith("Python 3.")
    assert "no-such-package" not in second
