"""The charts of the pages, made from their series."""

from __future__ import annotations

import msgspec
import pytest
from harness.statuses import HOSTILE_NAMES

from celery_exporter.core.snapshot import QueueStats
from celery_exporter.status.chart_history import ChartHistory
from celery_exporter.status.charts import MAX_QUEUE_LINES, PAGES, ChartQuery, Charts, charts_of
from celery_exporter.status.rings import POINTS, RANGES
from unit.core.cluster_driver import T0, ClusterDriver, heartbeat

from .scenario import task_events


def busy_history(seconds: int = 300) -> tuple[ChartHistory, float]:
    """Return the history of a cluster, and the time of its last sample."""
    driver, history = ClusterDriver(), ChartHistory()
    for number in range(seconds // 5):
        now = driver.now
        driver.apply(heartbeat("w@h", now, active=2, processed=number), *task_events(number, now))
        stats = {name: QueueStats(index) for index, name in enumerate(("a", "b", "c", *HOSTILE_NAMES))}
        history.add(driver.shown(queue_stats=stats, listening=now), now)
        driver.now += 5
    return history, driver.now - 5


def charts(history: ChartHistory, now: float, *query: str) -> Charts:
    return charts_of(ChartQuery(*query), history, now, T0 + now)


@pytest.mark.parametrize("range_name", RANGES)
@pytest.mark.parametrize(("page", "name"), [(page, "") for page in PAGES if page not in {"queue", "worker"}])
def test_every_line_has_a_value_for_each_step(page, name, range_name):
    history, now = busy_history()
    shown = charts(history, now, page, name, range_name)
    lines = [line for chart in shown.charts for line in chart.lines]
    assert {len(line.values) for line in lines} == {POINTS}
    assert (shown.at, shown.step, shown.range) == (T0 + now, RANGES[range_name] / POINTS, range_name)
    assert len({chart.name for chart in shown.charts}) == len(shown.charts)


def test_without_samples_all_values_are_unknown():
    shown = charts(ChartHistory(), 5.0, "overview")
    assert {value for chart in shown.charts for line in chart.lines for value in line.values} == {None}


def test_the_longest_queues_have_lines():
    history, now = busy_history()
    (length,) = (chart for chart in charts(history, now, "overview").charts if chart.name == "length")
    assert [line.title for line in length.lines] == ["all queues", *HOSTILE_NAMES[:0:-1]]
    assert len(length.lines) == 1 + MAX_QUEUE_LINES
    assert length.lines[1].values[-1] == 7.0


def test_one_queue_and_one_worker_have_charts_of_their_own():
    history, now = busy_history()
    (length,) = charts(history, now, "queue", "c").charts
    assert length.lines[0].values[-1] == 2.0
    busy, accepted = charts(history, now, "worker", "w@h").charts
    assert (busy.lines[0].values[-1], accepted.lines[0].values[-1]) == (2.0, 0.2)
    (unknown,) = charts(history, now, "queue", "nosuch").charts
    assert set(unknown.lines[0].values) == {None}


@pytest.mark.parametrize(
    ("query", "is_valid"),
    [
        (("overview",), True),
        (("overview", "", "24h"), True),
        (("worker", "w"), True),
        (("overview", "w"), False),
        (("worker",), False),
        (("nosuch",), False),
        (("overview", "", "2h"), False),
        (("overview", "", ""), False),
    ],
)
def test_only_queries_for_existing_charts_are_valid(query, is_valid):
    assert ChartQuery(*query).is_valid() == is_valid


def test_restarts_of_one_step_are_one_mark():
    driver, history = ClusterDriver(), ChartHistory()
    names = [f"w{number}@h" for number in range(7)]
    for version in ("5.5.0", "5.6.0"):
        driver.apply(*(heartbeat(name, driver.now, sw_ver=version) for name in names))
        history.add(driver.shown(), driver.now)
        for worker in driver.cluster.workers.values():
            worker.restarts += 1
        driver.now += 5
    shown = charts(history, driver.now - 5, "overview")
    assert [(mark.kind, mark.index) for mark in shown.marks] == [("restart", 179), ("version", 179)]
    assert shown.marks[0].text == "restart of 7 workers: w0@h, w1@h, w2@h, w3@h, w4@h and 2 more"
    assert shown.marks[1].text.startswith("Celery 5.5.0 → 5.6.0 on 7 workers: w0@h")
    assert shown.marks[0].at == T0 + driver.now - 5
    (restart, _) = charts(history, driver.now - 5, "worker", "w3@h").marks
    assert restart.text == "restart of w3@h"
    assert len(charts(history, driver.now + 600, "overview").marks) == 2
    assert charts(history, driver.now + 900, "overview").marks == []


def test_json_decodes_to_the_same_charts():
    shown = charts(*busy_history(), "overview")
    assert msgspec.json.decode(msgspec.json.encode(shown), type=Charts) == shown
