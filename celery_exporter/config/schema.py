"""All settings of the exporter, one config per component. Only `cli` and `app` read the whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from celery_exporter.errors import BadSettingError
from celery_exporter.metrics.config import MetricsConfig
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.sinks.config import SinksConfig
from celery_exporter.web.listen_config import ListenConfig

#: The label, tag or field with the name of a broker.
BROKER_LABEL = "broker"


class BrokerSettings(Struct, frozen=True, kw_only=True):
    """What is set for one broker. The static labels of `sinks` include its name."""

    monitor: MonitorConfig
    sinks: SinksConfig
    given: Mapping[str, object]  # what the file gives for it, by option: equal settings are given equally


class Settings(Struct, frozen=True, kw_only=True):
    """Everything that can be set. `brokers` is by name, which is empty for one that is not in a file.

    `given` is what the file gives, by option, besides what it gives for brokers.
    """

    config_file: Path | None
    brokers: Mapping[str, BrokerSettings]
    metrics: MetricsConfig
    listen: ListenConfig
    web_enable_lifecycle: bool
    no_status_page: bool
    trace_url: str | None  # of a trace in the tracing backend, with {trace_id} in it
    grafana_url: str | None
    log_level: str
    log_format: str
    given: Mapping[str, object]

    @property
    def monitor(self) -> MonitorConfig:
        """Return the monitor's settings of the only broker; see `broker`."""
        return self.broker(None).monitor

    @property
    def sinks(self) -> SinksConfig:
        """Return the settings of the sinks of the only broker; see `broker`."""
        return self.broker(None).sinks

    def broker(self, name: str | None) -> BrokerSettings:
        """Return the settings of the broker with this name, or of the only one.

        Raises BadSettingError if there is no such broker, or if there are several and no name is given.
        """
        names = ", ".join(self.brokers)
        if name is None and len(self.brokers) == 1:
            return next(iter(self.brokers.values()))
        if name is None:
            raise BadSettingError(f"--broker is missing; {str(self.config_file)!r} has {names}")
        if name not in self.brokers or not name:
            known = f"{str(self.config_file)!r} has {names}" if names else "no --config.file has brokers"
            raise BadSettingError(f"--broker: got {name!r}; {known}")
        return self.brokers[name]
