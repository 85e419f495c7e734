"""What is in files that exist does not change with the code."""

from __future__ import annotations

import sqlite3

from celery_exporter.core.task_info import STATE_NAMES
from celery_exporter.history import schema


def test_every_state_has_a_number_that_stays():
    assert set(schema.STATES) == set(STATE_NAMES)
    assert (
        *("PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED", "REJECTED", "LOST"),
    ) == schema.STATES


def test_a_changed_schema_needs_a_new_version():
    connection = sqlite3.connect(":memory:")
    connection.executescript(schema.CREATE)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(task)")]
    assert tuple(columns) == schema.COLUMNS
    indexes = {row[1] for row in connection.execute("PRAGMA index_list(task)")}
    assert indexes == {"task_by_uuid", "task_by_since", "task_by_root", "task_by_parent"}
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.SCHEMA_VERSION,) == (2,)
    assert connection.execute("PRAGMA application_id").fetchone() == (int.from_bytes(b"celx", "big"),)
