"""Configs as the command line makes them: only what a test is about is given, the rest are defaults."""

from __future__ import annotations

from typing import Any

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.config.loader import load
from celery_exporter.monitor.config import MonitorConfig


def monitor_config(broker_url: str | None, **options: Any) -> MonitorConfig:
    """Return the config of a monitor; `options` by the names of their settings, as texts."""
    return load({"broker_url": broker_url, **options}, {}).monitor


def broker_config(broker_url: str | None, **options: Any) -> BrokerConfig:
    """Return the config of a broker."""
    return monitor_config(broker_url, **options).broker
