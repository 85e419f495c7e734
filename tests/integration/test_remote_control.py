"""Remote control: a control_exchange of its own, answers in other serialisers, solo workers of old."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from conftest import Broker
from harness.exporter import Exporter, run_cli
from harness.waiting import eventually
from harness.workers import Worker

CRITICAL = "CRITICAL"
#: Who runs the tests may be root, for whom Celery refuses pickle otherwise.
AS_ROOT = {"C_FORCE_ROOT": "1"}


def findings(app: Exporter) -> dict[str, dict[str, str]]:
    found = json.loads(app.get("/api/v1/status").text)["findings"]
    return {each["check"]: each for each in found if each["severity"] != "ok"}


def pool_sizes(app: Exporter) -> dict[str, float]:
    found = app.samples().by("celery_worker_pool_size", "worker")
    return {worker: size for (worker,), size in found.items()}


def test_a_control_exchange_that_is_named(
    running: Callable[..., Exporter],
    worker: Callable[..., Worker],
    exporter: Callable[..., Exporter],
):
    app, _ = running(
        exporter("--control-exchange", "shop", "--enable-events"),
        worker(control_exchange="shop", events=False),
    )
    eventually(lambda: pool_sizes(app) == {"worker@test": 2}, 60)
    eventually(lambda: "remote-control" not in findings(app), 30)


def test_a_control_exchange_that_is_not_named_is_found_on_redis(
    running: Callable[..., Exporter], tmp_path: Path, redis_broker: Broker
):
    """kombu keeps there which queues are bound to it."""
    url = redis_broker.url
    redis.Redis.from_url(url).sadd("_kombu.binding.nobody.pidbox", "x")
    app, *_ = running(
        Exporter(tmp_path / "exporter", url),
        Worker(tmp_path / "shop", url, "shop@box", control_exchange="shop", concurrency=3),
        Worker(tmp_path / "plain", url, "plain@box"),
    )
    eventually(lambda: pool_sizes(app) == {"shop@box": 3, "plain@box": 2}, 60)
    assert "remote-control" not in findings(app)
    doctor = run_cli("doctor", "--json", "--seconds", "20", "--broker-url", url, deadline=90)
    found = {each["check"]: each for each in json.loads(doctor.stdout)["findings"]}
    assert found["remote-control"]["severity"] == "ok"


def test_on_rabbitmq_the_remedy_names_the_option(
    running: Callable[..., Exporter], tmp_path: Path, rabbit_broker: Broker
):
    url = rabbit_broker.url
    app, _ = running(
        Exporter(tmp_path / "exporter", url), Worker(tmp_path / "worker", url, control_exchange="shop")
    )
    found = eventually(lambda: findings(app).get("remote-control"), 60)
    assert "control_exchange" in found["remedy"]
    assert "--control-exchange" in found["remedy"]
    assert pool_sizes(app) == {}


def test_pickled_answers_are_one_finding(
    running: Callable[..., Exporter], worker: Callable[..., Worker], exporter: Callable[..., Exporter]
):
    pickles = {"task_serializer": "pickle", "accept_content": ["pickle", "json"]}
    app, _ = running(exporter(), worker(**pickles, environment=AS_ROOT))
    said = "workers reply in pickle, which is not accepted here"
    eventually(lambda: findings(app)["remote-control"]["message"].startswith(said), 60, ignore=(KeyError,))
    assert "--accept-content" in findings(app)["remote-control"]["remedy"]
    assert app.text().count("workers answer in pickle") == 1
    assert (pool_sizes(app), CRITICAL in app.text(), "Traceback" in app.text()) == ({}, False, False)
    app.stop_cleanly()
    app = running(exporter("--accept-content", "json,pickle"))
    eventually(lambda: pool_sizes(app) == {"worker@test": 2}, 60)


def test_workers_that_take_nothing_but_pickle(
    running: Callable[..., Exporter], worker: Callable[..., Worker], exporter: Callable[..., Exporter]
):
    """They log each question that they do not take, so they are asked more and more seldom."""
    pickles = {"task_serializer": "pickle", "accept_content": ["pickle"]}
    app, process = running(exporter(), worker(**pickles, environment=AS_ROOT))
    found = eventually(lambda: findings(app).get("remote-control"), 60)
    assert "accept_content" in found["remedy"]
    app.stop_cleanly()
    refused = process.text().count(CRITICAL)
    app = running(exporter("--accept-content", "pickle,json"))
    eventually(lambda: pool_sizes(app) == {"worker@test": 2}, 60)
    assert process.text().count(CRITICAL) == refused
    assert "remote-control" not in findings(app)


@pytest.mark.parametrize("exchange", ["shop", "my shop; touch /tmp/it"])
def test_the_doctor_takes_the_option(redis_broker: Broker, exchange: str):
    done = run_cli(
        "doctor", "--json", "--seconds", "8", "--broker-url", redis_broker.url,
        "--control-exchange", exchange, deadline=60,
    )  # fmt: skip
    found = {each["check"] for each in json.loads(done.stdout)["findings"]}
    assert {"subscription", "workers"} <= found
