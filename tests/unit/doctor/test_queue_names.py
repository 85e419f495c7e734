"""Task queues are distinguished from other queues by their names."""

from __future__ import annotations

import pytest

from celery_exporter.doctor.queue_names import is_task_queue, is_temporary

UUID = "9e0a9f8e-1d5a-4b7e-8a5c-0a4c4e4b9d11"


@pytest.mark.parametrize(
    ("name", "tasks", "passing"),
    [
        ("celery", True, False),
        ("mail.high", True, False),
        (f"celeryev.{UUID}", False, True),
        ("celeryev.celery-exporter", False, True),
        ("w@box.celery.pidbox", False, False),
        (f"{UUID}.reply.celery.pidbox", False, True),
        (UUID, False, False),  # results that wait for their client
        ("amq.gen-JzTY20BRgKO-HjmUJj0wLg", False, False),
    ],
)
def test_queues_are_distinguished_by_their_names(name, tasks, passing):
    assert (is_task_queue(name), is_temporary(name)) == (tasks, passing)
