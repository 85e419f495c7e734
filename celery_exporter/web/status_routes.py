"""The routes of the pages, their static files, and the same data as JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from celery_exporter.status.charts import DEFAULT_RANGE, ChartQuery, Charts
from celery_exporter.status.details import summary
from celery_exporter.status.model import Status
from celery_exporter.status.rings import SAMPLE_SECONDS
from celery_exporter.web.answers import SAFE, Cache, Encoded, Page, Worker, encode, json_response
from celery_exporter.web.pages import missing, site
from celery_exporter.web.pages.layout import POLICY, STATIC
from celery_exporter.web.pages.query import Query, chosen

_CONTENT_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
#: The end of the path of a route whose pages have names.
_NAME = "{name:path}"


class Sources(NamedTuple):
    """Where the data of the pages comes from. The functions are called in a thread."""

    status: Callable[[], Status]
    charts: Callable[[ChartQuery], Charts] | None = None
    grafana_url: str = ""
    broker: str = ""  # its name, if there are several
    brokers: Callable[[], Sequence[str]] = tuple  # the names of all


class Answers:
    """The data of the pages and its JSON, cached for all requests."""

    def __init__(self, sources: Sources) -> None:
        self.worker = Worker()
        self._sources = sources
        self._status: Cache[None, Encoded] = Cache(self.worker, lambda _: encode(sources.status()))
        self._charts: Cache[ChartQuery, Encoded] | None = None
        if (charts := sources.charts) is not None:
            self._charts = Cache(self.worker, lambda query: encode(charts(query)), SAMPLE_SECONDS)

    def query(self, request: Request, known: Collection[str], main: str) -> Query:
        """Return what a request asks for, with the parameters that are known."""
        sources = self._sources
        return Query(
            chosen(request.query_params, known),
            main,
            _name(request),
            _root(request),
            sources.grafana_url,
            sources.broker,
            sources.brokers(),
        )

    async def status(self) -> Encoded:
        """Return the status and its JSON."""
        return await self._status.get(None)

    async def charts(self, query: ChartQuery) -> Encoded | None:
        """Return charts and their JSON; None if there are no such charts."""
        return await self._charts.get(query) if self._charts is not None and query.is_valid() else None


def pages(answers: Answers) -> dict[str, Page]:
    """Return the pages and their JSON by path."""

    async def api_status(request: Request) -> Response:
        return json_response(request, await answers.status())

    async def api_summary(request: Request) -> Response:
        return json_response(request, encode(summary((await answers.status()).value)))

    async def api_charts(request: Request) -> Response:
        page, name, range_name = map(request.query_params.get, ("page", "name", "range"))
        encoded = await answers.charts(ChartQuery(page or "", name or "", range_name or DEFAULT_RANGE))
        return _not_found("charts") if encoded is None else json_response(request, encoded)

    apis = [page for page in site.PAGES if page.source != site.OVERVIEW.source]
    return {
        **{_path(page.path, page): _page(page, answers) for page in site.PAGES},
        **{_path(f"/{page.source}", page): _api(page, answers) for page in apis},
        f"/{site.OVERVIEW.source}": api_status,
        "/api/v1/charts": api_charts,
        "/api/v1/summary": api_summary,
    }


def static_pages() -> dict[str, Page]:
    """Return the static files of the pages, by path."""
    return {f"/static/{name}": _static(name, body) for name, body in STATIC.items()}


def _path(path: str, page: site.Page) -> str:
    return f"{path}{_NAME}" if page.is_named else path


def _name(request: Request) -> str:
    return str(request.path_params.get("name", ""))


def _page(page: site.Page, answers: Answers) -> Page:
    async def html(request: Request) -> Response:
        query = answers.query(request, page.known_parameters(), page.main)
        status: Status = (await answers.status()).value
        range_name = query.parameters.get("range", DEFAULT_RANGE)
        charts = await answers.charts(ChartQuery(page.charts, query.name, range_name))

        def render() -> Response:
            data = page.data(status, query.name)
            if data is None:
                return html_response(missing.html(status, page.title.lower(), page.navigation, query), 404)
            return html_response(site.html(page, data, charts and charts.value, query))

        return await answers.worker.run(render)

    return html


def _api(page: site.Page, answers: Answers) -> Page:
    async def api(request: Request) -> Response:
        name = _name(request)
        data = page.data((await answers.status()).value, name)
        return _not_found(name) if data is None else json_response(request, encode(data))

    return api


def html_response(text: str, code: int = 200) -> Response:
    """Return a page with the headers that protect it."""
    return HTMLResponse(text, code, headers={**SAFE, "Content-Security-Policy": POLICY})


def _not_found(name: str) -> Response:
    return JSONResponse({"error": f"not found: {name}"}, 404, headers=SAFE)


def _root(request: Request) -> str:
    """Return the relative URL of the start page. A proxy may add a prefix that the exporter does not know."""
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    return "../" * (path.count(b"/") - 1)


def _static(name: str, body: bytes) -> Page:
    # The URL contains a content hash, so a cached file is never outdated.
    content_type = _CONTENT_TYPES[name.rpartition(".")[2]]
    headers = {**SAFE, "Cache-Control": "max-age=86400", "Content-Type": content_type}

    async def static(_: Request) -> Response:
        return Response(body, headers=headers)

    return static
