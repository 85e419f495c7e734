"""Native histograms, exemplars and the share that histograms observe, as a real Prometheus has them."""

import math
import random
import statistics
import time

import pytest
from fuzz.batches import AWKWARD
from harness.broker_marks import on_redis
from harness.events import publish_events
from harness.servers import PROMETHEUSES, Prometheus
from harness.waiting import eventually, until_equal

from celery_exporter.core.aggregates import is_sampled
from celery_exporter.doctor.prometheus_checks import run_prometheus_checks

NATIVE = "celery_task_runtime_seconds"
RUNTIME = 'celery_task_runtime_seconds{task_name="made.up"}'


def lives(seconds: list[float]) -> list[dict]:
    """Return the events of tasks that ran for so long each."""
    now = time.time()
    sender = {"hostname": "w@box", "pid": 1, "timestamp": now}
    client = {"hostname": "client@box", "pid": 2, "timestamp": now}
    name = {"name": "made.up", "queue": "made", "retries": 0}
    return [
        event
        for number, runtime in enumerate(seconds)
        for uuid in [f"task-{number}"]
        for event in (
            {**client, "type": "task-sent", "uuid": uuid, **name},
            {**sender, "type": "task-received", "uuid": uuid, **name},
            {**sender, "type": "task-started", "uuid": uuid},
            {**sender, "type": "task-succeeded", "uuid": uuid, "runtime": runtime},
        )
    ]


@pytest.fixture(params=PROMETHEUSES, ids=lambda each: each.__name__)
def watched(request, running, exporter, tmp_path):
    """Return a function that starts an exporter with options, and a Prometheus with features."""
    started = []

    def start(features: str, *options: str):
        app = running(exporter(*options)).connected()
        prometheus = request.param(tmp_path / "prometheus", f"127.0.0.1:{app.port}", features=features)
        started.append(prometheus)
        prometheus.start()
        prometheus.wait_ready()
        eventually(lambda: prometheus.query("celery_broker_up == 1"), 15)
        return app, prometheus

    yield start
    for prometheus in started:
        prometheus.kill()


def value(prometheus: Prometheus, query: str) -> float | None:
    found = prometheus.query(query)
    return float(found[0]["value"][1]) if found else None


@on_redis
def test_quantiles_of_native_histograms_are_within_10_percent_from_a_millisecond_to_an_hour(watched, broker):
    _, prometheus = watched("native-histograms", "--native-histograms")
    rng = random.Random(7)
    seconds = [math.exp(rng.uniform(math.log(0.001), math.log(3600))) for _ in range(4_000)]
    publish_events(broker.url, *lives(seconds))
    until_equal(lambda: value(prometheus, f"histogram_count({RUNTIME})"), len(seconds), 30)
    cuts = statistics.quantiles(seconds, n=100)
    for percent in (1, 5, 25, 50, 75, 95, 99):
        found = value(prometheus, f"histogram_quantile({percent / 100}, {RUNTIME})")
        assert found == pytest.approx(cuts[percent - 1], rel=0.1), f"p{percent}"
    assert value(prometheus, f"histogram_sum({RUNTIME})") == pytest.approx(sum(seconds))


@on_redis
def test_counters_and_gauges_are_the_same_in_protobuf(watched, broker):
    app, prometheus = watched("native-histograms", "--native-histograms", "--static-label", "site=münster")
    publish_events(broker.url, *lives([0.5] * 3))
    until_equal(lambda: value(prometheus, 'celery_tasks_total{state="SUCCESS"}'), 3.0, 15)
    shown = app.samples()
    for name in (
        "celery_tasks_total",
        "celery_exporter_events_total",
        "celery_tasks_in_flight",
        "celery_worker_up",
    ):
        found = prometheus.query(f'{name}{{site="münster"}}')
        assert sum(float(each["value"][1]) for each in found) == shown.total(name), name
    assert prometheus.query("process_resident_memory_bytes") != []
    scraped = prometheus.query('{__name__=~"celery_.+",job="celery"}')
    assert len({each["metric"]["__name__"] for each in scraped}) > 20


@on_redis
def test_a_prometheus_that_asks_for_protobuf_gets_the_buckets_where_there_is_nothing_native(watched, broker):
    _, prometheus = watched("native-histograms")
    publish_events(broker.url, *lives([0.5, 20.0]))
    buckets = 'celery_task_runtime_seconds_bucket{task_name="made.up",le="%s"}'
    # Either Prometheus writes whole bounds as le="30.0" when it reads protobuf.
    until_equal(lambda: value(prometheus, buckets % "30.0"), 2.0, 15)
    assert value(prometheus, buckets % "0.5") == 1.0


@on_redis
@pytest.mark.parametrize(("features", "level"), [("", "warning"), ("native-histograms", "ok")])
def test_doctor_says_whether_prometheus_stores_native_histograms(watched, broker, features, level):
    _, prometheus = watched(features, "--native-histograms")
    publish_events(broker.url, *lives([0.5]))
    stored = f'{{__name__=~"{NATIVE}|{NATIVE}_count"}}'
    eventually(lambda: prometheus.query(stored), 15)
    *_, found = run_prometheus_checks(f"http://127.0.0.1:{prometheus.port}", "celery_", set(), [NATIVE])
    assert (found.check, found.severity) == ("prometheus-native", level)
    assert level == "ok" or found.remedy == "start Prometheus with --enable-feature=native-histograms"


@on_redis
def test_without_classic_histograms_there_is_one_series_for_each(watched, broker):
    _, prometheus = watched("native-histograms", "--native-histograms", "--no-classic-histograms")
    publish_events(broker.url, *lives([0.5]))
    until_equal(lambda: value(prometheus, f"histogram_count({RUNTIME})"), 1.0, 15)
    assert value(prometheus, 'count({__name__=~"celery_task_runtime_seconds.*"})') == 1.0


@on_redis
def test_exemplars_name_a_task_of_each_bucket(watched, broker):
    app, prometheus = watched("exemplar-storage", "--exemplars")
    long = "x" * 200
    publish_events(broker.url, *lives([0.5, 20.0]))
    publish_events(broker.url, *({**event, "uuid": long} for event in lives([200.0])))
    until_equal(lambda: value(prometheus, 'celery_task_runtime_seconds_count{task_name="made.up"}'), 3.0, 15)

    def named() -> dict[str, float]:
        exemplars = prometheus.exemplars('celery_task_runtime_seconds_bucket{task_name="made.up"}')
        return {each["labels"]["task_id"]: float(each["value"]) for each in exemplars}

    until_equal(named, {"task-0": 0.5, "task-1": 20.0}, 15)
    assert " # {" not in app.get().text, "the text format has none"


@on_redis
def test_no_exemplar_makes_prometheus_refuse_the_page(watched, broker):
    """An id is what an application says. Each has a bucket of its own, for the newest one is kept of each."""
    characters = sorted({*AWKWARD, *map(chr, range(0x20)), "\x7f", "\x9b", "\u202e", "\ud7ff", "é"})
    bounds = ",".join(map(str, range(1, len(characters) + 2)))
    _, prometheus = watched("exemplar-storage", "--exemplars", "--buckets", bounds)
    told = [
        event | {"uuid": f"a{character}b"}
        for index, character in enumerate(characters)
        for event in lives([index + 0.5])
    ]
    publish_events(broker.url, *told)
    count = 'celery_task_runtime_seconds_count{task_name="made.up"}'
    until_equal(lambda: value(prometheus, count), float(len(characters)), 30)
    found = prometheus.exemplars('celery_task_runtime_seconds_bucket{task_name="made.up"}')
    named = {each["labels"]["task_id"] for each in found}
    assert {"a'b", "a{b", "a#b", "aéb"} <= named
    assert not {"a\0b", "a\x1bb", "a\u202eb"} & named


@on_redis
def test_histograms_observe_a_share_of_the_tasks_and_counters_all(running, exporter, broker):
    app = running(exporter("--histogram-sample-rate", "0.25")).connected()
    publish_events(broker.url, *lives([1.0] * 400))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 400)
    chosen = sum(is_sampled(f"task-{number}", 0.25) for number in range(400))
    assert 70 < chosen < 130
    for name in ("runtime", "queue_wait", "prefetch_wait"):
        assert app.total(f"celery_task_{name}_seconds_count") == chosen, name
