"""Which queues are task queues, and which are those of people who listened or asked once."""

from __future__ import annotations

import re

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
#: Made by kombu/pidbox.py (mailboxes and their answers), celery/events/receiver.py, kombu/transport/redis.py
#: (what it makes of auto-deleted queues), and celery/backends/rpc.py (named by a uuid alone).
_OWN = re.compile(rf"celeryev\..*|.*\.pidbox|{_UUID}|amq\.gen-.*")
#: Those of one who asks or listens, whom they do not outlive in good order. In one of celery/backends/rpc.py
#: results lie until somebody wants them.
_PASSING = re.compile(rf"celeryev\..*|{_UUID}\.reply\..*pidbox")


def is_task_queue(name: str) -> bool:
    """Tell whether tasks wait in a queue of this name."""
    return not _OWN.fullmatch(name)


def is_passing(name: str) -> bool:
    """Tell whether such a queue is of use only to one process, while it lives."""
    return bool(_PASSING.fullmatch(name))
