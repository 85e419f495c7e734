"""The routes of the web server, requested without a server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from harness import statuses

from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.web.app import build
from celery_exporter.web.render import MetricsPage, PageSource
from celery_exporter.web.status_routes import Sources


def get(
    path: str, *, is_ready: bool = True, broker: str = "redis://localhost", **options: Any
) -> tuple[int, str]:
    """Return the status and the text of an answer."""

    async def request() -> list[dict[str, Any]]:
        page = MetricsPage(lambda: [PageSource(lambda: None, Exposition([]), SeriesTracker(0.0, 0.0))])
        app = build(page, lambda: is_ready, lambda: broker, **options)
        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
        messages: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        await app(scope, None, send)
        return messages

    start, *bodies = asyncio.run(request())
    return start["status"], b"".join(body["body"] for body in bodies).decode()


@pytest.mark.parametrize("path", ["/-/ready", "/health"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (200, "ready\n")),
        ({"is_ready": False}, (503, "not ready: no live event subscription on the broker\n")),
        ({"is_ready": False, "no_events": "SQS has no fanout"}, (503, "not ready: SQS has no fanout\n")),
    ],
    ids=["ready", "not ready", "no events"],
)
def test_readiness_is_that_of_the_event_subscription(path, options, expected):
    assert get(path, **options) == expected


@pytest.mark.parametrize("path", ["/-/healthy", "/healthcheck"])
def test_liveness_is_independent_of_the_broker(path):
    status, text = get(path, is_ready=False)
    assert (status, text.strip().lower()) == (200, "ok")


def test_without_a_status_there_is_a_landing_page_with_links():
    status, text = get("/", broker="redis://<script>")
    assert status == 200
    assert "redis://&lt;script&gt;" in text
    for path in ("/metrics", "/-/ready", "/health", "/-/healthy", "/runbooks"):
        assert f'<a href="{path.removeprefix("/")}">{path}</a>' in text
        assert get(path)[0] == 200
    assert get("/api/v1/status")[0] == 404


def test_with_sources_there_are_pages():
    sources = Sources(statuses.small_status)
    assert "<h1>Overview" in get("/", sources=sources)[1]
    assert get("/api/v1/status", sources=sources)[0] == 200


@pytest.mark.parametrize("path", ["/metrics/", "/nosuch", "/static/nosuch.js", "/static/../app.py"])
def test_unknown_path_is_not_found(path):
    assert get(path)[0] == 404
