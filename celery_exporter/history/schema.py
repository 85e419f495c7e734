"""The tables of the history file, and why they are as they are.

Measured by `benchmarks/history.py`; the results are in docs/explanation/performance.md.

- `task`: one row for each task. `id` stays for hours, so that a task that changes leaves the index by uuid as
  it is. What only a reader of the whole task needs is in `details` (see codec.py).
- `mark`: rows up to `id` were written `at` that time or before, by the clock of the exporter. A row that
  changes after a mark gets a new id. So rows are as old as their ids, and retention needs no column and does
  not depend on the clocks of senders, which `since` has.
- `task_by_since` has all columns that tasks are filtered by, so that each list is one scan of this index,
  newest first, until the page is full. An index for each filter would take 20 to 30 bytes a task each, and
  would not bound the time of two filters that are frequent alone and rare together. This one does: it is
  read whole at worst.
- `task_by_root` and `task_by_parent` have no entry for a task that is the root itself, or whose parent is
  the root. With `since`, a page of a workflow of 500,000 tasks takes 0.2 ms instead of 1.5 s. With the other
  columns, a search for a few of these tasks takes 55 ms instead of 220, for 7 bytes a task. A task that sends
  so many is usually the root, so `task_by_parent` goes without them.
- `text`: each name of a task, queue, worker, client or exception once. `used` is at least the `since` of
  each task that refers to it, so a text that is older than all tasks can be removed. Ids are never used
  again.

A time or duration is an integer in units of 2^-22 seconds, the resolution of a double from 2004 to 2038:
times of events are the same when they are read.
"""

from __future__ import annotations

#: The header of the file has these (https://www.sqlite.org/fileformat.html): "celx", and the version.
APPLICATION_ID = 0x63656C78
SCHEMA_VERSION = 2

#: Units of a second.
UNITS = 2**22

#: The states by the number that the file has. A new one is added at the end.
STATES = ("PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED", "REJECTED", "LOST")

#: Stands in `root` for the id of the task itself, and in `parent` for that of the root.
SAME_ID = 0

COLUMNS = (
    *("id", "since", "name", "queue", "state", "worker", "exception", "runtime"),
    *("uuid", "root", "parent", "details"),
)

_FILTERED = "since, name, queue, state, worker, exception, runtime"
CREATE = f"""
CREATE TABLE task (
    id INTEGER PRIMARY KEY,
    since INTEGER NOT NULL,
    name INTEGER,
    queue INTEGER,
    state INTEGER NOT NULL,
    worker INTEGER,
    exception INTEGER,
    runtime INTEGER,
    uuid BLOB NOT NULL,
    root BLOB,
    parent BLOB,
    details BLOB NOT NULL
);
CREATE UNIQUE INDEX task_by_uuid ON task (uuid);
CREATE INDEX task_by_since ON task ({_FILTERED});
CREATE INDEX task_by_root ON task (root, {_FILTERED}) WHERE root != {SAME_ID};
CREATE INDEX task_by_parent ON task (parent, since) WHERE parent != {SAME_ID};
CREATE TABLE mark (id INTEGER PRIMARY KEY, at INTEGER NOT NULL);
CREATE TABLE text (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL UNIQUE, used INTEGER NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


def _id_json(column: str) -> str:
    """Return the expression of an id in JSON: digits, after a letter if it is no UUID; '' for `SAME_ID`."""
    cases = f"WHEN 'text' THEN 't'||hex({column}) WHEN 'blob' THEN hex({column}) WHEN 'integer' THEN ''"
    return f"CASE typeof({column}) {cases} END"


#: The text of an id, by which tasks with the same `since` are ordered.
UUID_TEXT = (
    "CASE typeof(uuid) WHEN 'text' THEN uuid ELSE lower("
    "hex(substr(uuid, 1, 4))||'-'||hex(substr(uuid, 5, 2))||'-'||hex(substr(uuid, 7, 2))||'-'||"
    "hex(substr(uuid, 9, 2))||'-'||hex(substr(uuid, 11, 6))) END"
)
#: One row as JSON, and many rows as one: each row that SQLite returns by itself takes Python's global lock
#: again, for which a busy exporter lets it wait for up to 5 ms.
ROW_JSON = (
    "json_array(id, since, name, queue, state, worker, exception, runtime, "
    f"{_id_json('uuid')}, {_id_json('root')}, {_id_json('parent')}, hex(details))"
)
