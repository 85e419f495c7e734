"""Configs as the command line builds them. Tests set the options that they need; the rest are defaults."""

from __future__ import annotations

from typing import Any

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.config.loader import load
from celery_exporter.monitor.config import MonitorConfig


def monitor_config(broker_url: str | None, **options: Any) -> MonitorConfig:
    """Return the config of a monitor. `options` are by setting name, with the text of the command line."""
    return load({"broker_url": broker_url, **options}, {}).monitor


def broker_config(broker_url: str | None, **options: Any) -> BrokerConfig:
    """Return the config of a broker, from the same arguments."""
    return monitor_config(broker_url, **options).broker
