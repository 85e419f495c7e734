"""Which profiles can be combined, and the data that they share."""

from __future__ import annotations

import itertools
import subprocess
import sys
from unittest.mock import ANY

import pytest
from harness.configs import monitor_config
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families as parse

from celery_exporter.config.loader import load
from celery_exporter.core import cluster
from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.errors import BadSettingError
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import COMMON_BUCKETS, TASK_LABELS, MetricOptions
from celery_exporter.metrics.registry import PROFILES, ProfilesClashError, Selection, select
from celery_exporter.monitor.naming import naming_of
from unit.core.cluster_driver import (
    ClusterDriver,
    failed,
    heartbeat,
    received,
    rejected,
    sent,
    started,
    succeeded,
)
from unit.persistence.test_state import restarted
from unit.test_golden_replay import RECORDING, read, replay

URL = "redis://127.0.0.1:1/0"
NATIVE, BOTH = ("native",), ("native", "flower")
#: Gauges of which the maximum over all replicas is right.
SHOWN_BY_STANDBY = {
    "celery_broker_up",
    "celery_task_last_timestamp_seconds",
    "celery_worker_last_heartbeat_timestamp_seconds",
}
LIFE = (sent(), received(), started(at=1), succeeded(at=8, runtime=7.0))


def driver_after(selection: Selection, *events: dict) -> ClusterDriver:
    aggregates = Aggregates(selection.runtime_bounds, selection.wait_bounds, latency=selection.latency)
    driver = ClusterDriver(
        labels=selection.labels, clients=selection.clients, hosts=selection.hosts, aggregates=aggregates
    )
    driver.apply(*events)
    return driver


def label(series: str, name: str) -> str:
    return series.partition(f'{name}="')[2].partition('"')[0]


def page(selection: Selection, *events: dict) -> dict[str, str]:
    driver = driver_after(selection, *events)
    driver.wait(2.5)  # deferred events may still wait for a task-sent
    text = Exposition(selection.rows).render(driver.shown(prefetched=selection.prefetched)).decode()
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


PAIRS = list(itertools.combinations(PROFILES, 2))
ROWS_BY_PROFILE = {
    name: {row.name: row for row in select((name,), MetricOptions()).rows} for name in PROFILES
}


def differing(pair: tuple[str, str]) -> set[str]:
    """Return the metric names that the two profiles define differently."""
    forms = [
        {row.name: (row.type, set(row.labels), row.buckets) for row in ROWS_BY_PROFILE[name].values()}
        for name in pair
    ]
    return {name for name in forms[0].keys() & forms[1].keys() if forms[0][name] != forms[1][name]}


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if differing(pair)], ids="+".join)
def test_profiles_with_clashing_names_cannot_be_combined(pair):
    with pytest.raises(ProfilesClashError) as caught:
        select(pair, MetricOptions())
    assert all(profile in str(caught.value) for profile in pair)
    assert any(f" {name} " in str(caught.value) for name in differing(pair))


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not differing(pair)], ids="+".join)
def test_other_profiles_can_be_combined_and_each_name_occurs_once(pair):
    names = [row.name for row in select(pair, MetricOptions()).rows]
    assert sorted(names) == sorted({*ROWS_BY_PROFILE[pair[0]], *ROWS_BY_PROFILE[pair[1]]})


def test_clash_is_a_settings_error_that_names_both_profiles():
    with pytest.raises(BadSettingError) as caught:
        load({"broker_url": URL, "profile": "native,danihodovic"}, {})
    assert str(caught.value) == (
        "--profile: native and danihodovic define celery_worker_up differently: "
        "a gauge with worker, hostname and a gauge with hostname; remove one of the two from --profile"
    )


def test_different_bounds_are_a_clash():
    with pytest.raises(BadSettingError, match=r"buckets 0\.005, 0\.01"):
        load({"broker_url": URL, "profile": "zerok,ovalmoney"}, {})


def test_aggregates_have_only_the_labels_that_a_profile_needs():
    assert select(("native",), MetricOptions()).labels == ("queue_name",)
    assert select(("zerok",), MetricOptions(task_labels=TASK_LABELS)).labels == ()
    assert select(("zerok", "flower"), MetricOptions()).labels == ("worker",)
    assert select(("native", "flower"), MetricOptions()).labels == TASK_LABELS


def test_clients_are_counted_if_a_profile_exposes_them():
    assert [name for name in PROFILES if select((name,), MetricOptions()).clients] == [
        "danihodovic",
        "flower",
    ]
    assert not select(("danihodovic",), MetricOptions(generic_hostname_task_sent_metric=True)).clients
    assert select(("danihodovic", "flower"), MetricOptions(generic_hostname_task_sent_metric=True)).clients


def test_each_profile_exposes_its_own_buckets_of_one_aggregate():
    both = page(select(("native", "flower"), MetricOptions()), *LIFE)

    def buckets(name: str) -> dict[str, str]:
        return {
            label(series, "le"): value
            for series, value in both.items()
            if series.startswith(f"{name}_bucket")
        }

    native, flower = buckets("celery_task_runtime_seconds"), buckets("flower_task_runtime_seconds")
    assert list(map(float, [*native][:-1])) == list(PROFILES["native"].buckets)
    assert list(map(float, [*flower][:-1])) == list(COMMON_BUCKETS)
    assert (native["5"], native["10"]) == (flower["5.0"], flower["7.5"]) == ("0.0", "1.0")


def test_buckets_option_applies_to_all_profiles():
    selection = load(
        {"broker_url": URL, "profile": "native,flower", "buckets": "1,2"}, {}
    ).monitor.metrics.selection
    assert selection.runtime_bounds == (1.0, 2.0)
    assert {row.buckets for row in selection.rows if row.name.endswith("runtime_seconds")} == {(1.0, 2.0)}


def test_prefix_option_changes_only_names_that_begin_with_celery():
    rows = select(("flower",), MetricOptions()).rows
    text = Exposition(rows, prefix="my_").render(ClusterDriver().shown()).decode()
    assert "# TYPE flower_worker_online gauge" in text
    assert "# TYPE my_exporter_build_info gauge" in text


def test_prefetched_task_belongs_to_the_worker_that_received_it_last():
    selection = select(("flower",), MetricOptions())
    events = [
        *(event(uuid, host="a@h") for uuid in ("u1", "u2") for event in (received,)),
        received("u3", host="a@h"),
        received("u3", host="b@h", at=1),
        started("u1", host="a@h"),
        *(sent(uuid) for uuid in ("u1", "u2", "u3", "u4", "u5")),
        received("u4", host="b@h"),
        rejected("u4", host="b@h", requeue=True),
        succeeded("u1", host="a@h"),
    ]
    shown = page(selection, *events)
    assert {name: value for name, value in shown.items() if "prefetched" in name} == {
        'flower_worker_prefetched_tasks{task="add",worker="a@h"}': "1.0",
        'flower_worker_prefetched_tasks{task="add",worker="b@h"}': "1.0",
    }


def test_mean_is_that_of_all_observed_run_times():
    shown = page(
        select(("triss",), MetricOptions()),
        *LIFE,
        *(event | {"uuid": "u2", "runtime": 1.0} for event in LIFE),
    )
    duration = 'celery_task_duration_seconds_by_state{state="SUCCESS",task_type="add"}'
    assert float(shown[duration]) == 4.0


@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_command_lists_profiles_or_the_metrics_of_one(profile):
    command = [sys.executable, "-m", "celery_exporter", "profiles", *profile.split()]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    for name in [profile] if profile else PROFILES:
        rows = PROFILES[name].rows(MetricOptions())
        assert all(row.name in output for row in rows)
        assert not profile or all(row.remark in output for row in rows)


def test_prefix_may_cause_a_clash():
    with pytest.raises(BadSettingError, match="define flower_task_runtime_seconds differently"):
        load({"broker_url": URL, "profile": "native,flower", "metric_prefix": "flower_"}, {})


def test_profile_named_twice_is_selected_once():
    assert monitor_config(URL, profile="flower,flower").metrics.selection.names == ("flower",)


def two_workers(selection: Selection, one: str = "a@h", other: str = "b@h") -> ClusterDriver:
    """Return the state after one of two workers was removed."""
    events = [event(uuid, host=one) for uuid in ("u1", "u2") for event in (received, started, succeeded)]
    driver = driver_after(
        selection, *events, *(event("u3", host=other) for event in (received, started, succeeded))
    )
    for _ in range(14):
        driver.wait(50)
        driver.apply(heartbeat(other))
    assert list(driver.cluster.workers) == [other]
    return driver


@pytest.mark.parametrize(
    "options",
    [MetricOptions(), MetricOptions(generic_hostname_worker_task_metric=True)],
    ids=["hosts", "generic"],
)
def test_counts_of_a_host_stay_when_one_of_its_workers_is_removed(options):
    selection = select(("danihodovic",), options)
    driver = two_workers(selection)
    text = Exposition(selection.rows).render(driver.shown()).decode()
    hostname = "generic" if options.generic_hostname_worker_task_metric else "h"
    series = f'{{hostname="{hostname}",name="add",queue_name="unknown"}}'
    assert f"celery_task_succeeded_total{series} 3.0" in text
    assert f"celery_task_runtime_count{series} 3.0" in text
    driver.wait(700)  # until the other worker is removed
    text = Exposition(selection.rows).render(driver.shown()).decode()
    assert ("celery_task_succeeded_total{" in text) == options.generic_hostname_worker_task_metric
    assert {label_set.worker for label_set in driver.aggregates.snapshot()} == {""}


def test_removed_worker_of_another_profile_keeps_new_native_series_at_0_first():
    """A new series of the worker's task is exposed at 0 first, as in the native profile alone."""
    selection = select(("native", "flower"), MetricOptions())
    driver = two_workers(selection)
    exposition = Exposition(selection.rows)
    series = 'celery_task_failures_total{exception="ValueError",queue_name="unknown",task_name="add"}'
    tracker = SeriesTracker(0.0, 0.0)

    def scrape(at):
        session = tracker.begin("p", at)
        page = exposition.render(driver.shown(), session=session).decode()
        tracker.end("p", session, at)
        return page

    for at in (1.0, 2.0, 2.5):
        scrape(at)
    driver.apply(*(event("u9", host="b@h") for event in (received, started, failed)))
    driver.wait(3)
    for at, value in ((3.0, "0.0"), (4.0, "1.0")):
        assert f"{series} {value}" in scrape(at)


def test_prefetched_tasks_are_absent_without_a_known_worker_or_beyond_the_limit(monkeypatch):
    selection = select(("flower",), MetricOptions())
    driver = driver_after(selection, received("u1", host="a@h"), received("u2", host="b@h"))
    driver.wait(3)
    del driver.cluster.workers["a@h"]
    assert [worker for _, worker in driver.shown(prefetched=True).prefetched] == ["b@h"]
    monkeypatch.setattr(cluster, "MAX_PREFETCHED", 1)
    assert driver.shown(prefetched=True).prefetched is None


@pytest.mark.parametrize(("before", "after", "has_buckets"), [(BOTH, NATIVE, True), (NATIVE, BOTH, False)])
def test_histograms_survive_a_restart_if_the_state_has_their_buckets(before, after, has_buckets):
    new = select(after, MetricOptions())
    aggregates = Aggregates(new.runtime_bounds, new.wait_bounds)
    driver = restarted(
        driver_after(select(before, MetricOptions()), *LIFE), labels=new.labels, aggregates=aggregates
    )
    text = Exposition(new.rows).render(driver.shown()).decode()
    series = 'celery_task_runtime_seconds_bucket{le="10",queue_name="q",state="SUCCESS",task_name="add"}'
    assert (f"{series} 1.0" in text) == has_buckets


@pytest.mark.parametrize(
    ("changed", "renamed"),
    [
        ({}, False),
        ({"profile": "triton,native"}, False),
        ({"metric_prefix": "my_"}, False),
        ({"task_name_rule": ["a=b"]}, True),
        ({"task_include": "a.*"}, True),
        ({"queue_name_rule": ["a=b"]}, True),
        ({"queue_name_rule": [""]}, True),
        ({"queue_exclude": "a.*"}, True),
    ],
    ids=str,
)
def test_names_in_a_state_file_are_renamed_only_if_the_rules_for_names_changed(changed, renamed):
    """Applying a rule twice could change a name twice."""
    before, after = (naming_of(monitor_config(URL, **options)) for options in ({}, changed))
    assert ((before.tasks, before.queues) != (after.tasks, after.queues)) == renamed


@pytest.mark.parametrize("profile", PROFILES)
def test_a_standby_has_counters_and_last_times_and_no_gauges_of_the_present(profile):
    """The active one shows these gauges. Both counted a part of the events, and either had the last one."""
    selection = select((profile,), MetricOptions())
    whole = replay(read(RECORDING), selection)
    families = {
        active: {family.name: family.samples for family in parse(of_replica(selection, whole, active))}
        for active in (None, True, False)
    }
    assert {**families[None], "celery_exporter_active": ANY} == families[True]
    kinds = {row.full_name("celery_").removesuffix("_total"): row.type for row in selection.rows}
    for name, samples in families[None].items():
        is_shown = name in SHOWN_BY_STANDBY or name.startswith("celery_exporter_")
        expected = [] if kinds[name] == "gauge" and not is_shown else samples
        if name != "celery_exporter_active":
            assert families[False][name] == expected, name


def of_replica(selection: Selection, snapshot: Snapshot, active: bool | None) -> str:
    exporter = structs.replace(snapshot.exporter, active=active)
    text = Exposition(selection.rows).render(structs.replace(snapshot, exporter=exporter)).decode()
    return text.partition("# HELP process_")[0]
