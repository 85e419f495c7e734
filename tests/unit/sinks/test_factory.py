"""A sink is on if its option is given, and only sinks with a file open it again."""

from __future__ import annotations

import pytest

from celery_exporter.config.loader import load
from celery_exporter.errors import BadSettingError
from celery_exporter.sinks.config import SinksConfig
from celery_exporter.sinks.factory import pushers_for, sinks_for


def config(**options: str) -> SinksConfig:
    return load({"broker_url": "redis://", **options}, {}).sinks


def test_no_sink_is_on_by_default():
    assert sinks_for(config()) == []
    assert not config().is_any_on


def test_each_option_turns_its_sink_on(tmp_path):
    path = tmp_path / "log"
    on = config(event_log=str(path), loki_url="http://loki:3100/")
    assert [(sink.name, sink.address) for sink in sinks_for(on)] == [
        ("event_log", str(path)),
        ("loki", "http://loki:3100"),
    ]
    assert on.is_any_on


@pytest.mark.parametrize(
    "options", [{"loki_user": "me"}, {"loki_url": "http://loki:3100", "static_label": ("queue=x",)}]
)
def test_settings_that_contradict_are_errors(options):
    with pytest.raises(BadSettingError):
        sinks_for(config(**options))


@pytest.mark.parametrize(("path", "is_file"), [("log", True), ("-", False)])
def test_only_files_are_opened_again(tmp_path, path, is_file):
    pushers = pushers_for(config(event_log=path if path == "-" else str(tmp_path / path)))
    assert [pusher.reopen is not None for pusher in pushers] == [is_file]
