"""The pages of several brokers on one listener.

Each broker has all pages below /brokers/NAME/, where they are as if it were the only one. The only broker
has them at the root, too. Links of pages are relative, so they stay below their broker.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable, Mapping
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from celery_exporter import __version__
from celery_exporter.web.answers import NOSNIFF, PLAIN_POLICY, SAFE, Page
from celery_exporter.web.render import MetricsPage

ROOT, PARAMETER = "/brokers/", "broker"
METRICS, RELOAD = "/metrics", "/-/reload"
#: Paths of all brokers; those of them that one broker does not have; and those that are the same for each.
ONLY_OF_ALL = ("/sd", "/api/v1/brokers")
OF_ALL = (METRICS, "/", "/-/ready", "/health", *ONLY_OF_ALL)
SAME_FOR_ALL = ("/-/healthy", "/healthcheck", "/runbooks")
_LIST = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>celery-exporter</title></head><body>
<h1>celery-exporter {version}</h1>
<ul>
{items}
</ul>
<p><a href="metrics">/metrics</a> has the metrics of all, <code>/metrics?broker=NAME</code> those of one, and
<a href="sd">/sd</a> a target for each (HTTP service discovery of Prometheus).</p>
</body></html>
"""
_ITEM = (
    '<li><a href="brokers/{name}/">{name}</a>: <code>{url}</code>. The event subscription is {state}.</li>'
)


class BrokerPages(NamedTuple):
    """The pages of one broker, and what others say about it."""

    app: Starlette
    is_ready: Callable[[], bool]
    url: Callable[[], str]  # without its password


#: Returns all brokers by name; the name of the only one may be empty.
GetBrokers = Callable[[], Mapping[str, BrokerPages]]
#: Reads the configuration again. Raises an exception whose text is one line.
Reload = Callable[[], None]


class ReloadError(Exception):
    """The configuration was not reloaded; the text is one line."""


def broker_pages(brokers: GetBrokers, metrics: MetricsPage, reload: Reload | None = None) -> ASGIApp:
    """Return the application. `metrics` is the page of all brokers.

    `reload` is called by POST /-/reload; None: that is refused.
    """
    of_all: dict[str, Page] = {
        METRICS: metrics.answer,
        "/": _list(brokers),
        "/sd": _service_discovery(brokers),
        "/api/v1/brokers": _api(brokers),
        "/-/ready": _ready(brokers),
        "/health": _ready(brokers),
    }

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        known = brokers()
        app = await _reloading(scope, reload) or _app_of_one(scope, known)
        if app is None and scope["method"] in {"GET", "HEAD"} and scope["path"] in of_all:
            app = await of_all[scope["path"]](Request(scope, receive))
        await (app or _not_found(known))(scope, receive, send)

    return answer


def paths(pages: BrokerPages) -> set[str]:
    """Return the paths of the only broker, and those of all."""
    return {*OF_ALL, *(route.path for route in pages.app.routes if isinstance(route, Route))}


# -- one broker ----------------------------------------------------------------------------------------------


def _app_of_one(scope: Scope, brokers: Mapping[str, BrokerPages]) -> ASGIApp | None:
    """Return what answers a request about one broker; None if it is about all."""
    path: str = scope["path"]
    if path.startswith(ROOT):
        name, slash, _ = path[len(ROOT) :].partition("/")
        if name in brokers and not slash:
            return RedirectResponse(f"{name}/", 308, SAFE)
        return _below(brokers[name].app) if name in brokers else _not_found(brokers)
    chosen = QueryParams(scope["query_string"]).get(PARAMETER)
    if chosen is not None and path not in ONLY_OF_ALL:
        return brokers[chosen].app if chosen in brokers else _not_found(brokers)
    first = next(iter(brokers), None)
    if first is None or path in ONLY_OF_ALL:
        return None
    if len(brokers) > 1:
        return brokers[first].app if path in SAME_FOR_ALL or path.startswith("/static/") else None
    return None if path == METRICS and first else brokers[first].app


def _below(app: ASGIApp) -> ASGIApp:
    """Return an application whose paths begin behind /brokers/NAME."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        *_, path = scope["path"].split("/", 3)
        *_, raw_path = (scope.get("raw_path") or scope["path"].encode()).split(b"/", 3)
        await app({**scope, "path": f"/{path}", "raw_path": b"/" + raw_path}, receive, send)

    return answer


def _not_found(brokers: Mapping[str, BrokerPages]) -> Response:
    names = ", ".join(filter(None, brokers))
    text = f"not found; the brokers are {names}, each below {ROOT}NAME/" if names else "not found"
    return JSONResponse({"error": text}, 404, headers=SAFE)


# -- all brokers ---------------------------------------------------------------------------------------------


def _list(brokers: GetBrokers) -> Page:
    async def page(_: Request) -> Response:
        items = (
            _ITEM.format(
                name=html.escape(name),
                url=html.escape(pages.url()),
                state="open" if pages.is_ready() else "not open",
            )
            for name, pages in brokers().items()
        )
        text = _LIST.format(version=__version__, items="\n".join(items))
        return HTMLResponse(text, headers={**SAFE, "Content-Security-Policy": PLAIN_POLICY})

    return page


def _api(brokers: GetBrokers) -> Page:
    async def api(_: Request) -> Response:
        answer = [
            {"name": name or None, "url": pages.url(), "is_ready": pages.is_ready(), "path": _path(name)}
            for name, pages in brokers().items()
        ]
        return JSONResponse({"brokers": answer}, headers=SAFE)

    return api


def _path(name: str) -> str:
    return f"{ROOT}{name}/" if name else "/"


def _service_discovery(brokers: GetBrokers) -> Page:
    """Return the page for `http_sd_configs` of Prometheus: a target, and a job, for each broker.

    Format: prometheus.io/docs/prometheus/latest/http_sd. Its labels take precedence over `job_name`.
    """

    async def page(request: Request) -> Response:
        targets = [
            {
                "targets": [request.url.netloc],
                "labels": {
                    "__scheme__": request.url.scheme,
                    "__metrics_path__": METRICS,
                    **({f"__param_{PARAMETER}": name, "job": name} if name else {}),
                },
            }
            for name in brokers()
        ]
        return JSONResponse(targets, headers=NOSNIFF)

    return page


def _ready(brokers: GetBrokers) -> Page:
    """Return the page that is green while the event subscription of any broker is open.

    An orchestrator sends no requests to a container that is not ready, so one broker that is down must not
    hide the others.
    """

    async def page(_: Request) -> Response:
        states = {name: pages.is_ready() for name, pages in brokers().items()}
        lines = (f"{name}: {'ready' if is_ready else 'not ready'}\n" for name, is_ready in states.items())
        return PlainTextResponse("".join(lines), 200 if any(states.values()) else 503, NOSNIFF)

    return page


async def _reloading(scope: Scope, reload: Reload | None) -> Response | None:
    """Return the answer to a request for a reload, None for any other request."""
    if scope["path"] != RELOAD:
        return None
    if scope["method"] != "POST":
        return PlainTextResponse("a reload is requested by POST\n", 405, {**NOSNIFF, "Allow": "POST"})
    if reload is None:
        text = "reloading by HTTP is off; start with --config.file and --web.enable-lifecycle\n"
        return PlainTextResponse(text, 403, NOSNIFF)
    try:
        await asyncio.to_thread(reload)
    except ReloadError as error:
        return PlainTextResponse(f"{error}\n", 500, NOSNIFF)
    return PlainTextResponse("reloaded\n", headers=NOSNIFF)
