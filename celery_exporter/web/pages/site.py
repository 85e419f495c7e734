"""The pages that show a status: what is on each of them, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.status import details
from celery_exporter.status.charts import Charts
from celery_exporter.status.columns import (
    BROKER,
    FAILURE_GROUPS,
    FAILURES,
    QUEUE_FACTS,
    QUEUE_TASKS,
    QUEUES,
    TASKS,
    WORKER_FACTS,
    WORKER_TASKS,
    WORKERS,
    Column,
)
from celery_exporter.status.model import Status
from celery_exporter.web.pages import charts as chart_pages
from celery_exporter.web.pages import problems
from celery_exporter.web.pages.cells import link
from celery_exporter.web.pages.facts import facts
from celery_exporter.web.pages.layout import Place, frame
from celery_exporter.web.pages.query import Query, known_parameters
from celery_exporter.web.pages.tables import ShownTable
from celery_exporter.web.pages.tables import html as table_html

#: Rows of the tables of the overview. Other pages show more.
OVERVIEW_ROWS = 10


def _whole(status: Status, _: str) -> Status:
    return status


class Page(Struct, frozen=True):
    """A page.

    Its JSON is at `source`, and `data` returns the same from a status; None: there is nothing of this name.
    `charts` are those of `status.charts.PAGES`. The first of the tables is the main one. A page of one worker
    or queue has its name in the path, and in the URL of its JSON. `tasks` are links to lists of its tasks.
    """

    path: str
    title: str
    navigation: str
    source: str
    charts: str
    tables: Sequence[ShownTable]
    facts: Sequence[Column] = ()
    data: Callable[[Status, str], Any] = _whole
    has_problems: bool = False
    is_named: bool = False
    tasks: Mapping[str, str] = {}

    @property
    def main(self) -> str:
        """Return the name of the main table."""
        return self.tables[0].table.name

    def known_parameters(self) -> frozenset[str]:
        """Return the parameters that a request may have."""
        return known_parameters((shown.table.name for shown in self.tables), self.main, ["range"])


OVERVIEW = Page(
    "/",
    "Overview",
    "Overview",
    "api/v1/status",
    "overview",
    (
        ShownTable(TASKS, "-rates.FAILURE", OVERVIEW_ROWS, then="-rates.RECEIVED"),
        ShownTable(QUEUES, "-length", OVERVIEW_ROWS, "queues"),
        ShownTable(WORKERS, "up", OVERVIEW_ROWS, "workers"),
        ShownTable(FAILURES, "-at", OVERVIEW_ROWS, "failures"),
    ),
    BROKER,
    has_problems=True,
)
_ITS_QUEUES = replace(QUEUES, empty="It consumes no queue that is known.")
_ITS_FAILURES = replace(FAILURES, empty="None of the newest failures was on this worker.")
_ITS_WORKERS = replace(WORKERS, empty="No worker that is known consumes it.")
PAGES = (
    OVERVIEW,
    Page("/workers", "Workers", "Workers", "api/v1/status", "workers", (ShownTable(WORKERS, "up"),)),
    Page("/queues", "Queues", "Queues", "api/v1/status", "queues", (ShownTable(QUEUES, "-length"),)),
    Page(
        "/failures",
        "Failures",
        "Failures",
        "api/v1/failures",
        "failures",
        (ShownTable(FAILURE_GROUPS, "last"), ShownTable(FAILURES, "-at")),
        data=details.failures,
    ),
    Page(
        "/workers/",
        "Worker",
        "Workers",
        "api/v1/workers/",
        "worker",
        (ShownTable(_ITS_QUEUES, "-length"), ShownTable(_ITS_FAILURES, "-at")),
        WORKER_FACTS,
        details.worker_detail,
        is_named=True,
        tasks={
            "All its tasks": WORKER_TASKS,
            "running": f"{WORKER_TASKS}&state=STARTED",
            "reserved": f"{WORKER_TASKS}&state=RECEIVED",
            "failed": f"{WORKER_TASKS}&state=FAILURE",
        },
    ),
    Page(
        "/queues/",
        "Queue",
        "Queues",
        "api/v1/queues/",
        "queue",
        (ShownTable(_ITS_WORKERS, "up"),),
        QUEUE_FACTS,
        details.queue_detail,
        is_named=True,
        tasks={
            "All its tasks": QUEUE_TASKS,
            "waiting": f"{QUEUE_TASKS}&state=PENDING",
            "running": f"{QUEUE_TASKS}&state=STARTED",
            "failed": f"{QUEUE_TASKS}&state=FAILURE",
        },
    ),
)


def html(page: Page, data: Any, charts: Charts | None, query: Query) -> str:
    """Return a page with its data."""
    parts = [
        _tasks(page, query),
        problems.html(data.findings) if page.has_problems else "",
        facts(page.facts, data, query.root),
        "" if charts is None else chart_pages.html(charts, page.charts, query),
        *(table_html(shown, data, query) for shown in page.tables),
    ]
    heading = f"{page.title} {query.name}" if page.is_named else page.title
    source = link(f"{page.source}{{}}", query.name) if page.is_named else page.source
    return frame(data, "".join(parts), Place(heading, source, page.navigation, query))


def _tasks(page: Page, query: Query) -> str:
    """Return the links to the lists of the tasks of a worker or queue, as HTML."""
    urls = {title: link(template, query.name) for title, template in page.tasks.items()}
    links = " ".join(
        f'<a href="{escape(query.root + url)}">{title}</a>' for title, url in urls.items() if url
    )
    return f'<p class="pages">{links}</p>\n' if links else ""
