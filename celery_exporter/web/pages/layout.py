"""The frame of all pages: head, navigation, and the time of what they show."""

from __future__ import annotations

import hashlib
from html import escape
from importlib import resources
from typing import Any

from msgspec import Struct

from celery_exporter.status.columns import KINDS, STANDBY, outage
from celery_exporter.status.finding import problems
from celery_exporter.web.pages.cells import moment
from celery_exporter.web.pages.problems import worst
from celery_exporter.web.pages.query import Query

#: Allows only the pages' own files: no inline script or style, no frame of another site.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: The scripts in the order in which they are loaded. They share one scope.
SCRIPTS = ("format.js", "tables.js", "charts.js", "copy.js", "refresh.js")
#: The static files of the pages. Their URLs contain a content hash.
STATIC = {
    name: (resources.files("celery_exporter.web") / "static" / name).read_bytes()
    for name in ("pages.css", *SCRIPTS, "icon.svg")
}
_DIGEST = hashlib.sha256(b"".join(STATIC.values())).hexdigest()[:12]
#: Title of a page in the navigation → its path.
NAVIGATION = {
    "Overview": "./",
    "Tasks": "tasks",
    "Workers": "workers",
    "Queues": "queues",
    "Failures": "failures",
}
#: Title of a page in the navigation → uid of the dashboard with the same subject; see dashboards/.
DASHBOARDS = {
    "Overview": "celery-overview",
    "Tasks": "celery-tasks",
    "Workers": "celery-workers",
    "Queues": "celery-overview",
    "Failures": "celery-tasks",
}

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{root}static/icon.svg?{digest}">
<link rel="stylesheet" href="{root}static/pages.css?{digest}">
{scripts}{reload}</head>
<body data-root="{root}" data-source="{source}"{single} data-page="{heading}">
<a class="skip" href="#main">Skip to the content</a>
<header>
<p class="brand"><b>celery-exporter</b> <small id="exporter">{version}</small></p>
{brokers}<nav aria-label="Pages" class="pages">{navigation}</nav>
</header>
<main id="main">
<div class="head">
<h1>{heading}</h1>
<p id="fresh">As of {at} <span class="zone">UTC</span>.<span id="why" role="status"></span>
<button type="button" id="pause" hidden>Pause</button></p>
</div>
<p id="outage"{outage_class}>{outage}</p>
{main}</main>
<p id="copied" role="status"></p>
<footer><nav aria-label="Other pages"><a href="{root}runbooks">Runbooks of the alerts</a>
<a href="{root}metrics">Metrics</a> <a href="{root}{source}">This page as JSON</a>
<a href="{root}-/ready">Readiness</a>{dashboard}</nav></footer>
</body>
</html>
"""
_BROKERS = """<details class="brokers">
<summary>Broker <b>{current}</b></summary>
<nav aria-label="Brokers"><a href="{root}../../">All brokers</a>
{links}</nav>
</details>
"""
#: Without the script, a page reloads itself, unless a person may be filling in its form.
_RELOAD = '<noscript><meta http-equiv="refresh" content="10"></noscript>\n'


class Place(Struct, frozen=True):
    """Where a page is: its heading, its title in the navigation, and URLs.

    `source` is that of its JSON, relative to the start page.
    """

    heading: str
    source: str
    navigation: str
    query: Query
    is_single: bool = False  # its JSON has single tasks only


def frame(data: Any, main: str, place: Place) -> str:
    """Return a page. `data` has the fields of `status.details.Detail`."""
    heading, root = place.heading, place.query.root
    return _FRAME.format(
        title=escape(title(data, heading)),
        root=root,
        digest=_DIGEST,
        scripts="".join(f'<script src="{root}static/{name}?{_DIGEST}" defer></script>\n' for name in SCRIPTS),
        source=escape(place.source),
        dashboard=_dashboard(place),
        reload="" if place.is_single else _RELOAD,
        single=" data-single" if place.is_single else "",
        version=escape(data.exporter_version),
        brokers=_brokers(place),
        navigation=_navigation(data, root, place.navigation),
        heading=escape(heading),
        at=moment(data.at, KINDS["clock"](data.at, 0.0)).replace("<time", '<time id="at"', 1),
        outage=escape(outage(data)),
        outage_class=' class="standby"' if outage(data) == STANDBY else "",
        main=main,
    )


def _brokers(place: Place) -> str:
    """Return links to the same page of the other brokers, if there are several."""
    query, path = place.query, NAVIGATION[place.navigation]
    if len(query.brokers) < 2:
        return ""
    current = {query.broker: " aria-current=page"}
    links = "".join(
        f'<a href="{query.root}../{escape(name)}/{path}"{current.get(name, "")}>{escape(name)}</a>\n'
        for name in query.brokers
    )
    return _BROKERS.format(current=escape(query.broker), links=links, root=query.root)


def _dashboard(place: Place) -> str:
    """Return the link to the dashboard of a page in Grafana, if there is one."""
    url = place.query.grafana and f"{place.query.grafana}/d/{DASHBOARDS[place.navigation]}"
    return f' <a href="{escape(url)}" rel="noreferrer">Dashboard in Grafana</a>' if url else ""


def title(data: Any, heading: str) -> str:
    """Return the title of the window: the state first, since tabs are narrow."""
    count = len(problems(data.findings))
    state = f"{count} problem{'' if count == 1 else 's'}" if data.broker.up else "broker down"
    return f"{state if count or not data.broker.up else 'ok'} · {heading} · celery-exporter"


def _navigation(data: Any, root: str, current: str) -> str:
    found = problems(data.findings)
    badge = f' <span id="problems" class="badge {worst(found)}">{len(found) or "ok"}</span>'
    return "".join(
        f'<a href="{root}{path}"{" aria-current=page" if name == current else ""}>{name}'
        f"{badge if name == 'Overview' else ''}</a>\n"
        for name, path in NAVIGATION.items()
    )
