"""The settings of the history. Fields are named after their options."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct


class HistoryConfig(Struct, frozen=True, kw_only=True):
    """How many tasks are remembered, for how long (seconds), and in which file (None: in none)."""

    no_history: bool
    history_memory: int
    history_file: Path | None
    history_max_tasks: int
    history_retention: float

    @property
    def is_on(self) -> bool:
        """Return whether anything is remembered of single tasks."""
        return not self.no_history
