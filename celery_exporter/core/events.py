"""Payload bytes → events.

Invariant: whatever bytes arrive, `decode` returns, and each bad event becomes exactly one `Malformed`; its
neighbours in the batch are used. What it takes, in time and memory, is bounded by the length of the body.
This file knows what is on the wire and nothing of what it means.

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

from celery_exporter.core.json_array import MAX_ITEMS, items
from celery_exporter.core.task_names import LONGEST

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
#: The one of a serialiser that is not accepted.
REFUSED = REASONS[1]

# Names, queues, hosts and uuids become label values and dict keys, so their length bounds our memory.
# 255 is what RabbitMQ allows for a queue name and celery's database backend for a task's name and id.
_Text = Annotated[str, Meta(min_length=1, max_length=255)]
# Exchanges and routing keys, of as many characters; both may be empty.
_Name = Annotated[str, Meta(max_length=255)]
# Later than 1970, earlier than the year 5000: what is outside is not a time but an attack or an accident.
_Epoch = Annotated[float, Meta(gt=0, lt=1e11)]
_Count = Annotated[int, Meta(ge=0, lt=2**53)]
# Attempts are numbered in blocks of this size; see core/identity.py.
_Retries = Annotated[int, Meta(ge=0, lt=2**31)]
# More tasks than a worker process gets through in its life; they are added up over its restarts.
_Tasks = Annotated[int, Meta(ge=0, lt=2**40)]
_Load = Annotated[float, Meta(ge=0, lt=1e11)]


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
    exchange: _Name | None = None
    routing_key: _Name | None = None
    retries: _Retries | None = None
    eta: Annotated[str, Meta(max_length=255)] | None = None
    expires: Annotated[str, Meta(max_length=255)] | None = None
    # how a task ended
    runtime: Annotated[float, Meta(ge=0, lt=1e11)] | None = None
    exception: str | None = None
    traceback: str | None = None  # read where the exception is a wrapper, and dropped
    requeue: bool | None = None
    # worker events
    pid: _Count | None = None
    freq: Annotated[float, Meta(ge=0, lt=1e9)] | None = None
    active: _Count | None = None
    processed: _Tasks | None = None
    loadavg: tuple[_Load, _Load, _Load] | None = None
    sw_ident: _Text | None = None
    sw_ver: _Text | None = None
    sw_sys: _Text | None = None


class Malformed(Struct, frozen=True, gc=False):
    """Something that is no event; `reason` is one of `REASONS`."""

    reason: str


_UNDECODABLE, _CONTENT_TYPE, _NOT_AN_OBJECT, _MISSING_FIELD, _BAD_FIELD = map(Malformed, REASONS)

#: Characters of an id whose bytes need not be counted: four a character are most.
_SURELY_SHORT = LONGEST // 4
#: Bytes of an item that may become objects, to be judged: they take up to 35 times as much memory.
MAX_LOOSE = 2**20
#: Digits of a whole number that is parsed; longer ones are outside of every range, and take long.
MAX_DIGITS = 400
#: A body this short does not hold too many events: the shortest is '{"type":""}'.
_FEW = 11 * MAX_ITEMS

_NAMED = frozenset(TASK_TYPES)
_KNOWN = frozenset(TASK_TYPES + WORKER_TYPES)
_fast = msgspec.json.Decoder(Event | list[Event]).decode
_fast_one = msgspec.json.Decoder(Event).decode
_required = ("timestamp", "hostname")


def decode(body: bytes) -> list[Event | Malformed]:
    """Decode one JSON message body: an event, or a list of events (`task.multi`)."""
    if len(body) > _FEW and body.count(b"{") > MAX_ITEMS:
        return _decode_one_by_one(body)
    try:
        found = _fast(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_one_by_one(body)
    events = found if type(found) is list else [found]
    for event in events:
        uuid = event.uuid
        if (event.type in _NAMED) if uuid is None else (len(uuid) > _SURELY_SHORT and not _is_kept(event)):
            return _decode_one_by_one(body)
    return events


def _is_kept(event: Event) -> bool:
    """Tell whether an id has 255 bytes at most, if it is of a task: so many of them are remembered."""
    uuid = event.uuid or ""
    is_short = len(uuid) <= _SURELY_SHORT or len(uuid.encode("utf-8", "replace")) <= LONGEST
    return is_short or event.type not in _KNOWN


def _decode_one_by_one(body: bytes) -> list[Event | Malformed]:
    """One bad event must not cost its neighbours: tell them apart, then judge each by itself."""
    return [_UNDECODABLE if item is None else _decode_item(item) for item in items(body)]


def _decode_item(item: bytes) -> Event | Malformed:
    try:
        event = _fast_one(item)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_loosely(item)
    if event.uuid is None:
        return _MISSING_FIELD if event.type in _NAMED else event
    return event if _is_kept(event) else _BAD_FIELD


def _decode_loosely(item: bytes) -> Event | Malformed:
    """The standard parser also takes what senders' `json.dumps` writes though JSON has no such thing: NaN."""
    if len(item) > MAX_LOOSE:
        return _UNDECODABLE
    try:
        return _judge(json.loads(item, parse_int=_whole))
    except (ValueError, RecursionError):
        return _UNDECODABLE


def _whole(digits: str) -> float:
    return int(digits) if len(digits) <= MAX_DIGITS else math.inf


def from_objects(loaded: Any) -> list[Event | Malformed]:
    """Turn an already deserialised body (for serialisers other than JSON) into events."""
    return [_judge(item) for item in (loaded if isinstance(loaded, (list, tuple)) else [loaded])]


def _judge(item: Any) -> Event | Malformed:
    if not isinstance(item, dict):
        return _NOT_AN_OBJECT
    kind = item.get("type")
    if kind is None:
        return _MISSING_FIELD
    if not isinstance(kind, str):
        return _BAD_FIELD
    if kind not in _KNOWN:
        return Event(type=kind, timestamp=0.0, hostname="")
    required = (*_required, "uuid") if kind in _NAMED else _required
    if any(item.get(field) is None for field in required):
        return _MISSING_FIELD
    try:
        event = msgspec.convert(item, Event)
        # Texts for people: what is odd in them must not cost the failure.
        event.exception, event.traceback = _without_surrogates(event.exception, event.traceback)
        # str.encode refuses lone surrogates, which json.loads lets through. NaN is within no bounds.
        "".join(value for value in msgspec.structs.astuple(event) if isinstance(value, str)).encode()
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError):
        return _BAD_FIELD
    return event if _is_kept(event) else _BAD_FIELD


# repr() of an exception: `ValueError('x')`, `pkg.mod.Err(...)`, `Outer.Inner(...)`, `<AioRpcError of …>`.
# A repr that is a sentence (pydantic's "1 validation error for …") has no class name in it.
_class_name = re.compile(r"(?:<(?=[\w.]+[\s>:(])|(?=[\w.]+\())(?:[^\W\d]\w*\.)*([^\W\d]\w*)")
_REJECT = "reject requeue="  # celery.exceptions.Reject.__repr__
_WRAPPER = "ExceptionWithTraceback()"
_HEAD = "Traceback (most recent call last):\n"
#: Characters; a thousand frames, which is how deep Python goes, have some 100,000.
MAX_TRACEBACK = 2**18
_past_frames = re.compile(r"\n(?![ \t])")
_raised = re.compile(r"([\w.]{1,255})(?=:|\s|\Z)")
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
        name = _raised_in(event.traceback or "")
        event.exception = f"{name}()" if name else None
    event.traceback = None


def _raised_in(traceback: str) -> str | None:
    """Return what stands right under the frames; they are indented, and there may be any number of lines."""
    if len(traceback) > MAX_TRACEBACK or traceback.count(_HEAD) != 1:
        return None
    if not traceback.startswith((f"{_HEAD} ", f"{_HEAD}\t")):
        return None
    end = _past_frames.search(traceback, len(_HEAD))
    match = _raised.match(traceback, end.end()) if end else None
    return match[1] if match else None


def _without_surrogates(*texts: str | None) -> Iterator[str | None]:
    for text in texts:
        yield text and text.encode("utf-8", "replace").decode()


def unregistered_name(text: str | None) -> str | None:
    """Return the task name in `NotRegistered('name')`: such a task fails without `task-received`."""
    match = _not_registered.match(text, 0, 512) if text else None
    return match[2] if match else None
