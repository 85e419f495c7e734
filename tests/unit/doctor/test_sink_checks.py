"""Checks of sinks: what would take records, and what would not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.exporter import run_cli
from harness.processes import free_port
from harness.receiver import Receiver

from celery_exporter.cli.commands import _DOCTOR
from celery_exporter.config.loader import load
from celery_exporter.doctor.sink_checks import run_sink_checks
from celery_exporter.sinks.base import Sink
from celery_exporter.sinks.factory import sinks_for


def sinks(**options: Any) -> list[Sink]:
    return sinks_for(load({"broker_url": "redis://127.0.0.1:1/0", **options}, {}).sinks)


def test_without_sinks_there_is_no_finding():
    assert run_sink_checks(sinks()) == []


def test_a_sink_that_does_not_answer_is_a_warning_and_the_others_are_ok(tmp_path: Path):
    url = f"http://127.0.0.1:{free_port()}"
    with Receiver() as receiver:
        good, bad = run_sink_checks(
            sinks(
                event_log=str(tmp_path / "log"),
                influx_url=receiver.url,
                influx_org="org",
                influx_bucket="bucket",
                loki_url=url,
            )
        )
    assert (good.check, good.severity) == (bad.check, "ok")
    assert all(name in good.message for name in ("event_log", "influxdb"))
    assert (bad.severity, "loki would take no records" in bad.message, url in bad.remedy) == (
        "warning",
        True,
        True,
    )
    assert list(tmp_path.iterdir()) == [], "a check writes nothing"


def test_the_remedy_of_an_event_log_is_about_its_directory():
    path = Path("/missing/log")  # an error is cut where it is too long
    (finding,) = run_sink_checks(sinks(event_log=str(path)))
    assert (finding.check, finding.severity) == ("sinks", "warning")
    assert f"directory {path.parent} does not exist" in finding.message
    assert f"the directory of {path} exists" in finding.remedy
    assert "reachable" not in finding.remedy


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("--loki-user", "x"), "--loki-user"),
        (("--influx-database", "x"), "--influx-database"),
        (("--loki-url", "http://loki:3100", "--static-label", "state=x"), "--static-label"),
    ],
)
def test_settings_that_contradict_end_the_command_before_the_first_check(
    words: tuple[str, ...], option: str
) -> None:
    ended = run_cli("doctor", "--broker-url", "redis://h/0", *words, deadline=60)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"celery-exporter: {option}: ")


def test_doctor_takes_the_options_of_the_exporter_about_records() -> None:
    options = {parameter.name for parameter in _DOCTOR.params}
    assert {
        "service_name",
        "sink_buffer",
        "sink_flush_interval",
        "static_label",
        "record_arguments",
    } <= options
