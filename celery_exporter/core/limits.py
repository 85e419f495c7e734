"""What bounds the tables of the core."""

from __future__ import annotations

from msgspec import Struct


class Limits(Struct, frozen=True):
    """Durations in seconds of listening time, and counts."""

    reorder_window: float = 2.0
    worker_timeout: float = 60.0  # infinite: only worker-offline takes a worker down
    purge_offline_worker_metrics: float | None = 600.0  # None: workers that are down stay
    task_ttl: float = 86_400.0
    max_tasks: int = 300_000
    max_series: int = 20_000  # in a family; celery_tasks_total has one for each label set and state
    series_ttl: float | None = None  # None: idle label sets stay
