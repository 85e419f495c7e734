"""Prometheus scrapes the exporter of a real worker, and stores the counts of the exporter."""

from types import SimpleNamespace

import pytest
from harness.exporter import Exporter
from harness.processes import side_by_side
from harness.servers import PROMETHEUSES
from harness.waiting import eventually
from harness.workers import Worker
from harness.workers import client as make_client

JOB = "celery"


@pytest.fixture(scope="module", params=PROMETHEUSES, ids=lambda server: server.__name__)
def scene(request, redis_server, tmp_path_factory):
    """Return a Prometheus, an exporter and a client, for one worker."""
    url = redis_server.clean()
    folder = tmp_path_factory.mktemp("scene")
    exporter = Exporter(folder / "exporter", url)
    prometheus = request.param(folder / "prometheus", f"127.0.0.1:{exporter.port}", job=JOB)
    # Prometheus starts last, so that its first scrape succeeds.
    with side_by_side(exporter, Worker(folder / "worker", url, "celery@box")), prometheus:
        exporter.connected()
        eventually(lambda: prometheus.query(f'up{{job="{JOB}"}} == 1'), 15)
        eventually(lambda: prometheus.query("celery_workers_online == 1"), 15)
        with make_client(url) as client:
            yield SimpleNamespace(prometheus=prometheus, client=client, exporter=exporter)


def test_increase_counts_the_first_failure(scene):
    """The series of a new exception is exposed at 0 before it is exposed at 1."""
    failures = 'celery_task_failures_total{exception="InnerError"}'
    assert scene.prometheus.query(failures) == []
    scene.client.send_task("tasks.fail_with_inner_error", queue="celery")
    eventually(lambda: scene.prometheus.query(f"{failures} == 1"), 15)
    eventually(lambda: scene.prometheus.query(f"sum(increase({failures}[1m])) > 0.9"), 15)


def test_prometheus_stores_the_counts_of_the_exporter(scene):
    """No scrape fails."""
    (target,) = scene.prometheus.targets()
    assert (target["health"], target["lastError"]) == ("up", "")
    assert scene.prometheus.query(f'min_over_time(up{{job="{JOB}"}}[30s])')[0]["value"][1] == "1"
    for _ in range(7):
        scene.client.send_task("tasks.succeed", queue="celery")
    eventually(lambda: scene.exporter.total("celery_tasks_total", state="SUCCESS") == 7, 15)
    eventually(lambda: scene.prometheus.query('sum(celery_tasks_total{state="SUCCESS"}) == 7'), 15)


def test_prometheus_stores_what_tasks_measure(scene):
    """A summary, in protobuf for Prometheus 3 and as text for Prometheus 2."""
    for _ in range(3):
        scene.client.send_task("tasks.measure", ({"size": 2.5},), queue="celery")
    of_size = 'task_name="tasks.measure",field="size"'
    eventually(lambda: scene.prometheus.query(f"celery_task_measurement_sum{{{of_size}}} == 7.5"), 15)
    assert scene.prometheus.query(f"celery_task_measurement_count{{{of_size}}} == 3")
    eventually(
        lambda: scene.prometheus.query(f"increase(celery_task_measurement_count{{{of_size}}}[1m]) > 2"), 15
    )
