"""Log lines in logfmt and JSON."""

from __future__ import annotations

import json
import logging

import pytest
from fuzz.batches import AWKWARD
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.runtime.logging import LineFormatter, forward


def record(text: str, exception: BaseException | None = None) -> logging.LogRecord:
    info = (type(exception), exception, None) if exception else None
    result = logging.LogRecord("celery_exporter", logging.WARNING, "", 0, "%s", (text,), info)
    result.created, result.msecs = 1_700_000_000.25, 250.0
    return result


@given(st.text(st.sampled_from(AWKWARD) | st.characters(), max_size=30))
def test_line_is_printable_and_contains_the_message(text):
    lines = {name: LineFormatter(name).format(record(text)) for name in ("logfmt", "json")}
    assert all(line.isprintable() for line in lines.values())
    assert json.loads(lines["json"])["msg"] == text
    message = lines["logfmt"].partition(" msg=")[2]
    assert (json.loads(message) if message.startswith('"') else message) == text


def test_line_has_time_level_and_logger():
    assert LineFormatter("logfmt").format(record("a b")) == (
        'time=2023-11-14T22:13:20.250Z level=warning logger=celery_exporter msg="a b"'
    )


def test_traceback_is_a_field():
    fields = json.loads(LineFormatter("json").format(record("failed", ValueError("x"))))
    assert fields["traceback"] == "ValueError: x"


@pytest.fixture
def logger():
    logger = logging.getLogger("celery_exporter")
    handlers, propagate = list(logger.handlers), logger.propagate
    yield logger
    logger.handlers[:], logger.propagate = handlers, propagate


def test_warnings_are_forwarded_once_and_not_printed(logger, caplog):
    messages: list[str] = []
    forward(messages.append, ignored="celery_exporter.status.checks")
    logger.warning("lost %s", "connection")
    logger.info("connected")
    logger.getChild("status.checks").warning("no workers")
    assert messages == ["lost connection"]
    assert caplog.messages == []


def test_other_handlers_of_the_logger_stay(logger):
    handler = logging.NullHandler()
    logger.addHandler(handler)
    forward(print, ignored="")
    assert handler in logger.handlers
