"""Tell task queues from the queues that Celery creates for events, remote control and results."""

from __future__ import annotations

import re

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
#: Created by kombu/pidbox.py (mailboxes and replies), celery/events/receiver.py, kombu/transport/redis.py
#: (its names for auto-deleted queues), and celery/backends/rpc.py (a uuid).
_INTERNAL = re.compile(rf"celeryev\..*|.*\.pidbox|{_UUID}|amq\.gen-.*")
#: Of one process, which deletes them when it ends. A queue of celery/backends/rpc.py is not one of these:
#: results wait in it for the client.
_TEMPORARY = re.compile(rf"celeryev\..*|{_UUID}\.reply\..*pidbox")


def is_task_queue(name: str) -> bool:
    """Return whether a queue of this name holds tasks."""
    return not _INTERNAL.fullmatch(name)


def is_temporary(name: str) -> bool:
    """Return whether a queue of this name is of no use once its process has ended."""
    return bool(_TEMPORARY.fullmatch(name))
