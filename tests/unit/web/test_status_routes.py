"""The routes of the pages and their JSON, requested without a server."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import msgspec
import pytest
from harness import clusters, statuses
from harness.statuses import NOW, no_snapshot

from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.status.model import Status
from celery_exporter.web.app import build
from celery_exporter.web.pages import site
from celery_exporter.web.render import MetricsPage, PageSource
from celery_exporter.web.status_routes import Sources

CLUSTER = clusters.cluster(6, 3)


def get(
    path: str, query: str = "", shown: Status = CLUSTER, *, raw_path: str = "", **sources: Any
) -> tuple[int, str]:
    """Return the status and the text of an answer. `path` is decoded, as by an ASGI server."""

    async def request() -> list[dict[str, Any]]:
        page = MetricsPage(lambda: [PageSource(no_snapshot, Exposition([]), SeriesTracker(0.0, 0.0))])
        app = build(page, lambda: True, str, sources=Sources(lambda: shown, clusters.charts, **sources))
        messages: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": []}
        await app({**scope, "raw_path": (raw_path or path).encode()}, None, send)
        return messages

    start, *bodies = asyncio.run(request())
    return start["status"], b"".join(body["body"] for body in bodies).decode()


@pytest.mark.parametrize("path", [page.path for page in site.PAGES if not page.is_named])
def test_each_page_has_its_json(path):
    page = next(page for page in site.PAGES if page.path == path)
    code, text = get(path)
    assert (code, "<table" in text, 'id="charts"' in text) == (200, True, True)
    code, text = get(f"/{page.source}")
    content = json.loads(text)
    assert (code, content["version"], content["at"]) == (200, 1, CLUSTER.at)
    assert all(entry.table.name in content for entry in page.tables)


@pytest.mark.parametrize("kind", ["workers", "queues"])
@pytest.mark.parametrize(
    "name", ["ordinary", "a/b", "with space?&#", "ünï/\N{SNOWMAN}", *statuses.HOSTILE_NAMES]
)
def test_names_in_paths(kind, name):
    shown = statuses.status(workers=[statuses.worker(name)], queues=[statuses.queue(name, 1.0)])
    assert get(f"/{kind}/{name}", shown=shown, raw_path=f"/{kind}/x")[0] == 200
    code, text = get(f"/api/v1/{kind}/{name}", shown=shown)
    assert (code, json.loads(text)[kind.removesuffix("s")]["name"]) == (200, name)
    code, text = get(f"/{kind}/{name}2", shown=shown, raw_path=f"/{kind}/x")
    assert (code, "<img" in text) == (404, False)
    assert get(f"/api/v1/{kind}/{name}2", shown=shown)[0] == 404


def test_links_begin_at_the_start_page():
    name = CLUSTER.workers[0].name
    assert 'src="static/format.js' in get("/workers")[1]
    assert 'src="../static/format.js' in get(f"/workers/{name}")[1]
    shown = statuses.status(workers=[statuses.worker("a/b")])
    for raw_path, root in (("/workers/a%2Fb", "../"), ("/workers/a/b", "../../")):
        assert f'src="{root}static/format.js' in get("/workers/a/b", shown=shown, raw_path=raw_path)[1]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("page=overview", 200),
        ("page=overview&range=24h", 200),
        ("page=worker&name=w", 200),
        ("page=overview&range=2h", 404),
        ("page=nosuch", 404),
        ("page=worker", 404),
        ("", 404),
    ],
)
def test_charts(query, code):
    answer_code, text = get("/api/v1/charts", query)
    assert answer_code == code
    if code == 200:
        assert len(json.loads(text)["charts"][0]["lines"][0]["values"]) == 180


def test_an_unknown_range_shows_a_page_without_charts():
    code, text = get("/", "range=nosuch")
    assert (code, 'id="charts"' in text) == (200, False)


def test_json_decodes_to_the_same_status():
    original = statuses.full_status()
    decoded = msgspec.json.decode(msgspec.json.encode(original), type=Status)
    assert msgspec.json.encode(decoded) == msgspec.json.encode(original)
    assert decoded.at == NOW
    assert re.fullmatch(rb'\{"version":1,.*\}', msgspec.json.encode(original))


def test_pages_of_several_brokers_link_to_each_other():
    several: dict[str, Any] = {"broker": "shop", "brokers": lambda: ("shop", "billing")}
    text = get("/workers", **several)[1]
    assert "<summary>Broker <b>shop</b></summary>" in text
    assert '<a href="../shop/workers" aria-current=page>shop</a>' in text
    assert '<a href="../billing/workers">billing</a>' in text
    assert '<a href="../../">All brokers</a>' in text
    name = CLUSTER.workers[0].name
    assert '<a href="../../billing/workers">billing</a>' in get(f"/workers/{name}", **several)[1]
    assert "All brokers" not in get("/workers", broker="shop", brokers=lambda: ("shop",))[1]
