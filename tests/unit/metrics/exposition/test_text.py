"""The text formats, compared byte by byte with the encoders of prometheus_client."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_text

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.histogram import Histogram
from celery_exporter.core.limits import Limits
from celery_exporter.core.measurements import Summary
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import (
    MAX_SPARE_SERIES,
    OPENMETRICS,
    SAMPLES_PER_CHUNK,
    TEXT,
    Exposition,
    Part,
)
from celery_exporter.metrics.model import MetricFamily, MetricOptions
from celery_exporter.metrics.registry import select
from unit.core.cluster_driver import (
    ClusterDriver,
    failed,
    heartbeat,
    received,
    sent,
    started,
    succeeded,
    task_event,
)

AWKWARD = ["plain", 'quo"te', "back\\slash", "new\nline", "{brace}", "ünïcode ☃", "%s %d", ""]
BOUNDS = (0.005, 0.1, 1.0, 30.0)
SUMMARIES = [(0, 0.0), (1, 0.25), (999_999, 5.0), (10**6, 1e21), (2**53, 1e100)]


def row(name, type_, samples, labels=("task_name",), **more) -> MetricFamily:
    return MetricFamily(
        name, type_, f'Help "of" a \\ {type_}\nin two lines.', labels, lambda _: samples, **more
    )


def histogram(*values):
    observed = Histogram([0] * (len(BOUNDS) + 1))
    for value in values:
        observed.observe(BOUNDS, value)
    return observed


ROWS = [
    row("celery_sent_total", "counter", [((text,), index * 1e6) for index, text in enumerate(AWKWARD)]),
    row(
        "celery_values",
        "gauge",
        [
            ((str(value),), value)
            for value in (
                0,
                1,
                True,
                0.1,
                1e-9,
                -2.5,
                1e21,
                2**53,
                999_999,
                10**6,
                -999_999,
                -(10**6),
                10**30,
            )
        ],
    ),
    row("celery_odd", "gauge", [(("a",), math.nan), (("b",), math.inf), (("c",), -math.inf)]),
    row("celery_single", "gauge", [((), 3)], ()),
    row("celery_empty", "gauge", []),
    row("celery_two", "gauge", [(("z", "a"), 1)], ("zebra", "ant")),
    row(
        "celery_wait_seconds",
        "histogram",
        [((text,), histogram(0.001, 0.1, 0.11, 31, 1e6)) for text in AWKWARD],
        bounds=lambda _: BOUNDS,
    ),
    row(
        "celery_measurement",
        "summary",
        [((text, str(count)), Summary(count, total)) for text in AWKWARD for count, total in SUMMARIES],
        ("task_name", "field"),
    ),
    row(
        "celery_busy_seconds",
        "histogram",
        [
            ((text,), Histogram([0, 999_999, most, 0, 0], 1e9))
            for text, most in (("%d.0", 0), ("more", 1), ("much", 2**53))
        ],
        bounds=lambda _: BOUNDS,
    ),
]


def oracle(rows, *, openmetrics=False, clashing=()):
    """Return the same families as prometheus_client writes them."""
    families = []
    for row in rows:
        name = row.name
        samples = list(row.samples(None))
        if row.type == "histogram":
            family = HistogramMetricFamily(name, row.help, labels=row.labels)
            for values, value in samples:
                cumulative = [sum(value.counts[: index + 1]) for index in range(len(value.counts))]
                bounds = ["0.005", "0.1", "1", "30", "+Inf"]  # as Go writes them
                family.add_metric(values, list(zip(bounds, cumulative, strict=True)), value.total)
        elif row.type == "summary":
            family = SummaryMetricFamily(name, row.help, labels=row.labels)
            for values, value in samples:
                family.add_metric(values, value.count, value.total)
        else:
            kind = CounterMetricFamily if row.type == "counter" else GaugeMetricFamily
            kind = UnknownMetricFamily if openmetrics and name in clashing else kind
            family = kind(name, row.help, labels=row.labels)
            for values, value in samples:
                family.add_metric(values, value)
        families.append(family)
    registry = SimpleNamespace(collect=lambda: families)
    return openmetrics_exposition.generate_latest(registry) if openmetrics else generate_latest(registry)


def without_process(text: bytes) -> bytes:
    lines = text.decode().splitlines()
    kept = [
        line
        for line in lines
        if not line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith("process_")
    ]
    return ("\n".join(kept) + "\n").encode()


@pytest.mark.parametrize("family", ROWS, ids=lambda family: family.name)
def test_family_equals_that_of_prometheus_client(family):
    assert without_process(Exposition([family]).render(None)) == oracle([family])
    assert without_process(Exposition([family]).render(None, OPENMETRICS)) == oracle(
        [family], openmetrics=True
    )


def test_families_keep_their_order():
    assert without_process(Exposition(ROWS).render(None)) == oracle(ROWS)


def test_clashing_counter_keeps_its_sample_name_in_openmetrics():
    rows = [row("celery_tasks_total", "counter", [(("a",), 1)]), row("celery_tasks", "gauge", [(("a",), 2)])]
    text = Exposition(rows).render(None, OPENMETRICS)
    assert without_process(text) == oracle(rows, openmetrics=True, clashing={"celery_tasks_total"})
    families = {family.name: family.type for family in text_string_to_metric_families(text.decode())}
    assert (families["celery_tasks_total"], families["celery_tasks"]) == ("unknown", "gauge")


def test_static_labels_are_on_every_sample_in_sorted_order():
    rows = [row("celery_a", "gauge", [(("x",), 1)]), ROWS[-1]]
    text = Exposition(rows, static_labels={"env": 'p"ro{d', "zone": "z"}).render(None).decode()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert 'celery_a{env="p\\"ro{d",task_name="x",zone="z"} 1.0' in samples
    assert all('env="p\\"ro{d"' in line and 'zone="z"' in line for line in samples)


def test_prefix_replaces_only_the_beginning_of_metric_names():
    text = Exposition([row("celery_a", "gauge", [(("celery_x",), 1)])], prefix="jobs_").render(None).decode()
    assert 'jobs_a{task_name="celery_x"} 1.0' in text


def test_samples_with_equal_labels_are_merged_by_the_row():
    samples = [(("a",), 3.0), (("b",), 1.0), (("a",), 2.0)]
    text = Exposition([row("celery_a", "gauge", samples, merge=min)]).render(None).decode()
    assert 'celery_a{task_name="a"} 2.0\ncelery_a{task_name="b"} 1.0\n' in text


def test_page_has_process_metrics_and_openmetrics_ends_with_eof():
    text = Exposition([]).render(None, OPENMETRICS).decode()
    assert "# TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total " in text
    assert text.endswith("\n# EOF\n")
    assert "# TYPE process_cpu_seconds_total counter" in Exposition([]).render(None).decode()


def moment(at):
    return SimpleNamespace(exporter=SimpleNamespace(at=at, started=0.0), aggregates={})


class Server:
    """A Prometheus server that scrapes each second."""

    def __init__(self, exposition, snapshot=None):
        self._exposition = exposition
        self._snapshot = snapshot or (lambda: moment(self._now))
        self._now = 0.0
        self._tracker = SeriesTracker(0.0, 0.0)

    def scrape(self):
        self._now += 1.0
        session = self._tracker.begin("one", self._now)
        page = self._exposition.render(self._snapshot(), session=session)
        self._tracker.end("one", session, self._now)
        return without_process(page).decode().splitlines()


def test_invariant_6_each_new_counting_series_is_exposed_at_0_once():
    samples = []
    exposition = Exposition(
        [row("celery_sent_total", "counter", samples), row("celery_now", "gauge", samples)]
    )
    server = Server(exposition)

    def shown():
        return [line.partition("} ")[2] for line in server.scrape() if not line.startswith("#")]

    shown(), shown(), shown()
    samples.append((("a",), 5))
    assert b" 0.0\n" not in exposition.render(moment(1.0)), "without a scraper, the count is there at once"
    assert shown() == ["0.0", "5.0"]
    samples.append((("b",), 1))
    assert shown() == ["5.0", "0.0", "5.0", "1.0"]
    assert shown() == ["5.0", "1.0", "5.0", "1.0"]


def test_invariant_6_external_baseline_is_exposed_without_a_0():
    rows = [row("celery_done_total", "counter", [(("a",), 1_000_000)], has_external_baseline=True)]
    assert Server(Exposition(rows)).scrape()[-1].endswith(" 1e+06")
    assert native_row("celery_worker_processed_tasks_total").has_external_baseline


def native_row(name):
    return next(row for row in select(("native",), MetricOptions()).rows if row.name == name)


def test_invariant_6_series_that_inherits_counts_is_exposed_without_a_0():
    """The sums of a removed worker move to a label set without worker; that is no increase."""
    labels = ("queue_name", "worker")
    driver = ClusterDriver(Limits(purge_offline_worker_metrics=60), labels=labels)
    rows = select(("native",), MetricOptions(task_labels=labels)).rows
    failures = [row for row in rows if row.name.startswith("celery_task_failures")]
    server = Server(Exposition(failures), driver.shown)

    def shown():
        return {line.partition("worker=")[2] for line in server.scrape() if not line.startswith("#")}

    shown(), shown(), shown()
    driver.apply(heartbeat(), received(), started(), failed())
    driver.wait(3)
    assert shown() == {'"w@h"} 0.0'}
    assert shown() == {'"w@h"} 1.0'}
    driver.wait(130)
    assert shown() == {'""} 1.0'}


def test_invariant_6_new_histogram_has_all_its_lines_at_0():
    samples = []
    exposition = Exposition([row("celery_wait_seconds", "histogram", samples, bounds=lambda _: BOUNDS)])
    server = Server(exposition)
    server.scrape(), server.scrape(), server.scrape()
    samples.append((("a",), histogram(0.5, 3)))
    assert [line.rpartition(" ")[2] for line in server.scrape()[2:]] == ["0.0"] * 7
    assert server.scrape() == without_process(exposition.render(moment(1.0))).decode().splitlines()


def test_invariant_6_new_summary_is_exposed_at_0_once():
    driver = ClusterDriver(Limits(max_series=2))
    server = Server(Exposition([native_row("celery_task_measurement")]), driver.shown)

    def shown():
        return [line.rpartition("} ")[2] for line in server.scrape() if not line.startswith("#")]

    shown(), shown(), shown()
    driver.apply(task_event("measured", name="add", fields={"size": 2.5}))
    assert [shown(), shown()] == [["0.0", "0.0"], ["1.0", "2.5"]]
    driver.apply(task_event("measured", name="add", fields={"size": 1, "wide": 5, "high": 7}))
    assert shown() == ["2.0", "3.5", "0.0", "0.0", "1.0", "7.0"], "other has counts of earlier series"


def test_cache_drops_series_that_are_gone():
    samples = [((str(number),), 1) for number in range(5 * MAX_SPARE_SERIES)]
    exposition = Exposition([row("celery_sent_total", "counter", samples)])
    exposition.render(moment(1.0))
    (family,) = exposition.families
    assert len(family._series) == 5 * MAX_SPARE_SERIES
    del samples[1:]
    exposition.render(moment(1.0))
    assert len(family._series) <= 2 + MAX_SPARE_SERIES


def test_page_is_joined_from_bounded_chunks():
    samples = [((str(number),), 1) for number in range(3 * SAMPLES_PER_CHUNK)]
    exposition = Exposition([row("celery_sent_total", "counter", samples)])
    chunks = list(exposition.texts([Part(exposition, moment(1.0))], openmetrics=False))
    assert max(chunk.count(b"\n") for chunk in chunks) == SAMPLES_PER_CHUNK <= 5_000


def test_exemplars_are_on_their_buckets_and_only_in_openmetrics():
    observed = Histogram([0] * (len(BOUNDS) + 1), exemplars={})
    for value, uuid in ((0.001, "a-uuid"), (2.5, "back\\slash"), (1e9, "%d")):
        observed.observe(BOUNDS, value, uuid)
    wait = row("celery_wait_seconds", "histogram", [(("%d",), observed)], bounds=lambda _: BOUNDS)
    (family, *_) = text_string_to_metric_families(
        Exposition([wait]).render(moment(1.0), OPENMETRICS).decode()
    )
    exemplars = {
        (sample.labels["le"], sample.exemplar.labels["task_id"], sample.exemplar.value)
        for sample in family.samples
        if sample.exemplar
    }
    assert exemplars == {("0.005", "a-uuid", 0.001), ("30", "back\\slash", 2.5), ("+Inf", "%d", 1e9)}
    assert b" # {" not in Exposition([wait]).render(moment(1.0), TEXT)


def test_an_exemplar_has_the_id_of_the_trace_beside_that_of_the_task():
    observed = Histogram([0] * (len(BOUNDS) + 1), exemplars={})
    observed.observe(BOUNDS, 2.5, "u1", "8c9973a6-c3dc-4aff-a799-b6cff97bdfd0")
    wait = row("celery_wait_seconds", "histogram", [(("x",), observed)], bounds=lambda _: BOUNDS)
    text = Exposition([wait]).render(moment(1.0), OPENMETRICS).decode()
    assert ' # {task_id="u1",trace_id="8c9973a6c3dc4affa799b6cff97bdfd0"} 2.5' in text
    exemplars = [
        sample.exemplar for family in text_string_to_metric_families(text) for sample in family.samples
    ]
    (labels,) = (exemplar.labels for exemplar in exemplars if exemplar)
    assert labels == {"task_id": "u1", "trace_id": "8c9973a6c3dc4affa799b6cff97bdfd0"}


def test_invalid_character_is_replaced_and_the_page_stays_readable():
    row = MetricFamily("celery_odd", "gauge", "Odd.", ("name",), lambda _: [(("a\ud800b",), 1), (("c",), 2)])
    assert Exposition([row]).render(ClusterDriver().shown()).decode().splitlines()[2:4] == [
        'celery_odd{name="a?b"} 1.0',
        'celery_odd{name="c"} 2.0',
    ]


def test_invariant_8_buckets_are_those_that_were_counted_in():
    """The exposed bounds are those of the aggregates, with the counts below them."""
    driver = ClusterDriver(aggregates=Aggregates((0.5, 30.0), (1.0, 7.5, 60.0)))
    for number, seconds in enumerate((0.1, 0.5, 20.0, 31.0)):
        uuid = f"u{number}"
        driver.apply(sent(uuid), received(uuid), started(uuid, at=seconds), succeeded(uuid, runtime=seconds))
    rows = select(("native",), MetricOptions(buckets=(0.5, 30.0), queue_wait_buckets=(1.0, 7.5, 60.0))).rows
    samples = {
        (sample.name.removeprefix("celery_task_"), sample.labels["le"]): sample.value
        for family in parse_text(Exposition(rows).render(driver.shown()).decode())
        for sample in family.samples
        if sample.name.endswith("_bucket")
    }
    waits = {"1": 2, "7.5": 2, "60": 4, "+Inf": 4}
    assert samples == {
        **{("runtime_seconds_bucket", le): count for le, count in {"0.5": 2, "30": 3, "+Inf": 4}.items()},
        **{("queue_wait_seconds_bucket", le): count for le, count in waits.items()},
        **{("prefetch_wait_seconds_bucket", le): count for le, count in waits.items()},
    }
