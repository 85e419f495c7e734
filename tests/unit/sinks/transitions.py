"""Records of transitions for tests of sinks."""

from __future__ import annotations

from typing import Any

from celery_exporter.core.records import Arguments, Record
from celery_exporter.core.types import State

T0 = 1_700_000_000.0  # 2023-11-14T22:13:20Z
UUID, ROOT, PARENT = (f"{digit * 8}-1111-4111-8111-111111111111" for digit in "012")


def transition(**changes: Any) -> Record:
    """Return the record of a reception; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "uuid": UUID,
        "root": ROOT,
        "parent": PARENT,
        "name": "mail.send",
        "queue": "emails",
        "worker": "w@h",
        "client": "gen1@web",
        "attempt": 0,
        "generation": 0,
        "state": State.RECEIVED,
        "timestamp": T0 + 0.25,
        "sent": T0,
    }
    return Record(**{**fields, **changes})


def failure(**changes: Any) -> Record:
    """Return a record that has all fields."""
    fields: dict[str, Any] = {
        "state": State.FAILURE,
        "timestamp": T0 + 4.5,
        "attempt": 1,
        "generation": 1,
        "exception": "ValueError",
        "first_sent": T0 - 60,
        "eta": T0 + 1,
        "received": T0 + 0.25,
        "started": T0 + 2.5,
        "queue_wait": 1.5,
        "prefetch_wait": 1.5,
        "runtime": 2.0,
        "is_final": True,
        "arguments": Arguments("(1,)", "{'to': 'a'}", "None"),
    }
    return transition(**{**fields, **changes})
