"""Which sinks a configuration turns on. A new sink is a file, and a row here."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from celery_exporter.errors import BadSettingError
from celery_exporter.installation import extra_command
from celery_exporter.sinks.base import Sink
from celery_exporter.sinks.config import SinksConfig
from celery_exporter.sinks.pusher import Pusher


def _event_log(config: SinksConfig) -> Sink | None:
    if config.event_log is None:
        return None
    from celery_exporter.sinks.event_log import EventLogSink  # noqa: PLC0415  only where it is used

    return EventLogSink(config.event_log, config.broker)


def _influxdb(config: SinksConfig) -> Sink | None:
    given = msgspec.structs.asdict(config.influx)
    if not any(given[name] for name in given.keys() - {"influx_version", "influx_layout"}):  # have defaults
        return None
    from celery_exporter.sinks.influxdb import InfluxSink  # noqa: PLC0415  only where it is used

    return InfluxSink(config)


def _loki(config: SinksConfig) -> Sink | None:
    if not any(msgspec.structs.astuple(config.loki)):
        return None
    from celery_exporter.sinks.loki import loki_sink  # noqa: PLC0415  imports urllib3

    return loki_sink(config.loki, config.service_name, config.static_label)


def _otlp(config: SinksConfig) -> Sink | None:
    if config.otlp.otlp_endpoint is None:
        return None
    try:
        from celery_exporter.sinks.otlp import OtlpSink  # noqa: PLC0415  it needs the extra `otlp`
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"opentelemetry", "google"}:
            raise
        raise BadSettingError(
            f"--otlp-endpoint: opentelemetry-proto is not installed; run: {extra_command('otlp')}"
        ) from None
    return OtlpSink(config.otlp.otlp_endpoint, config.otlp)


#: Each returns its sink, None if the configuration does not turn it on.
SINKS: tuple[Callable[[SinksConfig], Sink | None], ...] = (_event_log, _influxdb, _loki, _otlp)


def sinks_for(config: SinksConfig) -> list[Sink]:
    """Return the sinks that are on. Raises BadSettingError for settings that contradict."""
    return [sink for sink_for in SINKS if (sink := sink_for(config)) is not None]


def pushers_for(config: SinksConfig) -> list[Pusher]:
    """Return a pusher for each sink that is on. Raises BadSettingError for settings that contradict."""
    limit, flush_interval = config.sink_buffer, config.sink_flush_interval
    return [Pusher(sink, limit=limit, flush_interval=flush_interval) for sink in sinks_for(config)]
