"""Native histograms, exemplars and --histogram-sample-rate, as Prometheus stores them."""

import math
import random
import statistics
import time
from collections.abc import Iterator

import pytest
from fuzz.batches import AWKWARD
from harness.broker_marks import on_redis
from harness.events import publish_events
from harness.processes import free_port, side_by_side
from harness.servers import PROMETHEUSES, Prometheus
from harness.waiting import eventually, until_equal

from celery_exporter.core.aggregates import is_sampled
from celery_exporter.doctor.prometheus_checks import run_prometheus_checks

METRIC = "celery_task_runtime_seconds"
RUNTIME = 'celery_task_runtime_seconds{task_name="made.up"}'


def task_events(runtimes: list[float], task_name: str = "made.up") -> list[dict]:
    """Return the events of tasks with these runtimes in seconds."""
    now = time.time()
    worker = {"hostname": "w@box", "pid": 1, "timestamp": now}
    client = {"hostname": "client@box", "pid": 2, "timestamp": now}
    name = {"name": task_name, "queue": "made", "retries": 0}
    return [
        event
        for number, runtime in enumerate(runtimes)
        for uuid in [f"task-{number}"]
        for event in (
            {**client, "type": "task-sent", "uuid": uuid, **name},
            {**worker, "type": "task-received", "uuid": uuid, **name},
            {**worker, "type": "task-started", "uuid": uuid},
            {**worker, "type": "task-succeeded", "uuid": uuid, "runtime": runtime},
        )
    ]


#: Values of --enable-feature.
FEATURES = ("", "native-histograms", "exemplar-storage")


@pytest.fixture(scope="module")
def port() -> int:
    """Return the port of each test's exporter."""
    return free_port()


@pytest.fixture(scope="module", params=PROMETHEUSES, ids=lambda server: server.__name__)
def by_features(request, tmp_path_factory, port) -> Iterator[dict[str, Prometheus]]:
    """Yield a Prometheus for each of `FEATURES`, for all tests: it scrapes only 5 s after its start."""
    servers = {
        features: request.param(tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{port}", features=features)
        for features in FEATURES
    }
    with side_by_side(*servers.values()):
        yield servers


@pytest.fixture
def scrape(by_features, port, running, exporter):
    """`scrape(features, *options)` starts an exporter; the Prometheus with these features has scraped it."""

    def start(features: str, *options: str):
        prometheus = by_features[features]
        app = running(exporter(*options, port=port)).connected()
        start_time = app.value("process_start_time_seconds")
        until_equal(lambda: value(prometheus, "process_start_time_seconds"), start_time, 15)
        return app, prometheus

    return start


def value(prometheus: Prometheus, query: str) -> float | None:
    samples = prometheus.query(query)
    return float(samples[0]["value"][1]) if samples else None


@on_redis
def test_quantiles_of_native_histograms_are_accurate_to_10_percent_from_1_ms_to_1_h(scrape, broker):
    _, prometheus = scrape("native-histograms", "--native-histograms")
    rng = random.Random(7)
    seconds = [math.exp(rng.uniform(math.log(0.001), math.log(3600))) for _ in range(4_000)]
    publish_events(broker.url, *task_events(seconds))
    until_equal(lambda: value(prometheus, f"histogram_count({RUNTIME})"), len(seconds), 30)
    cuts = statistics.quantiles(seconds, n=100)
    for percent in (1, 5, 25, 50, 75, 95, 99):
        quantile = value(prometheus, f"histogram_quantile({percent / 100}, {RUNTIME})")
        assert quantile == pytest.approx(cuts[percent - 1], rel=0.1), f"p{percent}"
    assert value(prometheus, f"histogram_sum({RUNTIME})") == pytest.approx(sum(seconds))


@on_redis
def test_counters_and_gauges_are_equal_in_protobuf_and_text(scrape, broker):
    app, prometheus = scrape("native-histograms", "--native-histograms", "--static-label", "site=münster")
    publish_events(broker.url, *task_events([0.5] * 3))
    until_equal(lambda: value(prometheus, 'celery_tasks_total{state="SUCCESS"}'), 3.0, 15)
    samples = app.samples()
    for name in (
        "celery_tasks_total",
        "celery_exporter_events_total",
        "celery_tasks_in_flight",
        "celery_worker_up",
    ):
        stored = prometheus.query(f'{name}{{site="münster"}}')
        assert sum(float(sample["value"][1]) for sample in stored) == samples.total(name), name
    assert prometheus.query("process_resident_memory_bytes") != []
    scraped = prometheus.query('{__name__=~"celery_.+",job="celery"}')
    assert len({sample["metric"]["__name__"] for sample in scraped}) > 20


@on_redis
def test_protobuf_has_classic_buckets_without_native_histograms(scrape, broker):
    _, prometheus = scrape("native-histograms")
    publish_events(broker.url, *task_events([0.5, 20.0]))
    buckets = 'celery_task_runtime_seconds_bucket{task_name="made.up",le="%s"}'
    # From protobuf, both versions of Prometheus store whole bounds as le="30.0".
    until_equal(lambda: value(prometheus, buckets % "30.0"), 2.0, 15)
    assert value(prometheus, buckets % "0.5") == 1.0


@on_redis
@pytest.mark.parametrize(("features", "severity"), [("", "warning"), ("native-histograms", "ok")])
def test_doctor_reports_whether_prometheus_stores_native_histograms(scrape, broker, features, severity):
    _, prometheus = scrape(features, "--native-histograms")
    publish_events(broker.url, *task_events([0.5]))
    stored = f'{{__name__=~"{METRIC}|{METRIC}_count"}}'
    eventually(lambda: prometheus.query(stored), 15)
    *_, finding = run_prometheus_checks(f"http://127.0.0.1:{prometheus.port}", "celery_", set(), [METRIC])
    assert (finding.check, finding.severity) == ("prometheus-native", severity)
    assert severity == "ok" or finding.remedy == "start Prometheus with --enable-feature=native-histograms"


@on_redis
def test_no_classic_histograms_leaves_one_series_per_histogram(scrape, broker):
    _, prometheus = scrape("native-histograms", "--native-histograms", "--no-classic-histograms")
    publish_events(broker.url, *task_events([0.5]))
    until_equal(lambda: value(prometheus, f"histogram_count({RUNTIME})"), 1.0, 15)
    assert value(prometheus, 'count({__name__=~"celery_task_runtime_seconds.*"})') == 1.0


@on_redis
def test_exemplars_have_the_id_of_a_task_in_each_bucket(scrape, broker):
    app, prometheus = scrape("exemplar-storage", "--exemplars")
    long_id = "x" * 200
    publish_events(broker.url, *task_events([0.5, 20.0]))
    publish_events(broker.url, *({**event, "uuid": long_id} for event in task_events([200.0])))
    until_equal(lambda: value(prometheus, 'celery_task_runtime_seconds_count{task_name="made.up"}'), 3.0, 15)

    def runtimes_by_task() -> dict[str, float]:
        exemplars = prometheus.exemplars('celery_task_runtime_seconds_bucket{task_name="made.up"}')
        return {item["labels"]["task_id"]: float(item["value"]) for item in exemplars}

    until_equal(runtimes_by_task, {"task-0": 0.5, "task-1": 20.0}, 15)
    assert " # {" not in app.get().text, "the text format has no exemplars"


@on_redis
def test_prometheus_accepts_the_page_for_any_task_id(scrape, broker):
    """Each id has its own bucket, since a bucket keeps its newest exemplar only."""
    characters = sorted({*AWKWARD, *map(chr, range(0x20)), "\x7f", "\x9b", "\u202e", "\ud7ff", "é"})
    bounds = ",".join(map(str, range(1, len(characters) + 2)))
    _, prometheus = scrape("exemplar-storage", "--exemplars", "--buckets", bounds)
    events = [
        event | {"uuid": f"a{character}b"}
        for index, character in enumerate(characters)
        for event in task_events([index + 0.5], "awkward")
    ]
    publish_events(broker.url, *events)
    count = 'celery_task_runtime_seconds_count{task_name="awkward"}'
    until_equal(lambda: value(prometheus, count), float(len(characters)), 30)
    exemplars = prometheus.exemplars('celery_task_runtime_seconds_bucket{task_name="awkward"}')
    ids = {item["labels"]["task_id"] for item in exemplars}
    assert {"a'b", "a{b", "a#b", "aéb"} <= ids
    assert not {"a\0b", "a\x1bb", "a\u202eb"} & ids


@on_redis
def test_sample_rate_applies_to_histograms_and_not_to_counters(running, exporter, broker):
    app = running(exporter("--histogram-sample-rate", "0.25")).connected()
    publish_events(broker.url, *task_events([1.0] * 400))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 400)
    chosen = sum(is_sampled(f"task-{number}", 0.25) for number in range(400))
    assert 70 < chosen < 130
    for name in ("runtime", "queue_wait", "prefetch_wait"):
        assert app.total(f"celery_task_{name}_seconds_count") == chosen, name
