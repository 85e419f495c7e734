"""The log of a relay during an outage."""

from __future__ import annotations

import itertools
import logging

from harness.configs import broker_config
from harness.processes import free_port

from celery_exporter.relay.command import relay


def test_an_error_is_logged_once(caplog):
    """Each attempt has the same error."""
    caplog.set_level(logging.INFO, "celery_exporter")
    config = broker_config(f"amqp://me:secret@127.0.0.1:{free_port()}//", retry_interval="0.01")
    calls = itertools.count()
    relay(config, config, 2, ended=lambda: next(calls) > 100)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("no events from amqp://me:***@127.0.0.1:")
    assert "refused" in warning
    assert "secret" not in caplog.text
