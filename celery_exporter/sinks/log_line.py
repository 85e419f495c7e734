"""One transition as a JSON object: a line of --event-log.

The descriptions are those of its JSON Schema, docs/reference/event-log.schema.json, and of
docs/reference/records.md. Fields may be added; none is renamed, removed or given another meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, structs

from celery_exporter.core.records import ATTEMPT_ENDS, NO_ARGUMENTS, Record
from celery_exporter.core.types import State

_NAMES = {state: state.name for state in State}
_encoder = msgspec.json.Encoder()
_datetime, _UTC = datetime.fromtimestamp, UTC

_Text = str | None
_Epoch = float | None  # epoch seconds of the sender's clock
_Seconds = float | None


class LogLine(Struct, omit_defaults=True, gc=False):
    """One transition of a task. A field that is unknown or does not apply is absent.

    Only the line that ends an attempt has its times: each of them was the `time` of a line before.
    """

    time: Annotated[datetime, Meta(description="When the task entered the state, in UTC.")]
    state: Annotated[
        str,
        Meta(description="The state that the task entered.", extra_json_schema={"enum": [*_NAMES.values()]}),
    ]
    task_name: Annotated[str, Meta(description="Name of the task, as `/metrics` shows it.")]
    uuid: Annotated[str, Meta(description="Id of the task.")]
    queue_name: Annotated[_Text, Meta(description="Queue, as `/metrics` shows it.")] = None
    worker: Annotated[_Text, Meta(description="Node name of the worker. Absent for PENDING.")] = None
    client: Annotated[_Text, Meta(description="Node name of the process that sent the task.")] = None
    root_id: Annotated[_Text, Meta(description="Id of the task that began the workflow.")] = None
    parent_id: Annotated[_Text, Meta(description="Id of the task that sent this one.")] = None
    retries: Annotated[int | None, Meta(description="Number of the attempt; 0 is the first one.")] = None
    generation: Annotated[
        int, Meta(description="1 for the work that `Task.replace()` sent under the same id, and so on.")
    ] = 0
    exception: Annotated[_Text, Meta(description="Class of the exception, without its module.")] = None
    queue_wait_seconds: Annotated[
        _Seconds, Meta(description="From sent, or the eta, to the start. On STARTED.")
    ] = None
    prefetch_wait_seconds: Annotated[
        _Seconds, Meta(description="From received, or the eta, to the start. On STARTED.")
    ] = None
    runtime_seconds: Annotated[
        _Seconds, Meta(description="Run time of the attempt. On SUCCESS, FAILURE and RETRY.")
    ] = None
    sent: Annotated[_Epoch, Meta(description="When the attempt that ends was sent.")] = None
    eta: Annotated[_Epoch, Meta(description="The time before which it must not start.")] = None
    received: Annotated[_Epoch, Meta(description="When a worker received it.")] = None
    started: Annotated[_Epoch, Meta(description="When it started.")] = None
    broker: Annotated[_Text, Meta(description="Name of the broker in `--config.file`.")] = None
    args: Annotated[_Text, Meta(description="Arguments (`--record-arguments`).")] = None
    kwargs: Annotated[_Text, Meta(description="Keyword arguments (`--record-arguments`).")] = None
    result: Annotated[_Text, Meta(description="Result (`--record-arguments`).")] = None


def log_line(record: Record, broker: str | None = None) -> LogLine:
    """Return the JSON object of a record of a broker."""
    line = LogLine(
        _datetime(record.timestamp, _UTC),
        _NAMES[record.state],
        record.name,
        record.uuid,
        record.queue,
        record.worker,
        record.client,
        record.root,
        record.parent,
        record.attempt,
        record.generation,
        record.exception,
        record.queue_wait,
        record.prefetch_wait,
        record.runtime,
        broker=broker,
    )
    if record.state in ATTEMPT_ENDS:
        line.sent, line.eta = record.sent, record.eta
        line.received, line.started = record.received, record.started
    if record.arguments is not NO_ARGUMENTS:
        line.args, line.kwargs, line.result = structs.astuple(record.arguments)
    return line


def encode_lines(records: Iterable[Record], broker: str | None = None) -> bytes:
    """Return the lines of records of a broker, each followed by a newline; none has another one in it."""
    return _encoder.encode_lines([log_line(record, broker) for record in records])
