"""`celery-exporter relay` and the shards behind it, as their users run them."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.exporter import clean_environment
from harness.processes import Process

#: What it logs when it is active, or on standby.
ROLE = "relay receives the events"


class Relay(Process):
    """A relay between the event exchange and the queues of the shards."""

    name = "relay"

    def __init__(self, folder: Path, url: str, shards: int, *arguments: str) -> None:
        super().__init__(folder)
        self._lines = 0  # about its role, of earlier starts
        self.arguments = ["--broker-url", url, "--shards", str(shards), *arguments]

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery_exporter", "relay", *self.arguments]

    def environment(self) -> dict[str, str]:
        return clean_environment()

    def start(self) -> Relay:
        self._lines = self.text().count(ROLE)
        super().start()
        return self

    def ready(self) -> bool:
        """Return whether it is active or on standby, and the queues of the shards exist."""
        return self.text().count(ROLE) > self._lines


def shard_arguments(index: int, count: int) -> tuple[str, ...]:
    """Return the arguments of a shard behind a relay."""
    return ("--shard", f"{index}/{count}", "--event-queue", f"celeryev.{index}-of-{count}")
