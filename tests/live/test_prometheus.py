"""A real Prometheus scrapes the exporter while real workers run: what people have on their walls works."""

import math
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import yaml
from harness.exporter import Exporter
from harness.processes import ROOT, TESTS
from harness.servers import Prometheus
from harness.waiting import eventually
from harness.workers import Worker
from harness.workers import client as make_client

CONTRACT = TESTS / "contracts" / "queries.yaml"
SHARED = ROOT.parent / "shared" / "contracts" / "queries.yaml"
JOB = "celery"
NATIVE = next(entry for entry in yaml.safe_load(CONTRACT.read_text()) if entry["profile"] == "native")


def test_our_copy_of_the_contract_is_the_shared_one():
    if not SHARED.exists():
        pytest.skip("this checkout has no ../shared")
    assert CONTRACT.read_text() == SHARED.read_text()


@pytest.fixture(scope="module")
def scene(redis_server, tmp_path_factory):
    """Return a Prometheus, and a client, of a cluster with two workers and a backlog."""
    url = redis_server.clean()
    folder = tmp_path_factory.mktemp("scene")
    with ExitStack() as stack:
        exporter = Exporter(folder / "exporter", url, "-Q", "backlog", "--task-labels", "queue_name,worker")
        stack.enter_context(exporter).connected()
        prometheus = Prometheus(folder / "prometheus", f"127.0.0.1:{exporter.port}", job=JOB)
        workers = [Worker(folder / name, url, f"{name}@box", queues=name) for name in ("celery", "reports")]
        for process in (prometheus, *workers):
            stack.callback(process.kill)
            process.start()
        for process in (prometheus, *workers):
            process.wait_ready()
        client = stack.enter_context(make_client(url))
        eventually(lambda: prometheus.query(f'up{{job="{JOB}"}} == 1'), 15)
        eventually(lambda: prometheus.query("celery_workers_online == 2"), 15)
        yield SimpleNamespace(prometheus=prometheus, client=client, exporter=exporter)


def work(client):
    """Send a little of everything the demo has: successes, failures, retries, a backlog."""
    for queue in ("celery", "reports"):
        for task in ("tasks.succeed", "tasks.succeed", "tasks.fail_with_value_error", "tasks.retry_once"):
            client.send_task(task, queue=queue)
    client.send_task("tasks.succeed", queue="backlog")


@pytest.mark.parametrize("query", NATIVE["queries"] + NATIVE["queries_with_worker_label"])
def test_a_query_of_the_contract_returns_samples(scene, query):
    """At least one sample that is a number."""

    def numbers():
        work(scene.client)
        found = scene.prometheus.query(query.replace("$job", JOB))
        return [sample for sample in found if not math.isnan(float(sample["value"][1]))]

    eventually(numbers, 30, every=0.5, what=query)


def test_the_first_failure_is_seen_by_increase(scene):
    """An exception that nobody could foresee: Prometheus sees its series at 0 before it sees 1."""
    failures = 'celery_task_failures_total{exception="InnerError"}'
    assert scene.prometheus.query(failures) == []
    scene.client.send_task("tasks.fail_with_inner_error", queue="celery")
    eventually(lambda: scene.prometheus.query(f"{failures} == 1"), 15)
    eventually(lambda: scene.prometheus.query(f"sum(increase({failures}[1m])) > 0.9"), 15)


def test_what_prometheus_holds_is_what_the_exporter_says(scene):
    """No scrape failed, and the sums arrive as they were."""
    (target,) = scene.prometheus.targets()
    assert (target["health"], target["lastError"]) == ("up", "")
    assert scene.prometheus.query(f'min_over_time(up{{job="{JOB}"}}[30s])')[0]["value"][1] == "1"

    def same():
        (sample,) = scene.prometheus.query('sum(celery_tasks_total{state="SUCCESS"})')
        return float(sample["value"][1]) == scene.exporter.total("celery_tasks_total", state="SUCCESS") > 0

    eventually(same, 15)
