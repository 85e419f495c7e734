"""The settings of a monitor."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.core.expected import ExpectedTask
from celery_exporter.core.limits import Limits
from celery_exporter.core.shards import Shard
from celery_exporter.core.task_names import Pattern
from celery_exporter.history.config import HistoryConfig
from celery_exporter.metrics.config import MetricsConfig


class MonitorConfig(Struct, frozen=True, kw_only=True):
    """What to monitor on one broker, how often, and what to keep.

    Fields are named after their options, `expected` after its key in the file. `update_interval` is in
    seconds; None is off.
    """

    broker: BrokerConfig
    limits: Limits
    metrics: MetricsConfig
    enable_events: bool
    update_interval: float
    queues: tuple[str, ...]
    queue_include: Pattern | None
    queue_exclude: Pattern | None
    queue_name_rule: tuple[tuple[Pattern, str], ...]
    task_include: Pattern | None
    task_exclude: Pattern | None
    task_name_rule: tuple[tuple[Pattern, str], ...]
    state_file: Path | None
    shard: Shard | None
    records: bool  # whether any sink wants records of tasks
    traces: bool  # whether one of them sends spans
    record_arguments: bool
    history: HistoryConfig
    expected: tuple[ExpectedTask, ...]

    @property
    def keeps_details(self) -> bool:
        """Return whether anything is remembered of single tasks, for sinks or for the history."""
        return self.records or self.history.is_on

    def read_only(self) -> MonitorConfig:
        """Return the config of a monitor that changes nothing on the broker and writes no file."""
        return replace(
            self,
            broker=self.broker.read_only(),
            enable_events=False,
            state_file=None,
            records=False,
            traces=False,
            history=replace(self.history, no_history=True, history_file=None),
        )
