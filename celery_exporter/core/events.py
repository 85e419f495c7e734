"""Payload bytes → events.

Law: whatever bytes arrive, `decode` returns, and each bad event becomes exactly one `Malformed`; its
neighbours in the batch are used. This file knows what is on the wire and nothing of what it means.

The fields are those of celery/events/dispatcher.py, celery/worker/request.py (task events),
celery/app/amqp.py (task-sent) and celery/worker/heartbeat.py (worker events). Fields that nobody here
uses (args, kwargs, result, traceback …) are skipped by the decoder and never become objects.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

#: Task events, in the order of a task's life. Celery names no others.
TASK_TYPES = (
    "task-sent",
    "task-received",
    "task-started",
    "task-succeeded",
    "task-failed",
    "task-retried",
    "task-revoked",
    "task-rejected",
    "task-cancelled",
)
WORKER_TYPES = ("worker-online", "worker-heartbeat", "worker-offline")

#: Why an event is not used; the label values of celery_exporter_events_malformed_total.
REASONS = ("undecodable", "content_type", "not_an_object", "missing_field", "bad_field")

# Names, queues, hosts and uuids become label values and dict keys, so their length bounds our memory.
# 255 is what RabbitMQ allows for a queue name and celery's database backend for a task's name and id.
_Text = Annotated[str, Meta(min_length=1, max_length=255)]
# Later than 1970, earlier than the year 5000: what is outside is not a time but an attack or an accident.
_Epoch = Annotated[float, Meta(gt=0, lt=1e11)]
_Count = Annotated[int, Meta(ge=0, lt=2**53)]


class Event(Struct, gc=False):
    """One event as its sender wrote it. Times are epoch seconds of the sender's clock.

    An application's own event (type in neither table) may lack everything but its type.
    """

    type: str
    timestamp: _Epoch
    hostname: _Text
    uuid: _Text | None = None
    # task-sent, task-received
    name: _Text | None = None
    queue: _Text | None = None
    retries: _Count | None = None
    eta: str | None = None
    # how a task ended
    runtime: Annotated[float, Meta(ge=0, lt=1e11)] | None = None
    exception: str | None = None
    traceback: str | None = None  # read where the exception is a wrapper, and dropped
    requeue: bool | None = None
    # worker events
    pid: int | None = None
    freq: Annotated[float, Meta(ge=0, lt=1e9)] | None = None
    active: _Count | None = None
    processed: _Count | None = None
    loadavg: tuple[float, float, float] | None = None
    sw_ident: _Text | None = None
    sw_ver: _Text | None = None
    sw_sys: _Text | None = None


class Malformed(Struct, frozen=True):
    """Something that is no event; `reason` is one of `REASONS`."""

    reason: str


_NAMED = frozenset(TASK_TYPES)
_KNOWN = frozenset(TASK_TYPES + WORKER_TYPES)
_fast = msgspec.json.Decoder(Event | list[Event]).decode
_required = ("timestamp", "hostname")


def decode(body: bytes) -> list[Event | Malformed]:
    """Decode one JSON message body: an event, or a list of events (`task.multi`)."""
    try:
        found = _fast(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_leniently(body)
    events = found if type(found) is list else [found]
    for event in events:
        if event.uuid is None and event.type in _NAMED:
            return _decode_leniently(body)
    return events


def _decode_leniently(body: bytes) -> list[Event | Malformed]:
    """One bad event must not cost its neighbours: parse loosely, then judge each by itself.

    The standard parser also takes what senders' `json.dumps` writes though JSON has no such thing: NaN.
    """
    try:
        return from_objects(json.loads(body))
    except (ValueError, RecursionError):
        return [Malformed("undecodable")]


def from_objects(loaded: Any) -> list[Event | Malformed]:
    """Turn an already deserialised body (for serialisers other than JSON) into events."""
    return [_judge(item) for item in (loaded if isinstance(loaded, (list, tuple)) else [loaded])]


def _judge(item: Any) -> Event | Malformed:
    if not isinstance(item, dict):
        return Malformed("not_an_object")
    kind = item.get("type")
    if kind is None:
        return Malformed("missing_field")
    if not isinstance(kind, str):
        return Malformed("bad_field")
    if kind not in _KNOWN:
        return Event(type=kind, timestamp=0.0, hostname="")
    required = (*_required, "uuid") if kind in _NAMED else _required
    if any(item.get(field) is None for field in required):
        return Malformed("missing_field")
    try:
        event = msgspec.convert(item, Event)
        # Texts for people: what is odd in them must not cost the failure.
        event.exception, event.traceback = _without_surrogates(event.exception, event.traceback)
        # str.encode refuses lone surrogates, which json.loads lets through.
        values = msgspec.structs.astuple(event)
        "".join(value for value in values if isinstance(value, str)).encode()
        numbers = (*values, *(event.loadavg or ()))
        sane = not any(math.isnan(value) for value in numbers if isinstance(value, float))
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError):
        return Malformed("bad_field")
    return event if sane else Malformed("bad_field")


# repr() of an exception: `ValueError('x')`, `pkg.mod.Err(...)`, `Outer.Inner(...)`, `<AioRpcError of …>`.
# A repr that is a sentence (pydantic's "1 validation error for …") has no class name in it.
_class_name = re.compile(r"(?:<(?=[\w.]+[\s>:(])|(?=[\w.]+\())(?:[^\W\d]\w*\.)*([^\W\d]\w*)")
_REJECT = "reject requeue="  # celery.exceptions.Reject.__repr__
_WRAPPER = "ExceptionWithTraceback()"
_HEAD = "Traceback (most recent call last):\n"
_raised = re.compile(re.escape(_HEAD) + r"(?:[ \t].*\n)+([\w.]+)(?=:|\s|\Z)")
_not_registered = re.compile(r"NotRegistered\(\s*(['\"])(.{1,255}?)\1")


def exception_class(text: str | None) -> str | None:
    """Return the class name in an exception's repr, without its module, or None."""
    if text and text.startswith(_REJECT):
        return "Reject"
    match = _class_name.match(text, 0, 255) if text else None
    return match[1] if match else None


def unwrap(event: Event) -> None:
    """Take the exception from the traceback where the event has billiard's wrapper; drop the traceback.

    Celery 5.7 writes `ExceptionWithTraceback()` for what its main process raises about a task (a lost pool
    process, a time limit; celery/worker/request.py, on_failure and on_timeout). A traceback of several
    exceptions is not read, for which of them it was does not show.
    """
    if event.exception == _WRAPPER:
        text = event.traceback or ""
        match = _raised.match(text) if text.count(_HEAD) == 1 else None
        event.exception = f"{match[1]}()" if match else None
    event.traceback = None


def _without_surrogates(*texts: str | None) -> Iterator[str | None]:
    for text in texts:
        yield text and text.encode("utf-8", "replace").decode()


def unregistered_name(text: str | None) -> str | None:
    """Return the task name in `NotRegistered('name')`: such a task fails without `task-received`."""
    match = _not_registered.match(text) if text else None
    return match[2] if match else None
