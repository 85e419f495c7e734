"""A task as a row of the history file, and back. Pure.

`details` of a row is MessagePack: an array of small integers, mostly. Names are ids of the table of texts.
Each time is the difference to the one that follows it, since differences are small.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.core.task_info import AttemptInfo, TaskInfo, completed
from celery_exporter.history.schema import SAME_ID, STATES, UNITS

_STATE_NUMBERS = {name: number for number, name in enumerate(STATES)}
_is_canonical = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}").fullmatch
#: Stands in an attempt for the value that its task has.
_SAME = 0


class StoredAttempt(Struct, array_like=True, gc=False):
    """An attempt in `details`. The names are ids of texts, `_SAME` if they are those of the task."""

    state: int
    retries: int | None
    generation: int
    queue: int | None
    worker: int | None
    ended: int | None
    started: int | None
    received: int | None
    sent: int | None
    eta: int | None
    runtime: int | None  # negative: that of the task
    exception: int | None
    reason: str | None


class Details(Struct, array_like=True, gc=False):
    """What only a reader of the whole task needs."""

    attempts: list[StoredAttempt]  # the newest first
    client: int | None
    first_sent: int | None
    reason: str | None
    args: str | None = None
    kwargs: str | None = None
    result: str | None = None


class Row(Struct, array_like=True, gc=False):
    """A row as `schema.ROW_JSON` returns it."""

    id: int
    since: int
    name: int | None
    queue: int | None
    state: int
    worker: int | None
    exception: int | None
    runtime: int | None
    uuid: str
    root: str | None  # empty: the id of the task
    parent: str | None  # empty: that of the root
    details: str


_encode_details = msgspec.msgpack.Encoder().encode
_decode_details = msgspec.msgpack.Decoder(Details).decode
decode_rows = msgspec.json.Decoder(list[Row]).decode
TextIds = Callable[[str | None, int], "int | None"]


def units(seconds: float) -> int:
    """Return a time or a duration in units of the file."""
    return round(seconds * UNITS)


def stored_id(uuid: str) -> bytes | str:
    """Return an id as the file has it: 16 bytes for a UUID as Celery writes it."""
    return bytes.fromhex(uuid.replace("-", "")) if _is_canonical(uuid) else uuid


def encode(info: TaskInfo, text_id: TextIds) -> tuple[Any, ...]:
    """Return the columns of a task but for `id`, in the order of `schema.COLUMNS`.

    `text_id` returns the id of a text that a task uses with this `since`; None for None.
    """
    since = round(info.since * UNITS)
    name, queue = text_id(info.task_name, since), text_id(info.queue_name, since)
    worker, exception = text_id(info.worker, since), text_id(info.exception, since)
    runtime = None if info.runtime_seconds is None else round(info.runtime_seconds * UNITS)
    chain = _Chain(since)
    attempts = [
        _stored_attempt(attempt, info, chain, lambda text: text_id(text, since))
        for attempt in reversed(info.attempts)
    ]
    details = Details(
        attempts,
        text_id(info.client, since),
        chain.difference(info.first_sent),
        info.reason,
        info.args,
        info.kwargs,
        info.result,
    )
    uuid, root, parent = info.uuid, info.root_id, info.parent_id
    return (
        since,
        name,
        queue,
        _STATE_NUMBERS[info.state],
        worker,
        exception,
        runtime,
        stored_id(uuid),
        SAME_ID if root == uuid else root and stored_id(root),
        SAME_ID if parent is not None and parent == root != uuid else parent and stored_id(parent),
        _encode_details(details),
    )


def _stored_attempt(
    attempt: AttemptInfo, info: TaskInfo, chain: _Chain, text_id: Callable[[str | None], int | None]
) -> StoredAttempt:
    """Return an attempt as the file has it. The newest comes first, since times follow each other."""
    return StoredAttempt(
        _STATE_NUMBERS[attempt.state],
        attempt.retries,
        attempt.generation,
        _SAME if attempt.queue_name == info.queue_name else text_id(attempt.queue_name),
        _SAME if attempt.worker == info.worker else text_id(attempt.worker),
        chain.difference(attempt.ended),
        chain.difference(attempt.started),
        chain.difference(attempt.received),
        chain.difference(attempt.sent),
        None if attempt.eta is None else chain.last - round(attempt.eta * UNITS),
        _stored_runtime(attempt, info.runtime_seconds),
        _SAME if attempt.exception == info.exception else text_id(attempt.exception),
        attempt.reason,
    )


def text_ids_in(rows: Sequence[Row], details: Sequence[Details]) -> Iterator[int]:
    """Yield the ids of all texts that rows refer to."""
    for row, detail in zip(rows, details, strict=True):
        ids = [row.name, row.queue, row.worker, row.exception, detail.client]
        for attempt in detail.attempts:
            ids += (attempt.queue, attempt.worker, attempt.exception)
        yield from filter(None, ids)


def details_of(row: Row) -> Details:
    """Return the details of a row. Raises ValueError or msgspec.DecodeError if they are damaged."""
    return _decode_details(bytes.fromhex(row.details))


def decode(row: Row, details: Details, texts: Mapping[int | None, str]) -> TaskInfo:
    """Return the task of a row; `texts` has those that it refers to."""
    uuid, text = _shown_id(row.uuid), texts.get
    root = uuid if row.root == "" else row.root and _shown_id(row.root)
    task = TaskInfo(
        uuid=uuid,
        task_name=text(row.name),
        queue_name=text(row.queue),
        state=STATES[row.state],
        since=row.since / UNITS,
        worker=text(row.worker),
        client=text(details.client),
        root_id=root,
        parent_id=root if row.parent == "" else row.parent and _shown_id(row.parent),
        runtime_seconds=_rounded(row.runtime),
        exception=text(row.exception),
        reason=details.reason,
        args=details.args,
        kwargs=details.kwargs,
        result=details.result,
    )
    chain = _Chain(row.since)
    attempts = [_shown_attempt(stored, task, chain, texts) for stored in details.attempts]
    return replace(task, first_sent=chain.time(details.first_sent), attempts=attempts[::-1])


def _shown_attempt(
    stored: StoredAttempt, task: TaskInfo, chain: _Chain, texts: Mapping[int | None, str]
) -> AttemptInfo:
    """Return an attempt of a task; the newest one is read first."""
    text = texts.get
    ended, started = chain.time(stored.ended), chain.time(stored.started)
    received, sent = chain.time(stored.received), chain.time(stored.sent)
    attempt = AttemptInfo(
        state=STATES[stored.state],
        retries=stored.retries,
        generation=stored.generation,
        queue_name=task.queue_name if stored.queue == _SAME else text(stored.queue),
        worker=task.worker if stored.worker == _SAME else text(stored.worker),
        sent=sent,
        eta=None if stored.eta is None else (chain.last - stored.eta) / UNITS,
        received=received,
        started=started,
        ended=ended,
        runtime_seconds=_shown_runtime(stored.runtime, task.runtime_seconds),
        exception=task.exception if stored.exception == _SAME else text(stored.exception),
        reason=stored.reason,
    )
    return completed(attempt)


class _Chain:
    """Times of a task from the newest to the oldest, each as the difference to the one before."""

    __slots__ = ("last",)

    def __init__(self, since: int) -> None:
        self.last = since

    def difference(self, seconds: float | None) -> int | None:
        if seconds is None:
            return None
        before, self.last = self.last, round(seconds * UNITS)
        return before - self.last

    def time(self, difference: int | None) -> float | None:
        if difference is None:
            return None
        self.last -= difference
        return self.last / UNITS


def _stored_runtime(attempt: AttemptInfo, of_task: float | None) -> int | None:
    """Return the runtime of an attempt in the file; None also if it follows from its times."""
    seconds, started, ended = attempt.runtime_seconds, attempt.started, attempt.ended
    if seconds is None:
        return None
    if started is not None and ended is not None and seconds == max(0.0, ended - started):
        follows = completed(replace(attempt, runtime_seconds=None)).runtime_seconds is not None
        return None if follows else round(seconds * UNITS)
    return -1 if seconds == of_task else round(seconds * UNITS)


def _shown_runtime(stored: int | None, of_task: float | None) -> float | None:
    if stored is None or stored >= 0:
        return _rounded(stored)
    return of_task


def _rounded(stored: int | None) -> float | None:
    """Return a runtime in the file as seconds, to the microsecond that it is accurate to."""
    return None if stored is None else round(stored / UNITS, 6)


def _shown_id(text: str) -> str:
    if text.startswith("t"):
        return bytes.fromhex(text[1:]).decode()
    digits = text.lower()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
