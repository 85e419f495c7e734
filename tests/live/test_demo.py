"""The demo is a cluster that is well by the shipped alerts, or with problems one that is not."""

from __future__ import annotations

import json
import subprocess

import pytest
from alerts.rulebook import MIXIN, RULES
from harness.demo import JOB, at_work
from harness.exporter import Exporter
from harness.processes import need, side_by_side
from harness.servers import Prometheus
from harness.waiting import eventually

FAILURES = "job:celery_task_failures_per_finished:ratio_rate5m"
RETRIES = "job:celery_task_retries_per_started:ratio_rate5m"
#: So many tasks that the shares are near what they are meant to be: a few in a hundred, or more than ten.
ENOUGH = 600
DEADLINE = 120.0


@pytest.fixture(scope="module")
def thresholds() -> dict[str, float]:
    program = [need("jsonnet"), "-e", f'(import "{MIXIN}")._config']
    config = json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    return {FAILURES: config["failureRatio"], RETRIES: config["retryRatio"]}


@pytest.mark.parametrize("with_problems", [False, True])
def test_shares_of_failures_and_retries_are_as_they_are_meant(
    redis_server, tmp_path, thresholds, with_problems
):
    url = redis_server.clean()
    app = Exporter(tmp_path / "exporter", url)
    target = f"127.0.0.1:{app.port}"
    prometheus = Prometheus(tmp_path / "prometheus", target, job=JOB, rules=RULES)
    with side_by_side(app, prometheus):
        app.connected()
        with at_work(tmp_path, url, with_problems=with_problems):
            eventually(lambda: app.total("celery_tasks_total", state="SUCCESS") > ENOUGH, DEADLINE)

            def shares() -> dict[str, float]:
                found = {name: prometheus.query(name) for name in (FAILURES, RETRIES)}
                return {name: float(each[0]["value"][1]) for name, each in found.items() if each}

            def is_as_meant() -> bool:
                above = {name: share > thresholds[name] for name, share in shares().items()}
                return above == dict.fromkeys(thresholds, with_problems)

            eventually(is_as_meant, DEADLINE)
