"""Searching the history file. Each answer is one row: see `schema.ROW_JSON`.

Lists have the order of `task_search`: the newest `since` first, then by id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from celery_exporter.core.task_info import TaskInfo
from celery_exporter.core.task_search import Cursor, Page, TaskFilter
from celery_exporter.history import codec, schema
from celery_exporter.history.codec import Row

#: Parameters of one query are as many as one of these, so that few different queries are prepared.
SIZES = (1, 8, 64, 512)
_HEX_DIGITS, _DASHES, _UUID_LENGTH = frozenset("0123456789abcdef"), {8, 13, 18, 23}, 36
_decode_texts = msgspec.json.Decoder(list[tuple[int, str]]).decode
#: The tasks of each source come in the order of lists, so that a list ends when it is full. SQLite uses a
#: partial index only if the query has its condition, too.
_ALL = ("task INDEXED BY task_by_since WHERE 1",)
_BY_ROOT, _BY_PARENT = (
    f"task INDEXED BY task_by_{name} WHERE {name} = ? AND {name} != {schema.SAME_ID}"
    for name in ("root", "parent")
)
_OF_ROOT = (_BY_ROOT, f"task INDEXED BY task_by_uuid WHERE uuid = ? AND root = {schema.SAME_ID}")
_OF_PARENT = (_BY_PARENT, f"{_BY_ROOT} AND parent = {schema.SAME_ID}")
_AGGREGATED = f"SELECT json_group_array(json({schema.ROW_JSON})) FROM"


_IN_RANGE = (
    f"{_AGGREGATED} (SELECT * FROM task INDEXED BY task_by_uuid WHERE uuid >= ? AND uuid < ? "
    "ORDER BY uuid LIMIT ?)"
)


def placeholders(values: Sequence[Any]) -> tuple[str, list[Any]]:
    """Return the text between the brackets of IN, and its parameters: values, filled up with None."""
    size = next(size for size in SIZES if size >= len(values))
    return ",".join("?" * size), [*values, *[None] * (size - len(values))]


def rows_of(connection: sqlite3.Connection, uuids: Sequence[str]) -> list[Row]:
    """Return the rows of these tasks, `SIZES[-1]` at most, as far as there are any."""
    marks, parameters = placeholders([*map(codec.stored_id, uuids)])
    return _rows(connection, f"{_AGGREGATED} task WHERE uuid IN ({marks})", parameters)


def find(connection: sqlite3.Connection, prefix: str, limit: int) -> list[TaskInfo]:
    """Return up to so many tasks whose id begins with a text; with a whole id, that one."""
    exact = infos(connection, rows_of(connection, [prefix]))
    if exact:
        return exact
    rows = []
    for first, end in filter(None, (_uuid_range(prefix), _text_range(prefix))):
        rows += _rows(connection, _IN_RANGE, [first, end, limit])
    return infos(connection, rows)[:limit]


def _uuid_range(prefix: str) -> tuple[bytes, bytes] | None:
    """Return the first UUID with a prefix, and a value after all of them; None if no UUID begins so."""
    is_uuid = all(letter in ("-" if place in _DASHES else _HEX_DIGITS) for place, letter in enumerate(prefix))
    if not is_uuid or len(prefix) > _UUID_LENGTH:
        return None
    digits = prefix.replace("-", "")
    first = bytes.fromhex(digits.ljust(32, "0"))
    after = (int(digits or "0", 16) + 1) << 4 * (32 - len(digits))
    return first, after.to_bytes(17, "big")[1:] if after < 2**128 else bytes([255] * 17)


def _text_range(prefix: str) -> tuple[str, str | bytes]:
    """Return the first text with a prefix, and a value after all of them; BLOBs come after all texts."""
    return prefix, prefix + chr(0x10FFFF) if prefix else b""


def search(connection: sqlite3.Connection, filter_: TaskFilter, limit: int, before: Cursor | None) -> Page:
    """Return the newest tasks after a place that are like the filter says."""
    conditions = _conditions(connection, filter_)
    if conditions is None:
        return Page([], None, is_complete=True)
    if before is not None:
        since = codec.units(before.since)
        conditions.append(("since <= ?", [since]))
        conditions.append((f"(since < ? OR {schema.UUID_TEXT} < ?)", [since, before.uuid]))
    sources, key = _sources(filter_)
    where = "".join(f" AND {text}" for text, _ in conditions)
    order = f"ORDER BY since DESC, {schema.UUID_TEXT} DESC LIMIT ?"
    ids = " UNION ALL ".join(f"SELECT * FROM (SELECT id FROM {source}{where} {order})" for source in sources)
    parameters = [*key, *(value for _, values in conditions for value in values), limit + 1]
    rows = _rows(connection, f"{_AGGREGATED} task WHERE id IN ({ids})", parameters * len(sources))
    tasks = infos(connection, rows)
    tasks.sort(key=lambda task: (task.since, task.uuid), reverse=True)
    last = tasks[limit - 1] if len(tasks) > limit else None
    return Page(tasks[:limit], Cursor(last.since, last.uuid) if last else None, is_complete=True)


_Conditions = list[tuple[str, list[Any]]]


def _sources(filter_: TaskFilter) -> tuple[Sequence[str], list[Any]]:
    """Return where tasks are searched, and the parameter that each of these sources has, if any."""
    if filter_.root_id is not None:
        return _OF_ROOT, [codec.stored_id(filter_.root_id)]
    if filter_.parent_id is not None:
        return _OF_PARENT, [codec.stored_id(filter_.parent_id)]
    return _ALL, []


def _conditions(connection: sqlite3.Connection, filter_: TaskFilter) -> _Conditions | None:
    """Return conditions with their parameters; None if no task can fulfil them."""
    conditions: _Conditions = []
    names = {
        "name": filter_.task_name,
        "queue": filter_.queue_name,
        "worker": filter_.worker,
        "exception": filter_.exception,
    }
    for column, text in names.items():
        if text is not None:
            number = text_id(connection, text)
            if number is None:
                return None
            conditions.append((f"{column} = ?", [number]))
    if filter_.states is not None:
        numbers = [number for number, state in enumerate(schema.STATES) if state in filter_.states]
        if not numbers:
            return None
        conditions.append((f"state IN ({','.join('?' * len(numbers))})", numbers))
    if filter_.root_id is not None and filter_.parent_id is not None:  # the source has the root only
        parent = codec.stored_id(filter_.parent_id)
        conditions.append((f"(parent = ? OR (parent = {schema.SAME_ID} AND root = ?))", [parent, parent]))
    if filter_.since is not None:
        conditions.append(("since >= ?", [codec.units(filter_.since)]))
    if filter_.until is not None:
        conditions.append(("since <= ?", [codec.units(filter_.until)]))
    if filter_.min_runtime is not None:
        conditions.append(("runtime >= ?", [codec.units(filter_.min_runtime)]))
    return conditions


def text_id(connection: sqlite3.Connection, text: str) -> int | None:
    """Return the id of a text, None if no task has it."""
    row = connection.execute("SELECT id FROM text WHERE text = ?", (text,)).fetchone()
    return None if row is None else int(row[0])


def infos(connection: sqlite3.Connection, rows: Sequence[Row]) -> list[TaskInfo]:
    """Return the tasks of rows."""
    details = [codec.details_of(row) for row in rows]
    texts = _texts(connection, set(codec.text_ids_in(rows, details)))
    return [codec.decode(row, detail, texts) for row, detail in zip(rows, details, strict=True)]


def _texts(connection: sqlite3.Connection, ids: Iterable[int]) -> dict[int | None, str]:
    """Return texts by their ids."""
    texts: dict[int | None, str] = {}
    for chunk in chunks(sorted(ids)):
        marks, parameters = placeholders(chunk)
        answer = connection.execute(
            f"SELECT json_group_array(json_array(id, hex(text))) FROM text WHERE id IN ({marks})", parameters
        ).fetchone()
        texts |= {number: bytes.fromhex(text).decode() for number, text in _decode_texts(answer[0])}
    return texts


def chunks(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Yield parts of a list that fit into one query."""
    return (values[start : start + SIZES[-1]] for start in range(0, len(values), SIZES[-1]))


def _rows(connection: sqlite3.Connection, sql: str, parameters: Sequence[Any]) -> list[Row]:
    return codec.decode_rows(connection.execute(sql, parameters).fetchone()[0])
