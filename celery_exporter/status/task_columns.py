"""The tables and facts that the pages show of single tasks. Their fields are those of `core.task_info`."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from celery_exporter.core.task_info import TaskInfo
from celery_exporter.status.columns import (
    EXCEPTION_LINK,
    NAME_LINK,
    QUEUE_LINK,
    QUEUE_TASKS,
    TASK_LINK,
    WORKER_LINK,
    WORKER_TASKS,
    Column,
    Table,
)

_STATE = Column("State", "state", "state")
_TASK = Column("Task", "task_name", "text", link=NAME_LINK)
_QUEUE = Column("Queue", "queue_name", "text", link=QUEUE_LINK, tasks=QUEUE_TASKS)
_WORKER = Column("Worker", "worker", "text", link=WORKER_LINK, tasks=WORKER_TASKS)
_EXCEPTION = Column("Exception", "exception", "text", link=EXCEPTION_LINK)
_RUN_TIME = Column("Run time", "runtime_seconds", "seconds", "From the start to the end.")
_ID = Column("Id", "uuid", "text", link=TASK_LINK)
_UNSEEN_MEANING = "The exporter started then. The task was open before, and may be over."
#: Only where a task has it.
UNSEEN = Column("Nothing seen since", "unseen_since", "clock", _UNSEEN_MEANING, unit="UTC")

#: The tasks that a search found.
FOUND = Table(
    "tasks",
    "Tasks",
    "No task that is kept is like this.",
    (
        Column("Since", "since", "clock", "When it entered its state.", unit="UTC"),
        _STATE,
        _TASK,
        _QUEUE,
        _WORKER,
        _RUN_TIME,
        _EXCEPTION,
        _ID,
    ),
    max_rows=500,
    key="uuid",
)
#: One task. Those in `RARE_FACTS` are left out where they are unknown.
TASK_FACTS = (
    Column("Task", "task.task_name", "text", link=NAME_LINK),
    Column("State", "task.state", "state"),
    Column("Since", "task.since", "ago", "When it entered this state."),
    Column("Nothing seen since", "task.unseen_since", "clock", _UNSEEN_MEANING, unit="UTC"),
    Column("Queue", "task.queue_name", "text", link=QUEUE_LINK, tasks=QUEUE_TASKS),
    Column("Worker", "task.worker", "text", link=WORKER_LINK, tasks=WORKER_TASKS),
    Column("Run time", "task.runtime_seconds", "seconds", "Of the newest attempt."),
    Column("Exception", "task.exception", "text", "The newest one.", link=EXCEPTION_LINK),
    Column("Reason", "task.reason", "text", "Why it counts as over without an event."),
    Column("First sent", "task.first_sent", "precise", unit="UTC"),
    Column("Sent by", "task.client", "text", "The process that sent it."),
    Column(
        "Parent", "task.parent_id", "text", "The task that sent it.", link=TASK_LINK, tasks="tasks?parent={}"
    ),
    Column(
        "Root",
        "task.root_id",
        "text",
        "The task that began the workflow.",
        link=TASK_LINK,
        tasks="tasks?root={}",
    ),
    Column("Arguments", "task.args", "long", "Only with --record-arguments."),
    Column("Keyword arguments", "task.kwargs", "long", "Only with --record-arguments."),
    Column("Result", "task.result", "long", "Only with --record-arguments."),
)
RARE_FACTS = frozenset({"task.unseen_since", "task.args", "task.kwargs", "task.result"})
ATTEMPTS = Table(
    "attempts",
    "Attempts",
    "No event of an attempt is known.",
    (
        Column("Attempt", "retries", "count", "0 is the first one."),
        _STATE,
        _QUEUE,
        _WORKER,
        Column("Sent", "sent", "precise", "By the clock of the client.", unit="UTC"),
        Column("Due", "eta", "precise", "The time before which it must not start.", unit="UTC"),
        Column("Received", "received", "time", unit="UTC"),
        Column("Started", "started", "time", unit="UTC"),
        Column("Ended", "ended", "time", unit="UTC"),
        Column("Wait", "queue_wait_seconds", "seconds", "From sent, or the eta, to the start."),
        Column("Prefetch", "prefetch_wait_seconds", "seconds", "From received, or the eta, to the start."),
        _RUN_TIME,
        _EXCEPTION,
        Column("Reason", "reason", "text", "Why it counts as over without an event."),
    ),
)
WORKFLOW = Table(
    "workflow",
    "Workflow",
    "No other task of the workflow is known.",
    (
        _TASK,
        _STATE,
        Column("First sent", "first_sent", "precise", unit="UTC"),
        Column("Since", "since", "precise", "When it entered its state.", unit="UTC"),
        _WORKER,
        _RUN_TIME,
        _ID,
        Column("Parent", "parent_id", "short", "The beginning of the id of its sender.", link=TASK_LINK),
    ),
    max_rows=502,  # the root and the task of the page may come in addition
    key="uuid",
)


def with_unseen(table: Table, tasks: Iterable[TaskInfo]) -> Table:
    """Return a table of tasks, with a further column if nothing was seen of one since a restart."""
    if all(task.unseen_since is None for task in tasks):
        return table
    place = 1 + table.columns.index(_STATE)
    return replace(table, columns=(*table.columns[:place], UNSEEN, *table.columns[place:]))
