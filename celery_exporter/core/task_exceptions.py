"""Reads exceptions of events: class names, names of unregistered tasks, and whether retries were exceeded."""

from __future__ import annotations

import re

from celery_exporter.core.events import Event

# repr() of an exception: `ValueError('x')`, `pkg.mod.Err(...)`, `Outer.Inner(...)`, `<AioRpcError of …>`.
# A repr that is a sentence (pydantic's "1 validation error for …") has no class name in it.
_class_name = re.compile(r"(?:<(?=[\w.]+[\s>:(])|(?=[\w.]+\())(?:[^\W\d]\w*\.)*([^\W\d]\w*)")
_REJECT = "reject requeue="  # celery.exceptions.Reject.__repr__
#: The start of a `Retry`, before the exception that caused it. Celery writes it in place of that exception if
#: the worker runs tasks in threads: it looks through one wrapper of two (celery/worker/request.py).
_RETRY = "Retry(Retry(...), "
_WRAPPER = "ExceptionWithTraceback()"
_TRACEBACK_HEAD = "Traceback (most recent call last):\n"
#: No more is read. A thousand frames, which is Python's recursion limit, have some 100,000 characters.
MAX_TRACEBACK_CHARACTERS = 2**18
_after_frames = re.compile(r"\n(?![ \t])")
_raised_class = re.compile(r"([\w.]{1,255})(?=:|\s|\Z)")
#: What is left of a traceback if `Task.retry` raised an exception because `max_retries` was reached.
RETRIES_EXCEEDED = "retries exceeded"
# The two statements of Task.retry (celery/app/task.py): with `exc`, as autoretry_for calls it, and without.
# A task that another one calls as a function is not retried either: `raise_with_context(exc or Retry(…))`.
_no_retry_left = re.compile(
    r'[/\\]celery[/\\]app[/\\]task\.pyc?", line \d+, in retry\n'
    r"[ \t]+raise(?:_with_context\(exc\)| self\.MaxRetriesExceededError\()"
)
_not_registered = re.compile(r"NotRegistered\(\s*(['\"])(.{1,255}?)\1")


def exception_class(text: str | None) -> str | None:
    """Return the class name in the repr of an exception, without its module; None if there is none."""
    if not text:
        return None
    if text.startswith(_REJECT):
        return "Reject"
    start = len(_RETRY) if text.startswith(_RETRY) else 0
    match = _class_name.match(text, start, start + 255)
    return match[1] if match else None


def read_traceback(event: Event) -> None:
    """Replace billiard's exception wrapper by the exception in the traceback, and shorten the traceback.

    `RETRIES_EXCEEDED` is left of it, or None.

    Celery 5.7 writes `ExceptionWithTraceback()` for exceptions that its main process raises for a task: a
    lost pool process, or a time limit (celery/worker/request.py, on_failure and on_timeout). A traceback with
    several exceptions is ignored, since it does not show which one was wrapped.
    """
    if event.exception == _WRAPPER:
        name = _class_in_traceback(event.traceback or "")
        event.exception = f"{name}()" if name else None
    if event.traceback is not None and event.traceback != RETRIES_EXCEEDED:
        is_exceeded = _no_retry_left.search(event.traceback, 0, MAX_TRACEBACK_CHARACTERS)
        event.traceback = RETRIES_EXCEEDED if is_exceeded else None


def _class_in_traceback(traceback: str) -> str | None:
    """Return the class name in the line after the frames, which are indented; None if there is none."""
    if len(traceback) > MAX_TRACEBACK_CHARACTERS or traceback.count(_TRACEBACK_HEAD) != 1:
        return None
    if not traceback.startswith((f"{_TRACEBACK_HEAD} ", f"{_TRACEBACK_HEAD}\t")):
        return None
    end = _after_frames.search(traceback, len(_TRACEBACK_HEAD))
    match = _raised_class.match(traceback, end.end()) if end else None
    return match[1] if match else None


def unregistered_name(text: str | None) -> str | None:
    """Return the task name in `NotRegistered('name')`; None for other exceptions.

    A worker sends no `task-received` for a task that it does not register.
    """
    match = _not_registered.match(text, 0, 512) if text else None
    return match[2] if match else None
