"""Threads that log for the same broker as the code that made them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context

#: The name of the broker that the current code works for; log lines have it. Empty: there is only one.
BROKER: ContextVar[str] = ContextVar("broker", default="")


def new_thread(name: str, run: Callable[[], object]) -> threading.Thread:
    """Return a daemon thread that is not started, and works for the same broker as the caller."""
    return threading.Thread(target=copy_context().run, args=(run,), name=name, daemon=True)
