"""Records as points of InfluxDB: measurements, tags and fields, in the layouts of --influx-layout.

They are documented in docs/reference/records.md. Measurement, tags and time identify a point, and a
later point with the same ones overwrites it. So each task has its own nanoseconds (`UniqueTimes`).

The layout `fields` has ids in fields, which are not indexed: its tags have as many values as there are task
names, queues and so on. The layout `luna` has ids in tags: each task is a series.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from celery_exporter.core.records import ATTEMPT_ENDS, NO_MEASUREMENTS, MeasuredRecord, Measurements, Record
from celery_exporter.core.types import OTHER, State
from celery_exporter.sinks.base import INCOMPLETE, REJECTED, Payload
from celery_exporter.sinks.http_request import HttpRequest
from celery_exporter.sinks.line_protocol import MAX_NANOSECONDS, MAX_TEXT_LENGTH, key, string, value

# Looking up a member of an enum is slow, and so is its name.
RECEIVED, STARTED, FAILURE = State.RECEIVED, State.STARTED, State.FAILURE
_STATUSES = [state.name for state in State]
#: Series (measurement and tags) whose text is cached. There are as many as label sets, some hundreds.
MAX_CACHED_SERIES = 10_000
#: Tasks whose ids are cached, 600 bytes each: most tasks have three points.
MAX_CACHED_TASKS = 5_000
#: Times of points that are remembered at least; twice as many at most, and one payload. More would leave the
#: cache of the processor.
MAX_REMEMBERED = 2_000
#: Exception classes that are values of the tag `error_code`; further ones are `other` there.
MAX_ERROR_CODES = 1_000
#: The lowest HTTP status that is an error.
MIN_ERROR_STATUS = 400
#: Epoch seconds of the latest time that InfluxDB stores.
MAX_TIMESTAMP = MAX_NANOSECONDS / 1e9 - 1
#: The names of tags and fields of points, in any layout and version, and those that InfluxDB reserves.
NAMES = frozenset(
    {
        *("service", "task_id", "subtask_id", "task_type", "queue", "worker", "route", "request_id"),
        *("status", "final_status", "status_code", "error_code", "error"),
        *("transport_time", "execution_time", "time"),
    }
)
#: Precedes a name that the application chose and that points have already.
PREFIX = "measured_"


#: The states of transitions that points are made of: receipts, starts, and what ends a task.
STATES = (RECEIVED, STARTED, *(ATTEMPT_ENDS - {State.RETRY}))


def is_wanted(record: Any) -> bool:
    """Return whether points are made of a record."""
    if type(record) is Record:
        state = record.state
        return state is RECEIVED or state is STARTED or record.is_final
    return type(record) is MeasuredRecord or type(record) is HttpRequest


class Identity(Struct, frozen=True, gc=False):
    """What tells the points of tasks, or of HTTP requests, apart."""

    tags: str  # with a comma before each
    fields: str  # the same
    checksum: int
    nanoseconds: int  # below a microsecond: the last three digits of the checksum


def _identity(tags: str, fields: str, id_: str) -> Identity:
    checksum = zlib.crc32(id_.encode("utf-8", "replace"))
    return Identity(tags, fields, checksum, checksum % 1_000)


class UniqueTimes:
    """Nanoseconds for points: the record's microseconds, and three digits that tell tasks apart.

    Times of events have no more than microseconds. The digits follow from the id, so two exporters write the
    same point for the same event. If the nanoseconds belong to another id already, the next free ones are
    taken. The last `MAX_REMEMBERED` times are remembered, and a record that is encoded again keeps its time.
    """

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}  # nanoseconds → checksum of the id
        self._former: dict[int, int] = {}  # the same, of the times before
        self._next: dict[int, int] = {}  # nanoseconds that are taken → the next ones that may be free
        self._moved: dict[tuple[int, int], int] = {}  # nanoseconds and checksum → what was free instead

    def forget_the_oldest(self) -> None:
        """Bound the memory: keep the times since the last call that forgot any."""
        if len(self._owners) >= MAX_REMEMBERED:
            self._former, self._owners = self._owners, {}
            self._next.clear()
            self._moved.clear()

    def of(self, timestamp: float, identity: Identity) -> int:
        """Return the time of a record in nanoseconds."""
        nanoseconds, checksum = int(timestamp * 1e6 + 0.5) * 1_000 + identity.nanoseconds, identity.checksum
        if nanoseconds in self._former or self._owners.setdefault(nanoseconds, checksum) != checksum:
            return self._move(nanoseconds, checksum)
        return nanoseconds

    def _take(self, nanoseconds: int, checksum: int) -> bool:
        """Return whether these nanoseconds were free, or belong to the id."""
        if self._former.get(nanoseconds, checksum) != checksum:
            return False
        return self._owners.setdefault(nanoseconds, checksum) == checksum

    def _move(self, wanted: int, checksum: int) -> int:
        if self._take(wanted, checksum):
            return wanted
        moved = self._moved.get((wanted, checksum))
        if moved is not None:
            return moved
        passed, nanoseconds = [], wanted
        while not self._take(nanoseconds, checksum):
            passed.append(nanoseconds)
            nanoseconds = self._next.get(nanoseconds, nanoseconds + 1)
        for taken in passed:  # so that thousands of equal times do not take millions of steps
            self._next[taken] = nanoseconds + 1
        self._moved[wanted, checksum] = nanoseconds
        return nanoseconds


class FieldsEncoder:
    """Encodes records in the layout `fields`.

    `static_labels` become tags. With `distinct_names` no tag has the name of a field: InfluxDB 3 rejects it.
    """

    def __init__(self, service: str, static_labels: Mapping[str, str], *, distinct_names: bool) -> None:
        self._common = {"service": service, **static_labels}
        self._reserved = NAMES.union(static_labels)
        self._error = "error" if distinct_names else "error_code"
        status = "final_status" if distinct_names else "status"
        self._statuses = [f"{status}={string(name)}" for name in _STATUSES]
        self._series_by_key: dict[tuple[str | None, ...], str] = {}
        self._identities: dict[tuple[str | None, ...], Identity] = {}
        self._error_codes: set[str] = set()
        self._times = UniqueTimes()

    def encode(self, records: Sequence[Any]) -> Payload:
        """Return the lines of the points of these records."""
        self._times.forget_the_oldest()
        lines: list[str] = []
        left_out: Counter[str] = Counter()
        for record in records:
            if record.timestamp > MAX_TIMESTAMP:
                left_out[REJECTED] += 1
                continue
            before = len(lines)
            if type(record) is Record:
                self._add_transition(record, lines)
            elif type(record) is MeasuredRecord:
                self._add_measured(record, lines)
            else:
                self._add_request(record, lines)
            if len(lines) == before:
                left_out[INCOMPLETE] += 1
        lines.append("")
        return Payload("\n".join(lines).encode("utf-8", "replace"), left_out)

    # -- kinds of records ------------------------------------------------------------------------------------

    def _add_transition(self, record: Record, lines: list[str]) -> None:
        # The hot path: calls are as few as they can be.
        state, at, uuid, root, worker = (
            record.state,
            record.timestamp,
            record.uuid,
            record.root,
            record.worker,
        )
        identity = self._identities.get((uuid, root, worker)) or self._new_identity(uuid, root, worker)
        if state is RECEIVED:
            series_key, begin = ("worker_requests", record.name, record.queue), record.sent
        elif state is STARTED:
            series_key, begin = ("worker_queue", record.name, record.queue), record.received
        else:
            self._add_end(record, identity, lines)
            return
        series = self._series_by_key.get(series_key) or self._new_series(*series_key)
        nanoseconds = self._times.of(at, identity)
        if begin is None:
            _add(lines, series, identity, "", nanoseconds)
            return
        seconds = at - begin if at > begin else 0.0
        lines.append(f"{series}{identity.tags} transport_time={seconds:.6f}{identity.fields} {nanoseconds}")

    def _add_end(self, record: Record, identity: Identity, lines: list[str]) -> None:
        state, name, queue = record.state, record.name, record.queue
        nanoseconds = self._times.of(record.timestamp, identity)
        tags = fields = ""
        if record.measurements is not NO_MEASUREMENTS:
            tags, fields = self._measurements(record.measurements)
        if state is FAILURE:
            exception = record.exception or ""
            series = self._series("subtask_errors", name, queue, "error_code", self._error_code(exception))
            error = f"{self._error}={string(exception)}{fields}"
            _add(lines, series + tags, identity, error, nanoseconds)
        series = self._series("subtask_final", name, queue, "status", _STATUSES[state])
        time = "" if record.runtime is None else f",execution_time={record.runtime:.9f}"
        _add(lines, series + tags, identity, f"{self._statuses[state]}{time}{fields}", nanoseconds)

    def _add_measured(self, record: MeasuredRecord, lines: list[str]) -> None:
        identity = self._new_identity(record.uuid, record.root, record.worker)
        tags, fields = self._measurements(record.measurements)
        series = self._series("subtask_execution", record.name, None)
        _add(lines, series + tags, identity, fields[1:], self._times.of(record.timestamp, identity))

    def _add_request(self, request: HttpRequest, lines: list[str]) -> None:
        identity = _identity("", f",request_id={string(request.request_id)}", request.request_id)
        nanoseconds = self._times.of(request.timestamp, identity)
        tags = {**self._common, "route": request.route, "status_code": str(request.status)}
        time = f"execution_time={request.seconds:.9f}"
        _add(lines, f"requests{_tags(tags)}", identity, time, nanoseconds)
        if request.status >= MIN_ERROR_STATUS:
            tags["error_code"] = tags["status_code"]
            _add(lines, f"errors{_tags(tags)}", identity, time, nanoseconds)

    def _measurements(self, measurements: Measurements) -> tuple[str, str]:
        """Return the tags and the fields of an application, with a comma before each."""
        taken = set(self._reserved)
        tags = "".join(
            f",{_usable(name, taken)}={key(text)}" for name, text in measurements.tags.items() if text
        )
        values = ((name, value(measured)) for name, measured in measurements.fields.items())
        fields = "".join(f",{_usable(name, taken)}={text}" for name, text in values if text is not None)
        return tags, fields

    def _error_code(self, exception: str) -> str:
        """Return the value of the tag for an exception class."""
        if exception in self._error_codes:
            return exception
        if len(self._error_codes) >= MAX_ERROR_CODES:
            return OTHER
        self._error_codes.add(exception)
        return exception

    # -- texts -----------------------------------------------------------------------------------------------

    def _new_identity(self, uuid: str, root: str | None, worker: str | None) -> Identity:
        if len(self._identities) >= MAX_CACHED_TASKS:
            self._identities.clear()
        identity = self._identities[uuid, root, worker] = self._ids(uuid, root, worker)
        return identity

    def _series(self, measurement: str, name: str, queue: str | None, tag: str = "", text: str = "") -> str:
        """Return a measurement and its tags, the given one included."""
        return self._series_by_key.get((measurement, name, queue, text)) or self._new_series(
            measurement, name, queue, tag, text
        )

    def _new_series(
        self, measurement: str, name: str, queue: str | None, tag: str = "", text: str | None = None
    ) -> str:
        if len(self._series_by_key) >= MAX_CACHED_SERIES:
            self._series_by_key.clear()
        tags = {**self._common, **self._task_tags(measurement, name, queue or ""), tag: text or ""}
        series_key = (measurement, name, queue, *(() if text is None else (text,)))
        series = self._series_by_key[series_key] = measurement + _tags(tags)
        return series

    # -- the layout ------------------------------------------------------------------------------------------

    def _task_tags(self, measurement: str, name: str, queue: str) -> dict[str, str]:  # noqa: ARG002
        return {"task_type": name, "queue": queue}

    def _ids(self, uuid: str, root: str | None, worker: str | None) -> Identity:
        fields = f',subtask_id="{uuid}",task_id="{root}",worker="{worker}"'
        if not (root and worker) or fields.count('"') != 6 or not _is_plain(fields):
            names = {"subtask_id": uuid, "task_id": root, "worker": worker}
            fields = "".join(f",{name}={string(text)}" for name, text in names.items() if text)
        return _identity("", fields, uuid)


class LunaEncoder(FieldsEncoder):
    """Encodes records in the layout `luna`: ids are tags, and there is no tag `queue`."""

    def _task_tags(self, measurement: str, name: str, queue: str) -> dict[str, str]:  # noqa: ARG002
        return {} if measurement == "worker_requests" else {"task_type": name}

    def _ids(self, uuid: str, root: str | None, worker: str | None) -> Identity:  # noqa: ARG002
        root_tag = f",task_id={key(root)}" if root else ""
        return _identity(f"{root_tag},subtask_id={key(uuid)}", "", uuid)


def _add(lines: list[str], series: str, identity: Identity, fields: str, nanoseconds: int) -> None:
    """Add a line, unless it would have no field."""
    if fields:
        lines.append(f"{series}{identity.tags} {fields}{identity.fields} {nanoseconds}")
    elif identity.fields:
        lines.append(f"{series}{identity.tags} {identity.fields[1:]} {nanoseconds}")


def _is_plain(text: str) -> bool:
    """Return whether nothing but quotes may have to be escaped in a string."""
    return not ("\\" in text or "\n" in text or "\r" in text or len(text) > MAX_TEXT_LENGTH)


def _tags(tags: Mapping[str, str]) -> str:
    """Return tags with a comma before each; the value of a tag cannot be empty."""
    return "".join(f",{name}={key(text)}" for name, text in tags.items() if text)


def _usable(name: str, taken: set[str]) -> str:
    """Return the escaped name of a tag or field that is not taken, and take it.

    InfluxDB reserves names with an underscore in front.
    """
    usable = key(name)
    while usable in taken or usable[:1] in {"", "_"}:
        usable = PREFIX + usable
    taken.add(usable)
    return usable
