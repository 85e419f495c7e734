"""The page of a search for single tasks as HTML: the form, the tasks, and the link to older ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import urlencode

from msgspec import Struct

from celery_exporter.core.task_info import STATE_NAMES, TaskInfo
from celery_exporter.status.details import Detail
from celery_exporter.status.model import Status
from celery_exporter.status.task_columns import FOUND, with_unseen
from celery_exporter.web.pages.layout import Place, frame
from celery_exporter.web.pages.query import Query
from celery_exporter.web.pages.tables import ShownTable
from celery_exporter.web.pages.tables import html as table_html
from celery_exporter.web.pages.task import note
from celery_exporter.web.task_query import MAX_LIMIT

#: Known names that a field of the form offers. A browser needs long for more.
MAX_OFFERED = 300
#: The parameter that is not one of the search: which rows a phone shows.
ROWS = "rows"


class TasksData(Detail, frozen=True, kw_only=True):
    """What the page shows. `next` is the cursor of the next page, `error` is why there is no answer."""

    tasks: Sequence[TaskInfo] = ()
    next: str | None = None
    is_complete: bool = True
    error: str = ""
    problem: str = ""  # what was not searched, and why


class _Field(Struct, frozen=True):
    """A field of the form: its parameter, its label, and a hint."""

    name: str
    label: str
    placeholder: str = ""


_FIELDS = (
    _Field("name", "Task", "shop.email.send"),
    _Field("queue", "Queue"),
    _Field("worker", "Worker"),
    _Field("exception", "Exception", "KeyError"),
    _Field("since", "Since", "15m, 2h or 2026-11-30T15:00Z"),
    _Field("until", "Until"),
    _Field("min_runtime", "Run time of at least", "30s"),
    _Field("root", "Root id"),
    _Field("parent", "Parent id"),
)
#: Fields that are behind "more" unless they have a value.
_RARE = frozenset({"until", "min_runtime", "root", "parent"})
_FORM = """<form method="get" class="search one" role="search" aria-label="One task" action="task">
<label>Id, or how it begins <input type="search" name="id" autocomplete="off" required></label>
<button>Show</button></form>
<form method="get" class="search" role="search" aria-label="Tasks">
<label>State <select name="state">{states}</select></label>
{fields}<details{is_open}><summary>more</summary><div>{rare}</div></details>
<div class="actions"><button>Search</button> <a href="tasks">clear</a></div>
{lists}</form>
"""


def html(data: TasksData, status: Status, query: Query) -> str:
    """Return the page. The parameters of the query are those of the search."""
    form = _form(query.parameters, status)
    if data.error:
        error = f'<p class="note critical" role="alert">{escape(data.error)}</p>\n'
        return frame(data, form + error, Place("Tasks", "api/v1/summary", "Tasks", query))
    found = table_html(ShownTable(with_unseen(FOUND, data.tasks), "", MAX_LIMIT), data, query)
    parts = [form, note(data.problem), found, _pages(data, query)]
    search = {name: value for name, value in query.parameters.items() if name != ROWS}
    url = f"api/v1/tasks?{urlencode(search)}"
    return frame(data, "".join(parts), Place("Tasks", url, "Tasks", query, is_single=True))


def _form(parameters: Mapping[str, str], status: Status) -> str:
    known = {
        "name": [task.name for task in status.tasks],
        "queue": [queue.name for queue in status.queues],
        "worker": [worker.name for worker in status.workers],
        "exception": sorted({group.exception for group in status.failure_groups}),
    }
    rare = any(parameters.get(name) for name in _RARE)
    return _FORM.format(
        states=_states(parameters.get("state", "")),
        fields="".join(_input(field, parameters, known) for field in _FIELDS if field.name not in _RARE),
        rare="".join(_input(field, parameters, known) for field in _FIELDS if field.name in _RARE),
        is_open=" open" if rare else "",
        lists="".join(_datalist(name, values) for name, values in known.items()),
    )


def _states(text: str) -> str:
    """Return the options of the states; a request may have several of them, as one text."""
    chosen = text.upper() if text.upper() in STATE_NAMES else text
    return "".join(
        f'<option value="{escape(name)}"{" selected" if name == chosen else ""}>'
        f"{escape(name) or 'any'}</option>"
        for name in dict.fromkeys(("", *STATE_NAMES, chosen))
    )


def _input(field: _Field, parameters: Mapping[str, str], known: Mapping[str, object]) -> str:
    listed = f' list="known-{field.name}"' if field.name in known else ""
    return (
        f'<label>{field.label} <input type="search" name="{field.name}"{listed} '
        f'value="{escape(parameters.get(field.name, ""))}" placeholder="{field.placeholder}" '
        'autocomplete="off"></label>\n'
    )


def _datalist(name: str, values: Iterable[str]) -> str:
    options = "".join(f'<option value="{escape(value)}"></option>' for value in [*values][:MAX_OFFERED])
    return f'<datalist id="known-{name}">{options}</datalist>\n'


def _pages(data: TasksData, query: Query) -> str:
    newest, older = query.url(cursor=""), query.url(cursor=data.next or "")
    links = [
        f'<a href="{escape(newest)}">newest tasks</a>' if query.parameters.get("cursor") else "",
        f'<a href="{escape(older)}" rel="next" id="older">older tasks</a>' if data.next else "",
    ]
    incomplete = (
        "" if data.is_complete else "There are more tasks than were searched: choose a task, queue or state."
    )
    return f'<p class="pages">{" ".join(filter(None, links))} {incomplete}</p>\n'
