"""Measure inside a task, and send the result to celery-exporter as an event. For the code of an application.

    from celery_exporter.instrumentation import Measurements, monitor_time

    @app.task(bind=True)
    def match(self, orders):
        data = Measurements(tags={"market": "energy"})
        with monitor_time(data, "match_time"):
            data.fields["matches"] = len(match_all(orders))
        data.send(self)

This file needs the standard library only, and may be copied into an application. Nothing in it makes a task
fail: what cannot be sent is cut or dropped, and logged once in each process.

The event is `task-measured`, with the fields uuid, name, root_id, tags and fields. It is sent only while the
worker sends task events (celery worker -E, or enabled later), from a connection of the process that measures.
"""

from __future__ import annotations

import logging
import math
import mmap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Union

try:
    from celery.exceptions import SoftTimeLimitExceeded
    from celery.signals import task_received
except ImportError:  # so that code that is shared with other programs can be imported there
    task_received = None

    class SoftTimeLimitExceeded(Exception):  # type: ignore[no-redef]  # noqa: N818  Celery's name
        """Celery is not installed: never raised."""


log = logging.getLogger(__name__)

#: The type of the event.
EVENT_TYPE = "task-measured"
#: What the exporter accepts in one event: entries, and characters of a name or a text.
MAX_TAGS, MAX_FIELDS, MAX_CHARACTERS = 20, 50, 255
#: The largest number that the exporter accepts.
MAX_NUMBER = 1e100
#: Integers from here on are sent as floating-point numbers, as which the exporter reads all of them.
MAX_INTEGER = 2**53
#: One more attempt if the connection was lost: a task must not wait for a broker that is down.
RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0}

#: Seconds to wait for a connection while other threads use all of them (broker_pool_limit).
MAX_WAIT_SECONDS = 1.0

#: What can be measured: a number, a boolean or a text.
Value = Union[float, bool, str]  # noqa: UP007  read at run time, by Python 3.8 too

_logged: set[str] = set()
#: One byte that a worker shares with the processes that it forks: 1 while it sends no task events. They
#: cannot ask it, and --enable-events may change that at any time.
_events_off = mmap.mmap(-1, 1)


class Measurements:
    """What a task measures: tags are texts to filter and group by, fields are values.

    Change `tags` and `fields` at any time before `send`. Of numbers, the exporter shows count and sum.
    """

    def __init__(
        self, tags: Mapping[str, str] | None = None, fields: Mapping[str, Value] | None = None
    ) -> None:
        self.tags: dict[str, str] = dict(tags or {})
        self.fields: dict[str, Value] = dict(fields or {})

    def __repr__(self) -> str:
        return f"Measurements(tags={self.tags!r}, fields={self.fields!r})"

    def send(self, task: Any) -> None:
        """Send the values as one event; `task` is the bound task that runs (`self`).

        This never raises, and does nothing outside of a worker and while the worker sends no task events.
        Each call is one measurement: a second one with the same values counts them again.
        """
        try:
            _send(task, self)
        except SoftTimeLimitExceeded:  # of the task; it may be raised anywhere
            raise
        except Exception as error:  # noqa: BLE001  measuring must not make a task fail
            _log_once("not sent", f"measurements of a task were not sent: {error!r}")


@contextmanager
def monitor_time(data: Measurements, field: str) -> Iterator[None]:
    """Add the seconds that the block takes to a field of `data`, also if it ends with an exception."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        before = data.fields.get(field)
        is_number = isinstance(before, (int, float))
        data.fields[field] = before + seconds if is_number else seconds  # type: ignore[operator]


# -- sending -----------------------------------------------------------------------------------------------


def _send(task: Any, data: Measurements) -> None:
    """Publish the event as Celery publishes task-sent.

    `Task.send_event` does the same, but waits for 6 s while the broker is down.
    """
    request, app = task.request, task.app
    if not request.id or request.is_eager or not task.send_events or _events_off[0]:
        return
    event = _event(task, data)
    with app.producer_pool.acquire(block=True, timeout=MAX_WAIT_SECONDS) as producer:
        dispatcher = app.events.Dispatcher(
            producer.connection, request.hostname, enabled=False, buffer_while_offline=False
        )
        dispatcher.publish(EVENT_TYPE, event, producer, retry=True, retry_policy=RETRY_POLICY)


def _event(task: Any, data: Measurements) -> dict[str, Any]:
    request = task.request
    tags = {name: None if value is None else str(value) for name, value in data.tags.items()}
    fields = {name: _value(name, value) for name, value in data.fields.items()}
    return {
        "uuid": request.id,
        "name": task.name,
        "root_id": request.root_id,
        "tags": _bounded(tags, MAX_TAGS, "tags"),
        "fields": _bounded(fields, MAX_FIELDS, "fields"),
    }


def _on_task_received(request: Any, **_: Any) -> None:
    """Record in a worker's main process, before a task runs, whether the worker sends task events."""
    dispatcher = request.eventer
    is_enabled = dispatcher is not None and dispatcher.enabled
    _events_off[0] = not (is_enabled and (not dispatcher.groups or "task" in dispatcher.groups))


if task_received is not None:
    task_received.connect(_on_task_received, weak=False)


# -- bounds ------------------------------------------------------------------------------------------------


def _bounded(values: Mapping[Any, Any], limit: int, kind: str) -> dict[str, Any]:
    """Return at most this many entries, with names and texts that are not too long; None is left out."""
    bounded: dict[str, Any] = {}
    for name, value in values.items():
        short_name = _text(str(name))
        if not short_name or value is None:
            continue
        if len(bounded) >= limit and short_name not in bounded:
            _log_once(
                kind, f"a task measures more than {limit} {kind}: those from {short_name!r} on are dropped"
            )
            break
        bounded[short_name] = _text(value) if isinstance(value, str) else value
    return bounded


def _text(text: str) -> str:
    """Return a text that every encoder takes, cut to the longest that the exporter accepts."""
    if len(text) > MAX_CHARACTERS:
        _log_once("text", f"a task measures a text of more than {MAX_CHARACTERS} characters: {text[:40]!r}…")
    return text[:MAX_CHARACTERS].encode("utf-8", "replace").decode()


def _value(name: Any, value: Any) -> Value | None:
    """Return a value as JSON has it; None for a number that the exporter cannot add up."""
    if isinstance(value, (bool, str)):
        return value
    if type(value) is int and abs(value) < MAX_INTEGER:
        return value
    if value is None:
        return None
    try:
        number = float(value)  # also of Decimal and NumPy
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        return str(value)
    if abs(number) <= MAX_NUMBER:  # not for NaN
        return number
    _log_once("number", f"a task measures {name!r} as {number}, which cannot be added up: it is dropped")
    return None


def _log_once(kind: str, message: str) -> None:
    if kind not in _logged:
        _logged.add(kind)
        log.warning("%s (logged once)", message)
