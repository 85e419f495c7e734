"""Without task-sent events it is unknown how many tasks were sent: no sample, instead of 0."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from celery_exporter.core.limits import Limits
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.metrics.exposition.series_tracker import MAX_WAIT_SECONDS, ScrapeSession, SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select
from unit.core.cluster_driver import ClusterDriver, heartbeat, received, sent, started, succeeded
from unit.persistence.test_state import restarted

INFO = WorkerInfo(queues=("q",), registered=("add", "idle"), pool="prefork", pool_size=2)
LABELS = ("state", "task_name", "worker")
FAMILIES = ("celery_tasks_total", "celery_tasks_in_flight")


def driver_with(*events: dict, labels: tuple[str, ...] = ("queue_name",), **limits) -> ClusterDriver:
    """Return a driver after these events of a worker that has registered `add` and `idle`."""
    driver = ClusterDriver(Limits(**limits), labels)
    driver.apply(heartbeat(at=100))
    driver.cluster.record_inspection({"w@h": INFO}, driver.timestamp())
    driver.apply(*events)
    driver.wait(5)
    return driver


def page(driver: ClusterDriver, session: ScrapeSession | None = None) -> dict[tuple[str, ...], float]:
    """Return the samples of a page by metric, state, task name and worker."""
    rows = select(("native",), MetricOptions(task_labels=driver.labels)).rows
    text = Exposition(rows).render(driver.shown(), session=session).decode()
    return {
        (sample.name, *(sample.labels.get(label, "") for label in LABELS)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def pending(driver: ClusterDriver, session: ScrapeSession | None = None) -> dict[tuple[str, str], float]:
    """Return the samples of PENDING by metric and task name."""
    samples = page(driver, session)
    return {
        (name, task): value
        for (name, state, task, _), value in samples.items()
        if name in FAMILIES and state == "PENDING"
    }


RUN = (received(at=101), started(at=102), succeeded(at=103))


@pytest.mark.parametrize("labels", [("queue_name",), ("queue_name", "worker"), ()])
def test_without_task_sent_events_pending_has_no_sample(labels):
    driver = driver_with(*RUN, labels=labels)
    assert pending(driver) == {}
    samples = page(driver)
    worker = "w@h" if "worker" in labels else ""
    assert samples["celery_tasks_total", "SUCCESS", "add", worker] == 1
    assert samples["celery_tasks_total", "FAILURE", "add", worker] == 0, "a known 0"
    assert samples["celery_tasks_in_flight", "STARTED", "add", ""] == 0


def test_pending_has_samples_from_the_first_task_sent_event_on():
    driver = driver_with(*RUN)
    driver.apply(sent("u2", at=104))
    known = {("celery_tasks_total", "add"): 1, ("celery_tasks_in_flight", "add"): 1}
    assert pending(driver) == known, "idle was not sent yet"
    driver.apply(received("u2", at=105), started("u2", at=106), succeeded("u2", at=107))
    known = {("celery_tasks_total", "add"): 1, ("celery_tasks_in_flight", "add"): 0}
    assert pending(driver) == known, "now 0 is known"
    driver.apply(received("u3", at=108))
    assert pending(driver) == known, "a counter that was shown stays"


def test_pending_is_still_known_after_a_restart_with_the_state_file():
    driver = driver_with(sent(at=100), *RUN)
    assert pending(restarted(driver)) == pending(driver) != {}
    assert pending(restarted(driver_with(*RUN))) == {}


def test_a_task_that_waits_for_another_delivery_is_pending_without_task_sent_events():
    driver = driver_with(received(at=101))
    driver.apply(heartbeat(at=106, kind="offline"))
    driver.wait(1)
    driver.cluster.requeue(driver.cluster.tasks.get("u1"), driver.timestamp())
    assert pending(driver) == {("celery_tasks_in_flight", "add"): 1}


@pytest.mark.parametrize("labels", [("queue_name",), ("queue_name", "worker")])
def test_the_first_task_sent_event_is_in_an_increase(labels):
    """The new series is at 0 first, also if a worker was removed, whose sums have moved by then."""
    driver = driver_with(*RUN, labels=labels, purge_offline_worker_metrics=10.0)
    driver.apply(heartbeat(at=106, kind="offline"))
    driver.wait(30)
    assert "w@h" not in driver.cluster.workers
    tracker = SeriesTracker(0.0, 0.0)

    def scrape(now: float) -> float | None:
        session = tracker.begin("10.0.0.1", now)
        samples = pending(driver, session)
        tracker.end("10.0.0.1", session, now)
        return samples.get(("celery_tasks_total", "add"))

    for now in range(5):
        assert scrape(now) is None
    driver.apply(sent("u2", at=140))
    values = [scrape(now) for now in range(5, 10)]
    assert values == [0, 1, 1, 1, 1]
    driver.apply(sent("u3", at=141))
    assert [scrape(now) for now in (10.0, 11.0, 11.0 + 2 * MAX_WAIT_SECONDS)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("profile", "generic", "shown"),
    [
        ("zerok", False, {("celery_tasks", ""): 0, ("celery_tasks_by_name", "add"): 0}),
        ("triss", False, {("celery_task_types_by_state", "add"): 0}),
        ("ovalmoney", False, {("celery_tasks_total", "add"): 0, ("celery_tasks_total", "idle"): 0}),
        ("danihodovic", True, {("celery_task_sent_total", "add"): 0, ("celery_task_sent_total", "idle"): 0}),
        ("danihodovic", False, {}),
        ("flower", False, {}),
        ("triton", False, {}),
    ],
)
def test_profiles_of_other_exporters_show_what_these_show(profile, generic, shown):
    """Some begin each known task at 0, as these do; the others need an event of a client for its label."""
    driver = driver_with(*RUN)
    selection = select((profile,), MetricOptions(generic_hostname_task_sent_metric=generic))
    text = Exposition(selection.rows).render(driver.shown(prefetched=True)).decode()
    samples = {
        (sample.name, sample.labels.get("name", sample.labels.get("task_type", ""))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "celery_task_sent_total" or {"PENDING", "task-sent"} & {*sample.labels.values()}
    }
    del samples["celery_exporter_events_total", ""]  # how many were received, which is known
    assert samples == shown


def test_the_build_has_the_shard():
    """Recording rules add up shards, and no replicas of one shard."""
    driver = driver_with()
    text = Exposition(select(("native",), MetricOptions()).rows).render(driver.shown(shard="0/2")).decode()
    assert 'celery_exporter_build_info{shard="0/2",version="0"} 1.0\n' in text
