"""The settings of everything that talks to one broker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.core.shards import Shard

#: The queue of --event-queue-durable without shards.
DURABLE_QUEUE = "celeryev.celery-exporter"


class BrokerConfig(Struct, frozen=True, kw_only=True):
    """How to reach one broker, and which of Celery's exchanges to use there.

    Fields are named after their options. `broker_url_file` is the file that `broker_url` was read from, None
    if the URL was given. `retry_interval` is in seconds.
    """

    broker_url: str
    broker_url_file: Path | None
    broker_transport_option: Mapping[str, Any]
    broker_ssl_option: Mapping[str, Any]
    accept_content: tuple[str, ...]
    retry_interval: float
    event_exchange: str
    control_exchange: str
    event_consumer: str
    event_queue_durable: bool
    event_queue: str | None
    shard: Shard | None

    @property
    def durable_queue(self) -> str | None:
        """Return the queue in which events wait while the exporter is away, None without one."""
        if not self.event_queue_durable:
            return self.event_queue
        shard = self.shard
        return DURABLE_QUEUE if shard is None else f"{DURABLE_QUEUE}.{shard.index}-of-{shard.count}"

    def read_only(self) -> BrokerConfig:
        """Return this config without the durable event queue, whose events belong to the exporter."""
        return replace(self, event_queue_durable=False, event_queue=None)
