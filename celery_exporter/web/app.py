"""The pages. Each is made from a snapshot; none of them asks the broker."""

from __future__ import annotations

import asyncio
import gzip
import html
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from celery_exporter import __version__
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.exposition import Exposition, negotiate
from celery_exporter.status import Status
from celery_exporter.web.encodings import takes_gzip
from celery_exporter.web.status import NOSNIFF, SAFE, Page
from celery_exporter.web.status import pages as status_pages

#: Expositions made at a time. Two Prometheus servers are usual; more would only share the same core.
RENDERERS = 2

#: Content type, address of the scraper (None for people), gzipped.
_Wanted = tuple[str, str | None, bool]

_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_LANDING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>celery-exporter</title></head><body>
<h1>celery-exporter {version}</h1>
<p>Prometheus metrics of the Celery cluster on <code>{broker}</code>. The event subscription is {state}.</p>
<ul>
<li><a href="metrics">/metrics</a>: the metrics</li>
<li><a href="-/ready">/-/ready</a>: 200 while events are heard (also <a href="health">/health</a>)</li>
<li><a href="-/healthy">/-/healthy</a>: 200 while this process lives</li>
</ul>
</body></html>
"""


def build(  # noqa: PLR0913  what it shows, and what of it
    snapshot: Callable[[], Snapshot],
    is_ready: Callable[[], bool],
    exposition: Exposition,
    broker: Callable[[], str],
    *,
    native: bool = False,
    status: Callable[[], Status] | None = None,
    no_events: str = "",
) -> Starlette:
    """Return the ASGI application; `broker` gives the masked URL, `native` whether there are such histograms.

    With `status` there is a status page at /, without it one that says little. `no_events` is why no event
    can ever arrive.
    """
    renderers = ThreadPoolExecutor(RENDERERS, thread_name_prefix="render")
    free = asyncio.Semaphore(RENDERERS)
    queued: dict[_Wanted, asyncio.Task[bytes]] = {}

    def render(content_type: str, scraper: str | None, zipped: bool) -> bytes:
        text = exposition.render(snapshot(), content_type, scraper)
        return gzip.compress(text, 1) if zipped else text

    async def make(wanted: _Wanted) -> bytes:
        async with free:
            del queued[wanted]  # who asks from now on gets a newer one
            # In a thread: the loop goes on answering the other requests while text is made.
            return await asyncio.get_running_loop().run_in_executor(renderers, render, *wanted)

    async def metrics(request: Request) -> Response:
        content_type = negotiate(request.headers.get("accept"), native=native)
        zipped = takes_gzip(request.headers.get("accept-encoding", ""))
        wanted = content_type, _scraper(request), zipped
        # Whoever wants the same while it waits to be made shares it: a crowd waits no longer than two do.
        if wanted not in queued:
            queued[wanted] = asyncio.create_task(make(wanted))
        body = await asyncio.shield(queued[wanted])
        headers = {**NOSNIFF, "Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        return Response(body, headers=headers | ({"Content-Encoding": "gzip"} if zipped else {}))

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("ok\n", headers=NOSNIFF)

    async def ready(_: Request) -> Response:
        if is_ready():
            return PlainTextResponse("ready\n", headers=NOSNIFF)
        why = no_events or "no live event subscription on the broker"
        return PlainTextResponse(f"not ready: {why}\n", 503, NOSNIFF)

    async def landing(_: Request) -> Response:
        state = "open" if is_ready() else "not open"
        text = _LANDING.format(version=__version__, broker=html.escape(broker()), state=state)
        return HTMLResponse(text, headers={**SAFE, "Content-Security-Policy": _POLICY})

    pages: dict[str, Page] = {
        "/": landing,
        "/metrics": metrics,
        "/-/healthy": healthy,
        "/-/ready": ready,
        "/health": ready,
    }
    if status is not None:
        pages |= status_pages(status)
    app = Starlette(routes=[Route(path, page, methods=["GET"]) for path, page in pages.items()])
    app.router.redirect_slashes = False
    return app


def _scraper(request: Request) -> str | None:
    """Return the address of a Prometheus server, which says how long it will wait; None for people."""
    scrapes = "x-prometheus-scrape-timeout-seconds" in request.headers
    return request.client.host if scrapes and request.client else None
