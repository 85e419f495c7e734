"""The page of one task as HTML: its state, its attempts and its workflow; or what its id can mean."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from celery_exporter.core.task_info import TaskInfo
from celery_exporter.status.columns import TASK_LINK, get
from celery_exporter.status.details import Detail
from celery_exporter.status.task_columns import ATTEMPTS, RARE_FACTS, TASK_FACTS, WORKFLOW, with_unseen
from celery_exporter.web.pages.cells import copy_button, link
from celery_exporter.web.pages.facts import facts
from celery_exporter.web.pages.layout import Place, frame
from celery_exporter.web.pages.query import Query
from celery_exporter.web.pages.tables import ShownTable
from celery_exporter.web.pages.tables import html as table_html
from celery_exporter.web.task_answers import Problem

MAIN = WORKFLOW.name
_ATTEMPTS = ShownTable(ATTEMPTS, "", field="task.attempts")
TABLES = (ATTEMPTS.name, WORKFLOW.name)
_TREE = """<div class="tree"{hidden}>
{table}{cut}<p class="about">Each task is below the one that sent it, as far as that is known. Events do not
say which tasks form a group: members of a group that a client sends are workflows of their own, and the body
of a chord is below the member that ended last.</p>
</div>
"""
_CUT = """<p class="note warning">The workflow has more tasks than these {count}, the newest ones.
<a href="{url}">Search for all of them</a></p>
"""


class TaskData(Detail, frozen=True, kw_only=True):
    """What the page shows: a task, and the tasks of its workflow."""

    task: TaskInfo
    workflow: Sequence[TaskInfo]
    trace_url: str | None = None
    problem: str = ""
    is_complete: bool = True


def html(data: TaskData, query: Query, explanation: str = "") -> str:
    """Return the page of a task; `explanation` is the section about where it is."""
    columns = [
        column
        for column in TASK_FACTS
        if column.field not in RARE_FACTS or get(data, column.field) is not None
    ]
    uuid = escape(data.task.uuid)
    parts = [
        f'<p class="id"><code>{uuid}</code>{copy_button(uuid)}{_trace(data.trace_url)}</p>\n',
        note(data.problem),
        facts(columns, data, query.root),
        explanation,
        table_html(_ATTEMPTS, data, query),
        _workflow(data, query),
    ]
    heading = data.task.task_name or "Task"
    url = link("api/v1/tasks/{}", data.task.uuid)
    return frame(data, "".join(parts), Place(heading, url, "Tasks", query, is_single=True))


def _workflow(data: TaskData, query: Query) -> str:
    """Return the tree of the workflow, and what it does not show."""
    url = escape(query.root + link("tasks?root={}", data.task.root_id or data.task.uuid))
    cut = "" if data.is_complete else _CUT.format(count=len(data.workflow), url=url)
    hidden = "" if len(data.workflow) > 1 else " hidden"
    table = ShownTable(with_unseen(WORKFLOW, data.workflow), "", is_tree=True)
    return _TREE.format(table=table_html(table, data, query), cut=cut, hidden=hidden)


def _trace(url: str | None) -> str:
    return f' <a href="{escape(url)}" rel="noreferrer">Trace of its workflow</a>' if url else ""


def note(problem: str) -> str:
    """Return why a part of the tasks was not searched, as HTML; "" if all were."""
    return f'<p class="note warning">{escape(problem)}</p>\n' if problem else ""


def problem_html(problem: Problem, status: Detail, query: Query, explanation: str = "") -> str:
    """Return the page for an id that no task has, or several."""
    hints = "".join(f"<li>{escape(hint)}</li>" for hint in problem.hints)
    tasks = "".join(
        f'<li><a href="{escape(query.root + link(TASK_LINK, uuid))}"><code>{escape(uuid)}</code></a>'
        f"{copy_button(escape(uuid))}</li>"
        for uuid in problem.tasks
    )
    main = (
        f"<p>{escape(problem.error)}</p>\n"
        f"{f'<p>That can mean:</p><ul class=dots>{hints}</ul>' if hints else ''}"
        f"{f'<ul class=dots>{tasks}</ul>' if tasks else ''}"
        f"{explanation}"
        f'<p><a href="{query.root}tasks">Search for tasks</a></p>\n'
    )
    return frame(status, main, Place("Unknown task", "api/v1/summary", "Tasks", query, is_single=True))
