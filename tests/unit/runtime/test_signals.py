"""The signals that stop the exporter."""

from __future__ import annotations

import signal

import pytest

from celery_exporter.runtime.signals import stop_signals


@pytest.mark.parametrize(
    ("handler", "is_included"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)], ids=["default", "nohup"]
)
def test_closed_terminal_stops_the_exporter_except_under_nohup(handler, is_included):
    original = signal.signal(signal.SIGHUP, handler)
    try:
        signals = stop_signals()
    finally:
        signal.signal(signal.SIGHUP, original)
    assert (signal.SIGHUP in signals) == is_included
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT} <= signals
