"""All settings of the exporter, one config per component. Only `cli` and `app` read the whole."""

from __future__ import annotations

from msgspec import Struct

from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.sinks.config import SinksConfig
from celery_exporter.web.listen_config import ListenConfig


class Settings(Struct, frozen=True, kw_only=True):
    """Everything that can be set.

    `monitor` holds the configs of the broker, of the limits and of the metrics.
    """

    monitor: MonitorConfig
    listen: ListenConfig
    sinks: SinksConfig
    no_status_page: bool
    trace_url: str | None  # of a trace in the tracing backend, with {trace_id} in it
    grafana_url: str | None
    log_level: str
    log_format: str
