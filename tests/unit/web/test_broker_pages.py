"""Which application answers which path, requested without a server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricFamily
from celery_exporter.web.app import build
from celery_exporter.web.broker_pages import BrokerPages, ReloadError, broker_pages, paths
from celery_exporter.web.render import MetricsPage, PageSource, Renderers


def source(name: str, **labels: str) -> PageSource:
    """Return the metrics of one broker: its name as a label value."""
    row = MetricFamily("celery_broker", "gauge", "Broker.", ("name",), lambda _: [((name,), 1)])
    return PageSource(
        lambda: None,
        Exposition([row], "celery_", {}, {"broker": name} if labels else {}),
        SeriesTracker(0.0, 0.0),
    )


def get(
    path: str, brokers: dict[str, bool], *, method: str = "GET", query: str = "", **options: Any
) -> tuple[int, dict[str, str], str]:
    """Return the status, the headers and the text of an answer. `brokers` says which ones are ready."""

    async def request() -> list[dict[str, Any]]:
        renderers = Renderers()
        known = {
            name: BrokerPages(
                build(
                    MetricsPage(lambda name=name: [source(name)], renderers),
                    lambda is_ready=is_ready: is_ready,
                    lambda name=name: f"redis://{name}",
                ),
                lambda is_ready=is_ready: is_ready,
                lambda name=name: f"redis://{name}",
            )
            for name, is_ready in brokers.items()
        }
        metrics = MetricsPage(lambda: [source(name, broker=name) for name in brokers], renderers)
        app = broker_pages(lambda: known, metrics, **options)
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
        scope |= {"headers": [(b"host", b"exporter:9808")], "raw_path": path.encode(), "scheme": "http"}
        messages: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        await app(scope, None, send)
        return messages

    start, *bodies = asyncio.run(request())
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, b"".join(body.get("body", b"") for body in bodies).decode()


TWO = {"shop": True, "billing": False}


def samples(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("celery_")]


def test_metrics_are_those_of_all_brokers_with_their_label():
    _, _, text = get("/metrics", TWO)
    assert samples(text) == [
        'celery_broker{broker="shop",name="shop"} 1.0',
        'celery_broker{broker="billing",name="billing"} 1.0',
    ]
    assert text.count("# TYPE celery_broker gauge") == text.count("# TYPE process_cpu_seconds_total") == 1


@pytest.mark.parametrize(
    ("path", "query"), [("/metrics", "broker=billing"), ("/brokers/billing/metrics", "")]
)
def test_metrics_of_one_broker_have_no_label(path, query):
    assert samples(get(path, TWO, query=query)[2]) == ['celery_broker{name="billing"} 1.0']


def test_the_only_broker_has_its_pages_at_the_root():
    assert "redis://shop" in get("/", {"shop": True})[2]
    assert samples(get("/metrics", {"shop": True})[2]) == ['celery_broker{broker="shop",name="shop"} 1.0']
    assert samples(get("/metrics", {"": True})[2]) == ['celery_broker{name=""} 1.0']
    assert get("/-/ready", {"": False})[0] == 503


def test_several_brokers_are_listed_with_links():
    status, _, text = get("/", TWO)
    assert status == 200
    assert (
        '<a href="brokers/shop/">shop</a>: <code>redis://shop</code>. The event subscription is open.' in text
    )
    assert '<a href="brokers/billing/">billing</a>' in text
    assert "redis://billing" in get("/brokers/billing/", TWO)[2]
    assert json.loads(get("/api/v1/brokers", TWO)[2])["brokers"] == [
        {"name": "shop", "url": "redis://shop", "is_ready": True, "path": "/brokers/shop/"},
        {"name": "billing", "url": "redis://billing", "is_ready": False, "path": "/brokers/billing/"},
    ]


def test_links_of_a_broker_are_below_it():
    status, headers, _ = get("/brokers/shop", TWO)
    assert (status, headers["location"]) == (308, "shop/")


@pytest.mark.parametrize(
    ("path", "query"),
    [("/brokers/x/", ""), ("/brokers/x", ""), ("/brokers/", ""), ("/metrics", "broker=x"), ("/tasks", "")],
)
def test_what_is_of_no_broker_names_them(path, query):
    status, _, text = get(path, TWO, query=query)
    assert status == 404
    assert json.loads(text)["error"] == "not found; the brokers are shop, billing, each below /brokers/NAME/"


@pytest.mark.parametrize(
    ("brokers", "status"), [(TWO, 200), ({"a": False, "b": False}, 503), ({"a": True, "b": True}, 200)]
)
def test_ready_while_any_broker_is(brokers, status):
    """Otherwise an orchestrator would hide the others."""
    assert get("/-/ready", brokers)[0] == get("/health", brokers)[0] == status


def test_readiness_of_one_broker():
    assert get("/-/ready", TWO, query="broker=billing")[0] == get("/brokers/billing/health", TWO)[0] == 503
    assert get("/-/ready", TWO)[2] == "shop: ready\nbilling: not ready\n"


@pytest.mark.parametrize("path", ["/-/healthy", "/healthcheck", "/runbooks"])
def test_what_is_the_same_for_all(path):
    assert get(path, TWO)[0] == 200


def test_prometheus_discovers_a_job_for_each_broker():
    common = {"__scheme__": "http", "__metrics_path__": "/metrics"}
    assert json.loads(get("/sd", TWO)[2]) == [
        {"targets": ["exporter:9808"], "labels": {**common, "__param_broker": name, "job": name}}
        for name in TWO
    ]
    assert json.loads(get("/sd", {"": True})[2]) == [{"targets": ["exporter:9808"], "labels": common}]


def test_a_reload_is_requested_by_post():
    calls: list[int] = []
    reload = lambda: calls.append(1)  # noqa: E731
    assert get("/-/reload", TWO, reload=reload)[0] == 405
    assert get("/-/reload", TWO, method="POST", reload=reload)[::2] == (200, "reloaded\n")
    assert calls == [1]


def test_a_reload_is_refused_without_the_option():
    status, _, text = get("/-/reload", TWO, method="POST")
    assert status == 403
    assert "--web.enable-lifecycle" in text


def test_a_reload_that_failed_says_why():
    def reload() -> None:
        raise ReloadError("no such key")

    assert get("/-/reload", TWO, method="POST", reload=reload)[::2] == (500, "no such key\n")


def test_other_methods_are_refused():
    assert get("/metrics", TWO, method="POST")[0] == 404
    assert get("/brokers/shop/metrics", TWO, method="POST")[0] == 405


def test_known_paths_are_those_of_a_broker_and_of_all():
    pages = BrokerPages(build(MetricsPage(list), lambda: True, str), lambda: True, str)
    assert {"/metrics", "/sd", "/runbooks", "/-/ready"} <= paths(pages)
