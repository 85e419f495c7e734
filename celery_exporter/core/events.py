"""The event schema, and its decoder from message bodies.

Invariant: for any bytes, `decode` returns; each bad event becomes exactly one `Malformed`, and its neighbours
in the batch are used. Time and memory are bounded by the length of the body. This module knows the format of
events, but not their meaning.

The fields are those of celery/events/dispatcher.py, celery/worker/request.py (task events),
celery/app/amqp.py (task-sent) and celery/worker/heartbeat.py (worker events). The decoder skips unused fields
(args, kwargs, result …), so they never become objects.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from celery_exporter.core.json_array import MAX_ITEMS, items
from celery_exporter.core.task_names import MAX_VALUE_BYTES

#: All task events of Celery, in the order in which they happen to a task.
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

#: Why an event is rejected; the label values of celery_exporter_events_malformed_total.
REASONS = ("undecodable", "content_type", "not_an_object", "missing_field", "bad_field")
#: The reason for a serializer that is not accepted.
REFUSED = REASONS[1]

# Names, queues, hosts and uuids become label values and dict keys, so their length bounds the memory.
# RabbitMQ allows 255 for a queue name, and Celery's database backend for the name and id of a task.
_Text = Annotated[str, Meta(min_length=1, max_length=255)]
# Exchanges and routing keys may be empty.
_Name = Annotated[str, Meta(max_length=255)]
# From 1970 to the year 5138. Other values are errors or attacks.
_Epoch = Annotated[float, Meta(gt=0, lt=1e11)]
_Count = Annotated[int, Meta(ge=0, lt=2**53)]
# `task_history.MAX_ATTEMPTS`: the attempts of one generation.
_Retries = Annotated[int, Meta(ge=0, lt=2**31)]
# Far more tasks than a worker process can run. Restarts add up, and the total has to stay below 2**53.
_Tasks = Annotated[int, Meta(ge=0, lt=2**40)]
_Load = Annotated[float, Meta(ge=0, lt=1e11)]


class Event(Struct, gc=False):
    """One event as its sender wrote it. Times are epoch seconds of the sender's clock.

    An event of an application, with a type that Celery does not have, needs a type only.
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
    traceback: str | None = None  # read if the exception is a wrapper, and then removed
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
    """A rejected event; `reason` is one of `REASONS`."""

    reason: str


_UNDECODABLE, _CONTENT_TYPE, _NOT_AN_OBJECT, _MISSING_FIELD, _BAD_FIELD = map(Malformed, REASONS)

#: Characters of an id that cannot exceed the limit in bytes: UTF-8 has at most four bytes a character.
_SHORT_ID_LENGTH = MAX_VALUE_BYTES // 4
#: Bytes of an item that the standard JSON parser may load: the objects take up to 35 times as much memory.
MAX_LOOSE_BYTES = 2**20
#: Digits of an integer that is parsed. Longer ones exceed every range, and take long.
MAX_INTEGER_DIGITS = 400
#: Bytes of a body that cannot have more than `MAX_ITEMS` events: the shortest event is '{"type":""}'.
_FEW_ITEMS_BYTES = 11 * MAX_ITEMS

_TASK_TYPES = frozenset(TASK_TYPES)
_CELERY_TYPES = frozenset(TASK_TYPES + WORKER_TYPES)
_decode_body = msgspec.json.Decoder(Event | list[Event]).decode
_decode_event = msgspec.json.Decoder(Event).decode
_required = ("timestamp", "hostname")


def decode(body: bytes) -> list[Event | Malformed]:
    """Return the events of a JSON message body: one event, or a list of events (`task.multi`)."""
    if len(body) > _FEW_ITEMS_BYTES and body.count(b"{") > MAX_ITEMS:
        return _decode_one_by_one(body)
    try:
        decoded = _decode_body(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_one_by_one(body)
    events = decoded if type(decoded) is list else [decoded]
    for event in events:
        uuid = event.uuid
        if (
            event.type in _TASK_TYPES
            if uuid is None
            else len(uuid) > _SHORT_ID_LENGTH and not _has_valid_id(event)
        ):
            return _decode_one_by_one(body)
    return events


def _has_valid_id(event: Event) -> bool:
    """Return whether the id of a task has at most 255 bytes; other events may have any id."""
    uuid = event.uuid or ""
    is_short = len(uuid) <= _SHORT_ID_LENGTH or len(uuid.encode("utf-8", "replace")) <= MAX_VALUE_BYTES
    return is_short or event.type not in _CELERY_TYPES


def _decode_one_by_one(body: bytes) -> list[Event | Malformed]:
    """Return the events of a batch that contains a bad one, each decoded on its own."""
    return [_UNDECODABLE if item is None else _decode_item(item) for item in items(body)]


def _decode_item(item: bytes) -> Event | Malformed:
    try:
        event = _decode_event(item)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_loosely(item)
    if event.uuid is None:
        return _MISSING_FIELD if event.type in _TASK_TYPES else event
    return event if _has_valid_id(event) else _BAD_FIELD


def _decode_loosely(item: bytes) -> Event | Malformed:
    """Return an item decoded by the standard parser: it accepts NaN, which `json.dumps` writes."""
    if len(item) > MAX_LOOSE_BYTES:
        return _UNDECODABLE
    try:
        return _from_object(json.loads(item, parse_int=_parse_int))
    except (ValueError, RecursionError):
        return _UNDECODABLE


def _parse_int(digits: str) -> float:
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else math.inf


def from_objects(loaded: Any) -> list[Event | Malformed]:
    """Return the events of a deserialized body, for serializers other than JSON."""
    return [_from_object(item) for item in (loaded if isinstance(loaded, (list, tuple)) else [loaded])]


def _from_object(item: Any) -> Event | Malformed:
    if not isinstance(item, dict):
        return _NOT_AN_OBJECT
    kind = item.get("type")
    if kind is None:
        return _MISSING_FIELD
    if not isinstance(kind, str):
        return _BAD_FIELD
    if kind not in _CELERY_TYPES:
        return Event(type=kind, timestamp=0.0, hostname="")
    required = (*_required, "uuid") if kind in _TASK_TYPES else _required
    if any(item.get(field) is None for field in required):
        return _MISSING_FIELD
    try:
        event = msgspec.convert(item, Event)
        # Invalid characters in these texts must not make the event of a failure malformed.
        event.exception, event.traceback = _without_surrogates(event.exception, event.traceback)
        # str.encode rejects lone surrogates, which json.loads accepts. NaN is outside of all bounds.
        "".join(value for value in msgspec.structs.astuple(event) if isinstance(value, str)).encode()
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError):
        return _BAD_FIELD
    return event if _has_valid_id(event) else _BAD_FIELD


def _without_surrogates(*texts: str | None) -> Iterator[str | None]:
    for text in texts:
        yield text and text.encode("utf-8", "replace").decode()
