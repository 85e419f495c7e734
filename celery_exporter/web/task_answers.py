"""The answers of /api/v1/tasks. The descriptions are those of docs/reference/task-api.schema.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from celery_exporter.core.task_info import TaskInfo

_PROBLEM = (
    "What was not searched, and why: the history file, or the tasks of the exporter of which this one is a "
    "standby. Empty if all was."
)


class TaskList(Struct, frozen=True):
    """The answer of /api/v1/tasks."""

    tasks: Annotated[Sequence[TaskInfo], Meta(description="The tasks, the newest first.")]
    next: Annotated[
        str | None, Meta(description="The parameter `cursor` of the next page. Null: this is the last one.")
    ]
    is_complete: Annotated[
        bool, Meta(description="False if there are more tasks in memory than were searched.")
    ]
    problem: Annotated[str, Meta(description=_PROBLEM)] = ""


class TaskAnswer(Struct, frozen=True):
    """The answer of /api/v1/tasks/<uuid>."""

    task: Annotated[TaskInfo, Meta(description="The task.")]
    workflow: Annotated[
        Sequence[TaskInfo],
        Meta(
            description="All known tasks with the same root, this one included; the newest 500 at most. Each "
            "is after the task that sent it."
        ),
    ]
    trace_url: Annotated[
        str | None, Meta(description="Its trace in the tracing backend (`--trace-url`).")
    ] = None
    problem: Annotated[str, Meta(description=_PROBLEM)] = ""
    is_complete: Annotated[bool, Meta(description="False if the workflow has more tasks.")] = True


class Problem(Struct, frozen=True):
    """The answer to a request that has no other one."""

    error: Annotated[str, Meta(description="What happened.")]
    hints: Annotated[Sequence[str], Meta(description="What it can mean.")] = ()
    tasks: Annotated[Sequence[str], Meta(description="The ids that begin with what was given.")] = ()
