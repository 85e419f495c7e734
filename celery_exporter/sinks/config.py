"""The settings of sinks. Fields are named after their options; None is off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct


class InfluxConfig(Struct, frozen=True, kw_only=True):
    """Where InfluxDB is, which of its write paths to use, and how points look."""

    influx_url: str | None
    influx_version: int
    influx_database: str | None
    influx_user: str | None
    influx_password_file: Path | None
    influx_org: str | None
    influx_bucket: str | None
    influx_token_file: Path | None
    influx_layout: str


class LokiConfig(Struct, frozen=True, kw_only=True):
    """Where Loki is, and how to log in."""

    loki_url: str | None
    loki_tenant: str | None
    loki_user: str | None
    loki_password_file: Path | None
    loki_token_file: Path | None


class OtlpConfig(Struct, frozen=True, kw_only=True):
    """Where spans are sent to, and how, by the variables of OpenTelemetry.

    `otlp_endpoint` is the URL of traces. `headers` may hold secrets. `certificate` is a file of CA
    certificates. `resource` has the attributes of what the spans describe.
    """

    otlp_endpoint: str | None
    headers: Mapping[str, str] = {}
    timeout_seconds: float = 10.0
    is_compressed: bool = False
    certificate: Path | None = None
    resource: Mapping[str, str] = {}


class SinksConfig(Struct, frozen=True, kw_only=True):
    """Which sinks are on, and what they have in common. `sink_flush_interval` is in seconds."""

    sink_buffer: int
    sink_flush_interval: float
    service_name: str
    static_label: Mapping[str, str]
    broker: str | None  # the name of the broker whose records these are, None if it has none
    event_log: Path | None
    influx: InfluxConfig
    loki: LokiConfig
    otlp: OtlpConfig

    @property
    def is_any_on(self) -> bool:
        """Return whether any sink is on, so that records are needed."""
        targets = (self.event_log, self.influx.influx_url, self.loki.loki_url, self.otlp.otlp_endpoint)
        return any(target is not None for target in targets)
