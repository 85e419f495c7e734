"""The check of the history file: whether an exporter could use it."""

from __future__ import annotations

import os

import pytest

from celery_exporter.cli.commands import _DOCTOR
from celery_exporter.doctor.history_checks import run_history_check
from celery_exporter.history.store import HistoryStore


def test_a_file_that_does_not_exist_yet_can_be_used_and_is_not_created(tmp_path):
    finding = run_history_check(tmp_path / "history")
    assert (finding.check, finding.severity) == ("history", "ok")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_an_exporter_has_open_is_no_problem(tmp_path):
    store = HistoryStore(tmp_path / "history")
    store.open()
    assert "an exporter uses it" in run_history_check(store.path).message
    store.close()
    before = store.path.read_bytes()
    assert "can be used" in run_history_check(store.path).message
    assert store.path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing/history", "directory /"), ("other", "is not a history file"), (".", "Is a")],
)
def test_a_file_that_cannot_be_used_is_a_warning(tmp_path, name, reason):
    (tmp_path / "other").write_bytes(b"text")
    finding = run_history_check(tmp_path / name)
    assert (finding.severity, reason in finding.message) == ("warning", True)
    assert (tmp_path / "other").read_bytes() == b"text"


def test_a_directory_that_must_not_be_written_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root
    assert "is not writable" in run_history_check(tmp_path / "history").message


def test_doctor_takes_the_option():
    assert "history_file" in {parameter.name for parameter in _DOCTOR.params}
