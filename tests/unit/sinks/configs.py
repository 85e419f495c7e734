"""Settings of sinks for tests: what the loader makes of options."""

from __future__ import annotations

from typing import Any

from celery_exporter.config.loader import load
from celery_exporter.sinks.config import SinksConfig


def sinks_config(**argv: Any) -> SinksConfig:
    """Return the settings of these options, which have underscores in their names."""
    texts = {name: text if isinstance(text, tuple) else str(text) for name, text in argv.items()}
    return load({"broker_url": "redis://localhost", **texts}, {}).sinks
