"""Inspection of workers with another control_exchange, or with other serializers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from conftest import Broker
from harness.exporter import Exporter, run_cli
from harness.waiting import eventually, until_equal
from harness.workers import Worker

CRITICAL = "CRITICAL"
#: Celery accepts pickle for root only with this variable, and tests may run as root.
AS_ROOT = {"C_FORCE_ROOT": "1"}


def findings(app: Exporter) -> dict[str, dict[str, str]]:
    """Return the findings of the status API with problems, by check."""
    all_findings = json.loads(app.get("/api/v1/status").text)["findings"]
    return {finding["check"]: finding for finding in all_findings if finding["severity"] != "ok"}


def pool_sizes(app: Exporter) -> dict[str, float]:
    sizes = app.samples().by("celery_worker_pool_size", "worker")
    return {worker: size for (worker,), size in sizes.items()}


def test_workers_of_the_control_exchange_of_the_option_reply(
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


def test_redis_workers_of_any_control_exchange_answer_without_the_option(
    running: Callable[..., Exporter], tmp_path: Path, redis_broker: Broker
):
    """On Redis, kombu stores the queues that are bound to each exchange."""
    url = redis_broker.url
    redis.Redis.from_url(url).sadd("_kombu.binding.unused.pidbox", "x")
    app, *_ = running(
        Exporter(tmp_path / "exporter", url),
        Worker(tmp_path / "shop", url, "shop@box", control_exchange="shop", concurrency=3),
        Worker(tmp_path / "plain", url, "plain@box"),
    )
    eventually(lambda: pool_sizes(app) == {"shop@box": 3, "plain@box": 2}, 60)
    assert "remote-control" not in findings(app)
    doctor = run_cli("doctor", "--json", "--seconds", "20", "--broker-url", url, deadline=90)
    checks = {finding["check"]: finding for finding in json.loads(doctor.stdout)["findings"]}
    assert checks["remote-control"]["severity"] == "ok", doctor.stdout


def test_the_remedy_on_rabbitmq_names_the_control_exchange_option(
    running: Callable[..., Exporter], tmp_path: Path, rabbit_broker: Broker
):
    url = rabbit_broker.url
    app, _ = running(
        Exporter(tmp_path / "exporter", url), Worker(tmp_path / "worker", url, control_exchange="shop")
    )
    finding = eventually(lambda: findings(app).get("remote-control"), 60)
    assert "control_exchange" in finding["remedy"]
    assert "--control-exchange" in finding["remedy"]
    assert pool_sizes(app) == {}


def test_pickled_answers_are_one_finding_until_accept_content_lists_pickle(
    running: Callable[..., Exporter], worker: Callable[..., Worker], exporter: Callable[..., Exporter]
):
    pickles = {"task_serializer": "pickle", "accept_content": ["pickle", "json"]}
    app, _ = running(exporter(), worker(**pickles, environment=AS_ROOT))
    message = "workers reply in pickle, which is not accepted here"
    eventually(lambda: findings(app)["remote-control"]["message"].startswith(message), 60, ignore=(KeyError,))
    assert "--accept-content" in findings(app)["remote-control"]["remedy"]
    until_equal(lambda: app.text().count("workers reply in pickle"), 1, 30)
    assert (pool_sizes(app), CRITICAL in app.text(), "Traceback" in app.text()) == ({}, False, False)
    app.stop_cleanly()
    app = running(exporter("--accept-content", "json,pickle"))
    eventually(lambda: pool_sizes(app) == {"worker@test": 2}, 60)


def test_workers_that_accept_only_pickle_are_inspected_less_often(
    running: Callable[..., Exporter], worker: Callable[..., Worker], exporter: Callable[..., Exporter]
):
    """They log an error for each inspection that they refuse."""
    pickles = {"task_serializer": "pickle", "accept_content": ["pickle"]}
    app, pickle_worker = running(exporter(), worker(**pickles, environment=AS_ROOT))
    finding = eventually(lambda: findings(app).get("remote-control"), 60)
    assert "accept_content" in finding["remedy"]
    app.stop_cleanly()
    refusals = pickle_worker.text().count(CRITICAL)
    app = running(exporter("--accept-content", "pickle,json"))
    eventually(lambda: pool_sizes(app) == {"worker@test": 2}, 60)
    assert pickle_worker.text().count(CRITICAL) == refusals
    assert "remote-control" not in findings(app)


@pytest.mark.parametrize("exchange", ["shop", "my shop; touch /tmp/it"])
def test_doctor_accepts_the_control_exchange_option(redis_broker: Broker, exchange: str):
    command = run_cli(
        "doctor", "--json", "--seconds", "8", "--broker-url", redis_broker.url,
        "--control-exchange", exchange, deadline=60,
    )  # fmt: skip
    checks = {finding["check"] for finding in json.loads(command.stdout)["findings"]}
    assert {"subscription", "workers"} <= checks
