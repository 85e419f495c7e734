"""The current settings: which URL of a rewritten --broker-url-file is used, and what is logged."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from harness.configs import broker_config

from celery_exporter.broker.source import ConfigSource
from celery_exporter.broker.url_file import MAX_URL_LENGTH

OLD = "redis://:hunter1@h:6379/0"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (path := tmp_path / "url").write_text(OLD)
    return path


@pytest.fixture
def source(path: Path) -> ConfigSource:
    return ConfigSource(broker_config(None, broker_url_file=str(path)))


def test_a_url_that_was_given_stays():
    config = broker_config(OLD)
    source = ConfigSource(config)
    assert source.current() is config
    assert not source.leads_elsewhere(config)
    assert source.masked_url() == "redis://:***@h:6379/0"


@pytest.mark.parametrize(
    ("new", "elsewhere"),
    [
        (OLD, False),
        ("redis://:hunter2@h:6379/0\n", False),
        ("redis://me:hunter2@h:6379/0", False),
        ("redis://:hunter1@h:6379/1", True),
        ("redis://:hunter1@other:6379/0", True),
        ("rediss://:hunter1@h:6379/0", True),
        ("redis://:hunter1@h:6379/0;redis://other/0", True),
    ],
)
def test_a_new_url_is_taken_and_only_another_address_ends_connections(path, source, new, elsewhere):
    before = source.current()
    path.write_text(new)
    assert source.leads_elsewhere(before) is elsewhere
    assert source.current().broker_url == new.strip()
    assert not source.leads_elsewhere(source.current())


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\xff\xfe",
        b"hunter2",
        b"nosuch://hunter2@h",
        b"amqp://me:hunter2@h//",
        b" " * MAX_URL_LENGTH,
    ],
)
def test_an_unusable_file_is_logged_once_and_the_old_url_stays(path, source, caplog, content):
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with caplog.at_level(logging.INFO):
        assert {source.current().broker_url for _ in range(3)} == {OLD}
    (line,) = caplog.messages
    assert line.endswith("still using redis://:***@h:6379/0")
    assert "hunter" not in caplog.text
    path.write_text("redis://:hunter3@h:6379/0")
    assert source.current().broker_url == "redis://:hunter3@h:6379/0"


def test_a_folder_in_its_place_and_a_pipe(path, source, caplog):
    path.unlink()
    path.mkdir()
    assert source.current().broker_url == OLD
    assert len(caplog.messages) == 1
    path.rmdir()
    os.mkfifo(path)
    assert source.current().broker_url == OLD, "and it does not wait for a writer"
    assert len(caplog.messages) == 1
