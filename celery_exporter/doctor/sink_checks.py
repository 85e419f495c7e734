"""Checks of the sinks: whether each receiver answers and takes the login. No record is written."""

from __future__ import annotations

from collections.abc import Sequence

from celery_exporter.doctor.problems import EVENT_LOG_UNUSABLE, SINK_UNREACHABLE
from celery_exporter.quoting import printable
from celery_exporter.sinks.base import PermanentError, Sink, TemporaryError
from celery_exporter.status.facts import short
from celery_exporter.status.finding import Finding, names

TIMEOUT_SECONDS = 5.0


def run_sink_checks(sinks: Sequence[Sink]) -> list[Finding]:
    """Return one finding for all sinks that would take records, and one for each other sink."""
    problems = {sink.name: finding for sink in sinks if (finding := _check(sink)) is not None}
    good = [sink.name for sink in sinks if sink.name not in problems]
    summary = [SINK_UNREACHABLE.ok(f"would take records: {names(good)}")] if good else []
    return [*summary, *problems.values()]


def _check(sink: Sink) -> Finding | None:
    try:
        sink.probe(TIMEOUT_SECONDS)
    except (TemporaryError, PermanentError) as error:
        text, address = short(str(error)), printable(sink.address)
        if sink.name == "event_log":
            return EVENT_LOG_UNUSABLE.finding(sink=sink.name, error=text, address=address)
        return SINK_UNREACHABLE.finding(sink=sink.name, error=text, address=address)
    finally:
        sink.close()
    return None
