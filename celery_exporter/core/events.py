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
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
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
#: The event of `celery_exporter.instrumentation`: what a task measured itself. It is about no state.
MEASURED = "task-measured"
#: The types that have a meaning here. Every other one is an application's own.
KNOWN_TYPES = (*TASK_TYPES, *WORKER_TYPES, MEASURED)

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
#: Characters of arguments and results. Celery cuts them at 1,024 (celery/app/amqp.py, argsrepr_maxsize).
MAX_ARGUMENT_CHARACTERS = 4_096
# Entries of a `task-measured` event. `celery_exporter.instrumentation` sends no more, and no longer texts.
MAX_TAGS, MAX_FIELDS = 20, 50
# Far beyond any unit. A sum of as many as can be counted (2**53) is still finite.
_Number = Annotated[float, Meta(ge=-1e100, le=1e100)]


class Event(Struct, gc=False):
    """One event as its sender wrote it. Times are epoch seconds of the sender's clock.

    An event of an application, with a type that Celery does not have, needs a type only. The fields are in
    the order in which Celery writes them: the decoder looks for one after the one that it found before.
    """

    type: str
    timestamp: _Epoch
    hostname: _Text
    pid: _Count | None = None
    uuid: _Text | None = None
    # task-sent, task-received
    name: _Text | None = None
    retries: _Retries | None = None
    eta: Annotated[str, Meta(max_length=255)] | None = None
    expires: Annotated[str, Meta(max_length=255)] | None = None
    queue: _Text | None = None
    exchange: _Name | None = None
    routing_key: _Name | None = None
    # how a task ended
    runtime: Annotated[float, Meta(ge=0, lt=1e11)] | None = None
    exception: str | None = None
    traceback: str | None = None  # see task_exceptions.read_traceback
    requeue: bool | None = None
    # worker events
    freq: Annotated[float, Meta(ge=0, lt=1e9)] | None = None
    active: _Count | None = None
    processed: _Tasks | None = None
    loadavg: tuple[_Load, _Load, _Load] | None = None
    sw_ident: _Text | None = None
    sw_ver: _Text | None = None
    sw_sys: _Text | None = None
    # task-measured; other events may have any values under these names
    tags: Annotated[dict[_Text, _Name], Meta(max_length=MAX_TAGS)] | None = None
    fields: Annotated[dict[_Text, _Number | bool | _Name], Meta(max_length=MAX_FIELDS)] | None = None


class EventWithAncestry(Event, gc=False):
    """An event with the task that began the workflow, and the one that sent this task."""

    root_id: _Text | None = None
    parent_id: _Text | None = None


class EventWithArguments(EventWithAncestry, gc=False):
    """An event with what a task was called with and what it returned, each as the repr of its sender."""

    args: str | None = None
    kwargs: str | None = None
    result: str | None = None

    def clip_arguments(self) -> None:
        """Cut these texts: they may have megabytes."""
        self.args = self.args and self.args[:MAX_ARGUMENT_CHARACTERS]
        self.kwargs = self.kwargs and self.kwargs[:MAX_ARGUMENT_CHARACTERS]
        self.result = self.result and self.result[:MAX_ARGUMENT_CHARACTERS]


class Address(Struct, frozen=True, gc=False):
    """The fields of an event that say which shard it belongs to."""

    type: str
    uuid: str | None = None
    hostname: str | None = None


class Malformed(Struct, frozen=True, gc=False):
    """A rejected event; `reason` is one of `REASONS`.

    `key_hash` decides the shard that counts it: that of no key if the address cannot be read.
    """

    reason: str
    key_hash: int = 0


_UNDECODABLE, _CONTENT_TYPE, _NOT_AN_OBJECT, _MISSING_FIELD, _BAD_FIELD = map(Malformed, REASONS)

#: Characters of an id that cannot exceed the limit in bytes: UTF-8 has at most four bytes a character.
_SHORT_ID_LENGTH = MAX_VALUE_BYTES // 4
#: Bytes of an item that the standard JSON parser may load: the objects take up to 35 times as much memory.
MAX_LOOSE_BYTES = 2**20
#: Digits of an integer that is parsed. Longer ones exceed every range, and take long.
MAX_INTEGER_DIGITS = 400
#: Bytes of a body that cannot have more than `MAX_ITEMS` events: the shortest event is '{"type":""}'.
_FEW_ITEMS_BYTES = 11 * MAX_ITEMS

_TASK_TYPES = frozenset((*TASK_TYPES, MEASURED))
_KNOWN_TYPES = frozenset(KNOWN_TYPES)
#: What is decoded: what no sink wants costs no time.
_SCHEMAS = (Event, EventWithAncestry, EventWithArguments)
_decode_body = {schema: msgspec.json.Decoder(schema | list[schema]).decode for schema in _SCHEMAS}  # type: ignore[valid-type]
_decode_event = {schema: msgspec.json.Decoder(schema).decode for schema in _SCHEMAS}
_decode_address = msgspec.json.Decoder(Address).decode
_DECODING_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_required = ("timestamp", "hostname")
#: The fields that only a `task-measured` event has to have right.
_MEASURED_FIELDS = ("tags", "fields")


def _without_measured_fields(schema: type[Event]) -> type[Struct]:
    """Return a struct that skips the fields of `task-measured`, whatever they are."""
    fields = (field for field in msgspec.structs.fields(schema) if field.name not in _MEASURED_FIELDS)
    return msgspec.defstruct(
        f"Bare{schema.__name__}",
        [(field.name, field.type) if field.required else (field.name, field.type, None) for field in fields],
        gc=False,
    )


_decode_bare = {schema: msgspec.json.Decoder(_without_measured_fields(schema)).decode for schema in _SCHEMAS}


def decode(body: bytes, schema: type[Event] = Event) -> list[Event | Malformed]:
    """Return the events of a JSON message body: one event, or a list of events (`task.multi`).

    `schema` is the type of the events: `Event` or a subclass of it.
    """
    if len(body) > _FEW_ITEMS_BYTES and body.count(b"{") > MAX_ITEMS:
        return _decode_one_by_one(body, schema)
    try:
        decoded = _decode_body[schema](body)
    except _DECODING_ERRORS:
        return _decode_one_by_one(body, schema)
    events = decoded if type(decoded) is list else [decoded]
    for event in events:
        uuid = event.uuid
        if (
            event.type in _TASK_TYPES
            if uuid is None
            else len(uuid) > _SHORT_ID_LENGTH and not _has_valid_id(event)
        ):
            return _decode_one_by_one(body, schema)
    return events


def _has_valid_id(event: Event) -> bool:
    """Return whether the id of a task has at most 255 bytes; other events may have any id."""
    uuid = event.uuid or ""
    is_short = len(uuid) <= _SHORT_ID_LENGTH or len(uuid.encode("utf-8", "replace")) <= MAX_VALUE_BYTES
    return is_short or event.type not in _KNOWN_TYPES


def _decode_one_by_one(body: bytes, schema: type[Event]) -> list[Event | Malformed]:
    """Return the events of a batch that contains a bad one, each decoded on its own."""
    return [
        _UNDECODABLE if item is None else _addressed(_decode_item(item, schema), item) for item in items(body)
    ]


def _addressed(event: Event | Malformed, item: bytes) -> Event | Malformed:
    """Return the event; a malformed one with the hash of its key."""
    if isinstance(event, Event):
        return event
    try:
        address = _decode_address(item)
    except _DECODING_ERRORS:
        return event
    return Malformed(event.reason, hash_of(key_of(address.type, address.uuid, address.hostname or "")))


def key_of(event_type: str, uuid: str | None, hostname: str) -> str:
    """Return what decides the shard of an event."""
    return hostname if event_type in WORKER_TYPES else uuid or ""


def hash_of(key: str) -> int:
    """Return the hash of a key, which is 0 for the empty one."""
    return zlib.crc32(key.encode("utf-8", "replace"))


def _decode_item(item: bytes, schema: type[Event]) -> Event | Malformed:
    event: Event | None
    try:
        event = _decode_event[schema](item)
    except _DECODING_ERRORS:
        event = _decode_unmeasured(item, schema)
    if event is None:
        return _decode_loosely(item, schema)
    if event.uuid is None:
        return _MISSING_FIELD if event.type in _TASK_TYPES else event
    return event if _has_valid_id(event) else _BAD_FIELD


def _decode_unmeasured(item: bytes, schema: type[Event]) -> Event | None:
    """Return an event without the fields of `task-measured`; None if it is such an event, or a bad one."""
    try:
        bare: Any = _decode_bare[schema](item)
    except _DECODING_ERRORS:
        return None
    return None if bare.type == MEASURED else schema(**msgspec.structs.asdict(bare))


def _decode_loosely(item: bytes, schema: type[Event]) -> Event | Malformed:
    """Return an item decoded by the standard parser: it accepts NaN, which `json.dumps` writes."""
    if len(item) > MAX_LOOSE_BYTES:
        return _UNDECODABLE
    try:
        return _from_object(json.loads(item, parse_int=_parse_int), schema)
    except (ValueError, RecursionError):
        return _UNDECODABLE


def _parse_int(digits: str) -> float:
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else math.inf


def from_objects(loaded: Any, schema: type[Event] = Event) -> list[Event | Malformed]:
    """Return the events of a deserialized body, for serializers other than JSON."""
    return [
        _from_object(item, schema) for item in (loaded if isinstance(loaded, (list, tuple)) else [loaded])
    ]


def _from_object(item: Any, schema: type[Event]) -> Event | Malformed:
    if not isinstance(item, dict):
        return _NOT_AN_OBJECT
    kind = item.get("type")
    if kind is None:
        return _MISSING_FIELD
    if not isinstance(kind, str):
        return _BAD_FIELD
    if kind not in _KNOWN_TYPES:
        return Event(type=kind, timestamp=0.0, hostname="")
    required = (*_required, "uuid") if kind in _TASK_TYPES else _required
    if any(item.get(field) is None for field in required):
        return _MISSING_FIELD
    try:
        event = msgspec.convert(_with_valid_texts(item), schema)
        # str.encode rejects lone surrogates, which json.loads accepts. NaN is outside of all bounds.
        "".join(_texts(event)).encode()
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError):
        return _BAD_FIELD
    return event if _has_valid_id(event) else _BAD_FIELD


def _texts(event: Event) -> Iterator[str]:
    """Yield all texts of an event."""
    for value in msgspec.structs.astuple(event):
        if isinstance(value, dict):
            yield from (text for item in value.items() for text in item if isinstance(text, str))
        elif isinstance(value, str):
            yield value


def _with_valid_texts(item: dict[Any, Any]) -> dict[Any, Any]:
    """Return an event that no text for people and records can make malformed: it has to be counted."""
    unused = ("args", "kwargs", "result", *(() if item["type"] == MEASURED else _MEASURED_FIELDS))
    ids = {name: _id(item[name]) for name in ("root_id", "parent_id") if name in item}
    reprs = {name: item[name] for name in ("args", "kwargs", "result") if isinstance(item.get(name), str)}
    texts = {name: item[name] for name in ("exception", "traceback") if isinstance(item.get(name), str)}
    valid = {name: text.encode("utf-8", "replace").decode() for name, text in (texts | reprs).items()}
    return {**item, **dict.fromkeys(unused), **ids, **valid}


def _id(value: Any) -> str | None:
    is_id = isinstance(value, str) and 0 < len(value) <= MAX_VALUE_BYTES
    return value.encode("utf-8", "replace").decode() if is_id else None


def epoch(eta: str | None) -> float:
    """Return an ISO 8601 time as epoch seconds; 0.0 for None and for text that is not a time.

    Celery writes UTC offsets (kombu.utils.json, celery/app/amqp.py). A time without an offset is UTC.
    """
    if not eta:
        return 0.0
    try:
        parsed = datetime.fromisoformat(eta)
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
