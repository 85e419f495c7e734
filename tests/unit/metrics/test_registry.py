"""Profiles: what can be on together, and what they share."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from harness.configs import monitor_config

from celery_exporter.config.loader import load
from celery_exporter.core import cluster
from celery_exporter.core.aggregates import Aggregates
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

URL = "redis://127.0.0.1:1/0"
NATIVE, BOTH = ("native",), ("native", "flower")
LIFE = (sent(), received(), started(at=1), succeeded(at=8, runtime=7.0))


def told(selection: Selection, *events: dict) -> ClusterDriver:
    ledger = Aggregates(selection.runtime_bounds, selection.wait_bounds, latency=selection.latency)
    driver = ClusterDriver(
        labels=selection.labels, clients=selection.clients, hosts=selection.hosts, aggregates=ledger
    )
    driver.apply(*events)
    return driver


def label(series: str, name: str) -> str:
    return series.partition(f'{name}="')[2].partition('"')[0]


def page(selection: Selection, *events: dict) -> dict[str, str]:
    driver = told(selection, *events)
    driver.wait(2.5)  # what may be new work under a known id has its time to be sent
    text = Exposition(selection.rows).render(driver.shown(prefetched=selection.prefetched)).decode()
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


PAIRS = list(itertools.combinations(PROFILES, 2))
APART = {name: {row.name: row for row in select((name,), MetricOptions()).rows} for name in PROFILES}


def differing(pair: tuple[str, str]) -> set[str]:
    """Return the names that both claim for something else."""
    forms = [
        {row.name: (row.type, set(row.labels), row.buckets) for row in APART[name].values()} for name in pair
    ]
    return {name for name in forms[0].keys() & forms[1].keys() if forms[0][name] != forms[1][name]}


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if differing(pair)], ids="+".join)
def test_two_profiles_that_differ_in_a_name_are_not_on_together(pair):
    with pytest.raises(ProfilesClashError) as caught:
        select(pair, MetricOptions())
    assert all(profile in str(caught.value) for profile in pair)
    assert any(f" {name}," in str(caught.value) for name in differing(pair))


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not differing(pair)], ids="+".join)
def test_two_other_profiles_are_both_there_and_nothing_is_twice(pair):
    names = [row.name for row in select(pair, MetricOptions()).rows]
    assert sorted(names) == sorted({*APART[pair[0]], *APART[pair[1]]})


def test_a_clash_is_an_error_at_start_that_says_what_to_leave_out():
    with pytest.raises(BadSettingError) as caught:
        load({"broker_url": URL, "profile": "native,danihodovic"}, {})
    assert str(caught.value) == (
        "--profile: native and danihodovic both have celery_worker_up, not the same one: "
        "a gauge with worker, hostname and a gauge with hostname; drop one of the two from --profile"
    )


def test_bounds_that_differ_are_a_clash_too():
    with pytest.raises(BadSettingError, match=r"buckets 0\.005, 0\.01"):
        load({"broker_url": URL, "profile": "zerok,ovalmoney"}, {})


def test_sums_are_kept_by_no_more_labels_than_somebody_shows():
    assert select(("native",), MetricOptions()).labels == ("queue_name",)
    assert select(("zerok",), MetricOptions(task_labels=TASK_LABELS)).labels == ()
    assert select(("zerok", "flower"), MetricOptions()).labels == ("worker",)
    assert select(("native", "flower"), MetricOptions()).labels == TASK_LABELS


def test_who_sent_what_is_counted_where_somebody_shows_it():
    assert [name for name in PROFILES if select((name,), MetricOptions()).clients] == [
        "danihodovic",
        "flower",
    ]
    assert not select(("danihodovic",), MetricOptions(generic_hostname_task_sent_metric=True)).clients
    assert select(("danihodovic", "flower"), MetricOptions(generic_hostname_task_sent_metric=True)).clients


def test_each_profile_has_its_own_buckets_of_what_was_counted_once():
    both = page(select(("native", "flower"), MetricOptions()), *LIFE)

    def buckets(name: str) -> dict[str, str]:
        return {label(each, "le"): value for each, value in both.items() if each.startswith(f"{name}_bucket")}

    native, flower = buckets("celery_task_runtime_seconds"), buckets("flower_task_runtime_seconds")
    assert list(map(float, [*native][:-1])) == list(PROFILES["native"].buckets)
    assert list(map(float, [*flower][:-1])) == list(COMMON_BUCKETS)
    assert (native["5"], native["10"]) == (flower["5.0"], flower["7.5"]) == ("0.0", "1.0")


def test_buckets_that_somebody_chose_are_those_of_all():
    chosen = load(
        {"broker_url": URL, "profile": "native,flower", "buckets": "1,2"}, {}
    ).monitor.metrics.selection
    assert chosen.runtime_bounds == (1.0, 2.0)
    assert {row.buckets for row in chosen.rows if row.name.endswith("runtime_seconds")} == {(1.0, 2.0)}


def test_a_name_of_another_family_keeps_its_beginning():
    rows = select(("flower",), MetricOptions()).rows
    text = Exposition(rows, prefix="my_").render(ClusterDriver().shown()).decode()
    assert "# TYPE flower_worker_online gauge" in text
    assert "# TYPE my_exporter_build_info gauge" in text


def test_what_a_worker_has_received_and_not_started_is_of_the_one_that_has_it():
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


def test_a_mean_is_of_what_was_observed():
    shown = page(
        select(("triss",), MetricOptions()),
        *LIFE,
        *(event | {"uuid": "u2", "runtime": 1.0} for event in LIFE),
    )
    duration = 'celery_task_duration_seconds_by_state{state="SUCCESS",task_type="add"}'
    assert float(shown[duration]) == 4.0


@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_the_command_lists_profiles_and_the_metrics_of_one(profile):
    command = [sys.executable, "-m", "celery_exporter", "profiles", *profile.split()]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    for name in [profile] if profile else PROFILES:
        rows = PROFILES[name].rows(MetricOptions())
        assert all(row.name in said for row in rows)
        assert not profile or all(row.remark in said for row in rows)


def test_a_prefix_may_make_two_names_one():
    with pytest.raises(BadSettingError, match="both have flower_task_runtime_seconds"):
        load({"broker_url": URL, "profile": "native,flower", "metric_prefix": "flower_"}, {})


def test_a_profile_that_is_named_twice_is_on_once():
    assert monitor_config(URL, profile="flower,flower").metrics.selection.names == ("flower",)


def two_workers(selection: Selection, one: str = "a@h", other: str = "b@h") -> ClusterDriver:
    """Return a story in which one of two workers is forgotten after a while."""
    events = [event(uuid, host=one) for uuid in ("u1", "u2") for event in (received, started, succeeded)]
    driver = told(selection, *events, *(event("u3", host=other) for event in (received, started, succeeded)))
    for _ in range(14):
        driver.wait(50)
        driver.apply(heartbeat(other))
    assert list(driver.cluster.workers) == [other]
    return driver


@pytest.mark.parametrize(
    "shape",
    [MetricOptions(), MetricOptions(generic_hostname_worker_task_metric=True)],
    ids=["hosts", "generic"],
)
def test_what_a_host_did_does_not_fall_when_one_of_its_workers_is_forgotten(shape):
    selection = select(("danihodovic",), shape)
    driver = two_workers(selection)
    text = Exposition(selection.rows).render(driver.shown()).decode()
    hostname = "generic" if shape.generic_hostname_worker_task_metric else "h"
    series = f'{{hostname="{hostname}",name="add",queue_name="unknown"}}'
    assert f"celery_task_succeeded_total{series} 3.0" in text
    assert f"celery_task_runtime_count{series} 3.0" in text
    driver.wait(700)  # until the other one is forgotten, too
    text = Exposition(selection.rows).render(driver.shown()).decode()
    assert ("celery_task_succeeded_total{" in text) == shape.generic_hostname_worker_task_metric
    assert {key.worker for key in driver.aggregates.snapshot()} == {""}


def test_a_worker_that_is_forgotten_makes_nothing_old_for_native_metrics_beside_others():
    """What is new of its task is shown at 0 first, as without the others."""
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


def test_what_is_of_no_worker_that_is_known_is_not_prefetched(monkeypatch):
    selection = select(("flower",), MetricOptions())
    driver = told(selection, received("u1", host="a@h"), received("u2", host="b@h"))
    driver.wait(3)
    del driver.cluster.workers["a@h"]
    assert [worker for _, worker in driver.shown(prefetched=True).prefetched] == ["b@h"]
    monkeypatch.setattr(cluster, "MAX_PREFETCHED", 1)
    assert driver.shown(prefetched=True).prefetched is None


@pytest.mark.parametrize(("before", "after", "known"), [(BOTH, NATIVE, True), (NATIVE, BOTH, False)])
def test_histograms_go_on_after_a_restart_where_their_buckets_are_known(before, after, known):
    new = select(after, MetricOptions())
    ledger = Aggregates(new.runtime_bounds, new.wait_bounds)
    driver = restarted(told(select(before, MetricOptions()), *LIFE), labels=new.labels, aggregates=ledger)
    text = Exposition(new.rows).render(driver.shown()).decode()
    series = 'celery_task_runtime_seconds_bucket{le="10",queue_name="q",state="SUCCESS",task_name="add"}'
    assert (f"{series} 1.0" in text) == known


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
def test_names_in_a_state_file_are_made_anew_if_the_rules_for_names_changed_and_only_then(changed, renamed):
    """By a rule that is applied twice a name would not be the same."""
    before, after = (naming_of(monitor_config(URL, **options)) for options in ({}, changed))
    assert ((before.tasks, before.queues) != (after.tasks, after.queues)) == renamed
