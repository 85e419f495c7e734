"""The routes of the web server. All but one answer from memory, without a request to the broker."""

from __future__ import annotations

import html
from collections.abc import Callable
from importlib import resources

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from celery_exporter import __version__
from celery_exporter.status.explanation import Explanation
from celery_exporter.web import explain_api, status_routes, task_api, task_pages
from celery_exporter.web.answers import NOSNIFF, PLAIN_POLICY, SAFE, Page
from celery_exporter.web.pages.layout import POLICY
from celery_exporter.web.render import MetricsPage
from celery_exporter.web.status_routes import Answers, Sources, static_pages
from celery_exporter.web.task_api import Tasks

_RUNBOOKS = (resources.files(__package__) / "static" / "runbooks.html").read_text("utf-8")
_LANDING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>celery-exporter</title></head><body>
<h1>celery-exporter {version}</h1>
<p>Prometheus metrics of the Celery cluster on <code>{broker}</code>. The event subscription is {state}.</p>
<ul>
<li><a href="metrics">/metrics</a>: Prometheus metrics</li>
<li><a href="-/ready">/-/ready</a>, <a href="health">/health</a>: 200 while the event subscription is up</li>
<li><a href="-/healthy">/-/healthy</a>: 200 while the process runs</li>
<li><a href="runbooks">/runbooks</a>: what each alert means, and what to do</li>
</ul>
</body></html>
"""


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok\n", headers=NOSNIFF)


async def _healthy_as_flower(_: Request) -> Response:
    return PlainTextResponse("OK", headers=NOSNIFF)


async def _runbooks(_: Request) -> Response:
    return HTMLResponse(_RUNBOOKS, headers={**SAFE, "Content-Security-Policy": POLICY})


def build(  # noqa: PLR0913  what the pages show
    metrics: MetricsPage,
    is_ready: Callable[[], bool],
    broker: Callable[[], str],
    *,
    tasks: Tasks | None = None,
    explain: Callable[[str], Explanation] | None = None,
    sources: Sources | None = None,
    no_events: str = "",
) -> Starlette:
    """Return the ASGI application.

    `broker` returns the broker's URL without its password. With `sources` there are pages that show them,
    without it a landing page with links. `tasks` answers /api/v1/tasks, and `explain` looks at the broker for
    a task: only that does not answer from memory. `no_events` is the reason if the transport delivers no
    events.
    """

    async def ready(_: Request) -> Response:
        if is_ready():
            return PlainTextResponse("ready\n", headers=NOSNIFF)
        reason = no_events or "no live event subscription on the broker"
        return PlainTextResponse(f"not ready: {reason}\n", 503, NOSNIFF)

    async def landing(_: Request) -> Response:
        state = "open" if is_ready() else "not open"
        text = _LANDING.format(version=__version__, broker=html.escape(broker()), state=state)
        return HTMLResponse(text, headers={**SAFE, "Content-Security-Policy": PLAIN_POLICY})

    pages: dict[str, Page] = {
        "/": landing,
        "/metrics": metrics.answer,
        "/-/healthy": _healthy,
        "/-/ready": ready,
        "/health": ready,
        "/runbooks": _runbooks,
        "/healthcheck": _healthy_as_flower,
        **static_pages(),
    }
    if tasks is not None:
        pages |= task_api.pages(tasks)
    if explain is not None:
        pages |= explain_api.pages(explain)
    if sources is not None:
        answers = Answers(sources)
        pages |= status_routes.pages(answers) | task_pages.pages(answers, tasks, explain)
    app = Starlette(routes=[Route(path, page, methods=["GET"]) for path, page in pages.items()])
    app.router.redirect_slashes = False
    return app
