"""A restart changes nothing: a restored cluster behaves as the saved one."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.beats import MAX_UNANSWERED
from celery_exporter.core.events import EventWithArguments, decode
from celery_exporter.core.expected import ExpectedTask
from celery_exporter.core.limits import Limits
from celery_exporter.core.measurements import REST, Summary
from celery_exporter.core.records import RecordBuilder
from celery_exporter.core.routing import Binding
from celery_exporter.core.schedules import Every
from celery_exporter.core.task_names import shown_as
from celery_exporter.core.types import EXCLUDED, LabelSet, State
from celery_exporter.core.worker_registry import REPLY_SECONDS
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.persistence import state
from celery_exporter.persistence.state import Changes, Recorder, SavedCluster
from unit.core.cluster_driver import (
    T0,
    ClusterDriver,
    failed,
    heartbeat,
    received,
    retried,
    sent,
    started,
    succeeded,
    task_event,
)
from unit.core.lives import LIFE, RETRY_ELSEWHERE, RETRY_LIFE, any_task_event

from .state_records import StateRecords, saved_cluster


def restarted(
    old: ClusterDriver, away: float = 0.0, clock: float = 0.0, saved: SavedCluster | None = None, **changed
) -> ClusterDriver:
    """Return a new driver with the state of the old one, restored from a state file.

    `away` is the downtime in seconds, `clock` the first reading of the new listening clock.
    """
    defaults = {"limits": old.cluster.limits, "labels": old.labels, "clients": old.clients}
    new = ClusterDriver(**{**defaults, **changed})
    new.now, new.epoch = clock, old.epoch + old.now + away - clock
    state.restore(saved or saved_cluster(old), new.cluster, new.timestamp())
    return new


def test_tasks_with_equal_times_stay_in_their_order():
    driver = ClusterDriver()
    driver.apply(*(sent(f"u{number}", at=number) for number in range(600)))
    (bucket,) = restarted(driver).cluster.tasks.occupied(State.PENDING)
    assert list(bucket.tasks) == [f"u{number}" for number in range(600)]


def results(driver: ClusterDriver) -> tuple:
    workers = {
        name: (worker.up, worker.pid, worker.processed_total, worker.restarts, worker.missed, worker.events)
        for name, worker in driver.cluster.workers.items()
    }
    aggregates = {
        label_set: msgspec.to_builtins(aggregate)
        for label_set, aggregate in driver.aggregates.snapshot().items()
    }
    return aggregates, driver.gauges(), workers, driver.cluster.fallbacks, len(driver.cluster.tasks)


event_sequences = st.lists(
    st.tuples(
        any_task_event
        | st.builds(heartbeat, st.sampled_from(["a@h", "b@h"]), st.floats(0, 9), processed=st.integers(0, 9)),
        st.sampled_from([0.0, 0.5, 3.0, 70.0]),
    ),
    max_size=16,
)


def retained(kind: str, host: str, retries: int | None = 0) -> dict[str, Any]:
    return task_event(kind, "u1", 0.0, host, name="add", queue="q", retries=retries, pid=1, requeue=False)


#: The repeat comes when the end has been kept for its time, and the next sweep will remove it.
JUST_EXPIRED = [
    (retained("cancelled", "b@h"), 0.0),
    (heartbeat("a@h", 0.0, processed=0), 3.0),
    (retained("sent", "a@h"), 3.0),
    (retained("sent", "a@h"), 3.0),
    (retained("sent", "a@h", None), 0.5),
    (retained("sent", "a@h", None), 3.0),
]


@settings(max_examples=300)
@given(event_sequences, event_sequences, st.sets(st.integers(0, 15)))
@example(JUST_EXPIRED, JUST_EXPIRED[:1], set())
def test_invariant_5_a_restart_after_any_events_changes_no_sum(before, after, saves):
    """The number of saves does not matter: each record has all changes since the one before."""
    whole = ClusterDriver(labels=("queue_name", "worker"))
    records = StateRecords(whole)
    for number, (event, pause) in enumerate(before):
        whole.apply(event)
        whole.wait(pause)
        if number in saves:
            records.save()
    records.save()
    broken = restarted(whole, clock=whole.now, saved=records.saved)
    for event, pause in after:
        for driver in (whole, broken):
            driver.apply(event)
            driver.wait(pause)
    for driver in (whole, broken):
        driver.wait(3)
    assert results(broken) == results(whole)


def test_an_unfinished_task_keeps_its_name_queue_and_times():
    driver = restarted(driver_after(sent(), received(at=1), started(at=2)), away=60)
    assert driver.gauges() == {"STARTED": 1}
    driver.apply(failed(at=5))
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 1, "STARTED": 1, "FAILURE": 1}
    assert driver.aggregate().queue_wait.total == 2.0
    assert [histogram.total for histogram in driver.aggregate().runtime.values()] == [3.0]


def test_when_a_task_expires_survives_a_restart():
    driver = ClusterDriver()
    driver.apply(sent(expires="2023-11-14T22:13:40+00:00"))  # T0 + 20 s
    assert restarted(driver).cluster.tasks.expires == {"u1": T0 + 20}


def test_other_work_under_the_id_of_a_task_is_another_execution_after_a_restart():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), sent(at=1, name="mul"))
    driver = restarted(driver)
    driver.apply(received(at=2, name="mul"), started(at=3), succeeded(at=4))
    assert driver.counts()["mul", "q", "SUCCESS"] == 1


def test_sums_by_client_survive_a_restart():
    old = driver_after(sent(), sent("u2", hostname="gen2@web"), clients=True)
    driver = restarted(old)
    assert driver.aggregate().clients == {"h": 1, "web": 1}
    driver.apply(sent("u3", hostname="gen3@web"))
    assert driver.aggregate().clients == {"h": 1, "web": 2}


def test_sums_by_client_are_dropped_if_they_are_no_longer_shown():
    driver = restarted(driver_after(sent(), clients=True), clients=False)
    assert driver.aggregate().clients == {}
    assert driver.aggregate().transitions[State.PENDING] == 1


def test_sums_by_client_add_up_when_a_label_is_no_longer_in_use():
    old = driver_after(sent(), sent("u2", queue="r"), sent("u3", queue="r", hostname="c@web"), clients=True)
    driver = restarted(old, labels=())
    assert driver.aggregate(queue="").clients == {"h": 2, "web": 1}


def driver_after(*events: dict, **options) -> ClusterDriver:
    driver = ClusterDriver(**options)
    driver.apply(*events)
    return driver


LIVES = {
    "a retry that comes back to the same queue": RETRY_LIFE,
    "a retry that goes elsewhere": RETRY_ELSEWHERE,
    "a retry whose worker is seen first": [
        *(sent(), sent(at=1, retries=1, queue="right"), received(at=2, retries=1, host="b@h")),
        *(
            started(at=3, host="b@h"),
            received(at=1),
            started(at=1.5),
            retried(at=2),
            succeeded(at=4, host="b@h"),
        ),
    ],
    "redelivered": [sent(), received(at=1), received(at=2), started(at=3), started(at=4), failed(at=5)],
}


@pytest.mark.parametrize("clock", [0.0, 500.0])
@pytest.mark.parametrize(
    ("life", "cut"), [(life, cut) for life, events in LIVES.items() for cut in range(1, len(events))]
)
def test_invariant_5_a_restart_between_any_two_events_changes_no_sum(life, cut, clock):
    before, after = LIVES[life][:cut], LIVES[life][cut:]
    whole = driver_after(*before, labels=("queue_name", "worker"))
    broken = restarted(whole, clock=clock)
    for driver in (whole, broken):
        for event in after:
            driver.apply(event)
            driver.wait(0.25)
    assert results(broken) == results(whole)


def test_an_unidentified_task_without_deferred_events_is_not_restored():
    saved = saved_cluster(driver_after(sent(), received()))
    task = saved.tasks["u1"]
    saved.tasks["u2"] = msgspec.structs.replace(task, uuid="u2", label_set=None, state=None, deferred=None)
    driver = restarted(ClusterDriver(), saved=saved)
    assert driver.gauges() == {"RECEIVED": 1}
    assert driver.cluster.tasks.uuids() == ["u1"]


@pytest.mark.parametrize("clock", [0.0, 500.0])
def test_a_retry_that_awaits_its_task_sent_waits_for_the_rest_of_the_window(clock):
    old = driver_after(sent(), received(), started(), retried(), received(at=1, retries=1))
    old.wait(1)
    driver = restarted(old, clock=clock)
    driver.wait(0.75)
    assert driver.gauges() == {"RETRY": 1}
    driver.wait(0.75)
    assert driver.gauges() == {"RECEIVED": 1}


def test_a_deferred_receipt_that_may_be_of_other_work_stays_deferred_after_a_restart():
    old = driver_after(sent(name="add"), received(at=1, name="mul", retries=1))
    driver = restarted(old, clock=old.now)
    assert list(driver.cluster.tasks.awaiting_sent) == ["u1"]
    for current in (old, driver):
        current.apply(started(at=2), succeeded(at=3))
        current.wait(3)
    assert results(driver) == results(old)


def test_a_deferred_receipt_is_applied_at_the_same_time_after_a_restart():
    old = driver_after(sent(), sent(retries=1, at=1), received(at=1, retries=2))
    old.wait(1)
    old.apply(sent(retries=5, at=3))
    driver = restarted(old, clock=old.now)
    for current in (old, driver):
        current.wait(1.25)
        assert not current.cluster.tasks.awaiting_sent


def test_the_silence_of_a_worker_process_continues_after_a_restart():
    old = driver_after(heartbeat("a@h", processed=1), heartbeat("a@h", processed=0))
    old.wait(70)
    driver = restarted(old, clock=old.now)
    for current in (old, driver):
        current.apply(*(heartbeat("a@h", at=at, processed=count) for at, count in ((0, 1), (5, 0), (5, 0))))
    assert results(driver) == results(old)


@pytest.mark.parametrize("pids", [(1, 1, 1), (7, 8, 9)])
@pytest.mark.parametrize("before", [1, 2, 4, 5, 7, 30])
def test_processes_of_one_name_are_distinguished_after_a_restart(before, pids):
    old = ClusterDriver()
    for beat in range(before):
        beat_of_one_of_three(old, beat, pids)
    driver = restarted(old, clock=old.now)
    for current in (old, driver):
        for beat in range(before, before + 30):
            beat_of_one_of_three(current, beat, pids)
    assert results(driver) == results(old)
    worker = driver.cluster.workers["w@h"]
    assert (worker.processed_total, worker.restarts, worker.shared) == (3 * 500 + 30 + before, 0, True)


def beat_of_one_of_three(driver: ClusterDriver, beat: int, pids: tuple[int, ...]) -> None:
    """Apply the next heartbeat of three processes with the same load."""
    driver.apply(heartbeat(at=driver.now, pid=pids[beat % 3], processed=501 + beat // 3))
    driver.wait(2 / 3)


def test_tasks_of_one_worker_share_its_name_after_a_restart():
    old = driver_after(heartbeat("a@h"), *(sent(f"u{number}") for number in range(2)))
    old.apply(*(received(f"u{number}", host="a@h") for number in range(2)), received("u1", host="b@h"))
    old.wait(2.5)
    del old.cluster.workers["b@h"]
    driver = restarted(old)
    name = driver.cluster.workers["a@h"].name
    histories = [driver.cluster.tasks.get(uuid).history() for uuid in ("u0", "u1")]
    deliveries = [delivery for history in histories for delivery in history.deliveries]
    assert [delivery.worker for delivery in deliveries] == ["a@h", "a@h", "b@h"]
    assert all(delivery.worker is name for delivery in deliveries[:2])


def test_tasks_of_a_restarted_worker_keep_the_pid_of_their_process():
    events = [
        event(uuid, pid=pid) for uuid, pid in (("u1", 4711), ("u2", 4712)) for event in (sent, received)
    ]
    driver = restarted(driver_after(*events))
    assert [driver.cluster.tasks.get(uuid).pid for uuid in ("u1", "u2")] == [4711, 4712]
    assert driver.cluster.tasks.get("u2").pid is driver.cluster.workers["w@h"].task_pid


def test_an_idle_series_is_removed_after_a_restart_too():
    old = driver_after(*LIFE, limits=Limits(series_ttl=200))
    old.wait(50)
    driver = restarted(old)
    driver.wait(145)
    assert driver.by_state()["SUCCESS"] == 1
    driver.wait(60)
    assert driver.by_state("other")["SUCCESS"] == 1


@pytest.mark.parametrize("labels", [("queue_name",), ("queue_name", "worker")])
@pytest.mark.parametrize("events", [LIFE, LIFE[1:]], ids=["sent", "not-sent"])
def test_invariant_5_gauges_survive_a_restart(labels, events):
    old = driver_after(*events, labels=labels)
    old.wait(3)
    driver = restarted(old)
    assert {group.label_set for group in driver.shown().tasks} == {
        group.label_set for group in old.shown().tasks
    }
    assert driver.shown().series == old.shown().series


def test_an_unfinished_task_beyond_the_task_ttl_is_not_restored():
    limits = Limits(task_ttl=100)
    old = driver_after(sent("u1"), limits=limits)
    old.wait(60)
    old.apply(sent("u2"))
    driver = restarted(old, away=60)
    assert driver.gauges() == {"PENDING": 1}
    driver.apply(received("u2"))
    assert driver.gauges() == {"RECEIVED": 1}


def test_invariant_5_deferred_events_are_counted_after_a_long_downtime():
    old = driver_after(
        sent(), received(), started(), retried(), received(retries=1), limits=Limits(task_ttl=100)
    )
    driver = restarted(old, away=1_000)
    driver.wait(3)
    assert driver.by_state()["RECEIVED"] == 2


def test_the_downtime_of_the_exporter_is_no_silence_of_workers():
    old = driver_after(heartbeat(), limits=Limits(worker_timeout=60))
    old.wait(50)
    driver = restarted(old, away=1_000_000)
    driver.wait(9)
    assert driver.cluster.workers["w@h"].up
    driver.wait(3)
    assert not driver.cluster.workers["w@h"].up


def test_a_worker_that_was_down_is_removed_at_the_same_time():
    old = driver_after(heartbeat(), limits=Limits(worker_timeout=10, purge_offline_worker_metrics=60))
    old.wait(50)
    driver = restarted(old, away=1_000)
    driver.wait(15)
    assert not driver.cluster.workers["w@h"].up
    driver.wait(10)
    assert driver.cluster.workers == {}


def test_a_late_worker_offline_does_not_restore_a_worker_that_was_removed_before_a_restart():
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10))
    driver.apply(heartbeat(), heartbeat("x@h"))
    driver.wait(30)
    for _ in range(2):
        driver = restarted(driver)
        driver.apply(heartbeat(kind="offline"))
        assert driver.cluster.workers == {}
    driver.apply(heartbeat(), heartbeat(kind="offline"))
    assert driver.cluster.workers["w@h"].left


def test_a_clock_that_was_set_back_does_not_change_the_age_of_tasks():
    old = driver_after(sent(), limits=Limits(task_ttl=10))
    old.wait(9)
    driver = restarted(old, away=-100)
    driver.wait(0.75)
    assert driver.gauges() == {"PENDING": 1}
    driver.wait(2)
    assert driver.gauges() == {}


def test_starts_during_a_downtime_are_missed():
    old = driver_after(heartbeat(at=0, processed=5), started(at=1), heartbeat(at=2, processed=6))
    driver = restarted(old, away=60)
    driver.apply(heartbeat(at=62, processed=26), heartbeat(at=64, processed=26))
    assert driver.cluster.workers["w@h"].missed == 20
    assert driver.cluster.workers["w@h"].processed_total == 26


def test_deferred_events_stay_deferred_after_a_restart():
    driver = restarted(driver_after(received(), started()), away=10)
    driver.wait(1.75)
    driver.apply(sent(), succeeded())
    assert driver.counts() == {
        ("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }


def test_a_late_event_of_a_finished_task_finds_its_tombstone():
    driver = restarted(driver_after(*LIFE), away=5)
    driver.apply(retried(at=0.25))
    assert driver.by_state()["RETRY"] == 1
    assert driver.gauges() == {}
    assert driver.cluster.fallbacks.total() == 0


def test_the_oldest_stays_the_oldest_and_expiry_goes_by_age():
    old = ClusterDriver(Limits(task_ttl=100))
    for number in range(5):
        old.apply(sent(f"u{number}", at=number))
        old.wait(10)
    old.apply(task_event("revoked", "u4"))
    driver = restarted(old)
    (pending,) = [group for group in driver.cluster.tasks.in_states() if group.state.name == "PENDING"]
    assert (pending.count, pending.since) == (4, T0)
    driver.wait(75)
    assert driver.gauges() == {"PENDING": 1}


@pytest.mark.parametrize(
    ("labels", "label_set"),
    [
        (("queue_name", "worker"), LabelSet("add", "q", "w@h")),
        (("queue_name",), LabelSet("add", "q")),
        ((), LabelSet("add")),
        (("worker",), LabelSet("add", "", "w@h")),
    ],
)
def test_sums_are_added_up_over_labels_that_are_no_longer_in_use(labels, label_set):
    driver = restarted(driver_after(*LIFE, labels=("queue_name", "worker")), labels=labels)
    assert driver.aggregates.snapshot()[label_set].transitions[3] == 1
    assert sum(aggregate.transitions[0] for aggregate in driver.aggregates.snapshot().values()) == 1


def test_a_new_label_is_unknown_for_earlier_sums():
    driver = restarted(driver_after(*LIFE, labels=()), labels=("queue_name",))
    assert set(driver.aggregates.snapshot()) == {LabelSet("add", "unknown")}


NAMES = ["job-1", "job-2", "shop", "mail"]


@pytest.mark.parametrize(
    ("renamed", "shown"),
    [
        (False, {"job-1": 1, "job-2": 1, "shop": 1, "mail": 1, "unknown": 1, "other": 1}),
        (True, {"job": 2, "": 1, "mail": 1, "unknown": 1, "other": 1}),
    ],
)
def test_new_name_rules_apply_to_earlier_sums(renamed, shown):
    old = driver_after(
        *(started(name, at=1) for name in (*NAMES, "nameless")), labels=("queue_name", "worker")
    )
    old.apply(*(sent(name, name=name) for name in NAMES))
    old.wait(3)
    old.aggregates.count_transition(LabelSet("other", "other", "other"), State.STARTED, T0)
    saved = saved_cluster(old)
    rules = shown_as(None, re.compile("shop|unknown|other"), [(re.compile("job-.*"), "job")])
    driver = ClusterDriver(labels=("queue_name", "worker"), show=rules)
    if renamed:
        driver.cluster.label_sets.renamed = True
    state.restore(saved, driver.cluster, driver.timestamp())
    aggregates = driver.aggregates.snapshot()
    started_tasks = {
        label_set.task_name: aggregate.transitions[State.STARTED]
        for label_set, aggregate in aggregates.items()
        if label_set.worker or label_set == EXCLUDED
    }
    assert started_tasks == shown
    assert (EXCLUDED in aggregates) is renamed
    assert {label_set.queue_name for label_set in aggregates if label_set.task_name in NAMES} <= {"q"}


def test_a_full_table_of_label_sets_is_restored_with_the_same_ones():
    old = ClusterDriver(Limits(max_series=24))
    for number in range(5):
        old.apply(sent(f"u{number}", name=f"task{number}"))
    driver = restarted(old)
    driver.apply(sent("u9", name="task9"))
    assert set(driver.aggregates.snapshot()) == set(old.aggregates.snapshot())
    assert driver.counts()["other", "other", "PENDING"] == 3


@pytest.mark.parametrize("labels", [("queue_name",), ("queue_name", "worker")])
@pytest.mark.parametrize("events", [LIFE, LIFE[1:]], ids=["sent", "not-sent"])
def test_an_idle_series_without_tasks_is_removed_after_a_restart_too(labels, events):
    old = driver_after(*events, limits=Limits(series_ttl=200), labels=labels)
    old.wait(150)
    driver = restarted(old)
    driver.wait(190)
    assert driver.by_state()["SUCCESS"] == 1
    driver.wait(20)
    assert driver.by_state("other")["SUCCESS"] == 1


def test_excluded_tasks_stay_excluded():
    old = driver_after(sent(name="noise"), show=lambda _: "")
    driver = restarted(old)
    assert set(driver.aggregates.snapshot()) == {EXCLUDED}
    assert driver.shown().aggregates == {}


def test_histograms_with_other_bounds_start_at_zero_and_counters_continue():
    old = driver_after(*LIFE)
    driver = ClusterDriver(aggregates=Aggregates((2.0,), (0.1, 1.0, 10.0)))
    state.restore(saved_cluster(old), driver.cluster, driver.timestamp())
    aggregate = driver.aggregate()
    assert aggregate.transitions[3] == 1
    assert aggregate.runtime == {}
    assert sum(aggregate.queue_wait.counts) == 1


@pytest.mark.parametrize("wrong", ["runtime", "queue_wait", "prefetch_wait"])
def test_a_histogram_with_missing_buckets_is_rejected(wrong):
    old = driver_after(*LIFE)
    saved = saved_cluster(old)
    aggregate = saved.aggregates[LabelSet("add", "q")]
    (aggregate.runtime[State.SUCCESS] if wrong == "runtime" else getattr(aggregate, wrong)).counts.pop()
    driver = ClusterDriver()
    with pytest.raises(ValueError, match="buckets"):
        state.restore(saved, driver.cluster, driver.timestamp())


def test_counters_of_the_exporter_continue():
    old = driver_after(received(at=9), sent(at=10), started("u2"), limits=Limits(max_series=8))
    old.wait(3)
    old.cluster.tasks.evicted, old.aggregates.negative_waits = 7, 3
    old.cluster.limit_rejections.update(worker=2, queue=1)
    driver = restarted(old)
    assert driver.cluster.limit_rejections == {"worker": 2, "queue": 1}
    assert driver.cluster.events == old.cluster.events
    assert driver.cluster.fallbacks == old.cluster.fallbacks
    assert driver.cluster.queues.names() == ["q"]
    assert (driver.cluster.tasks.evicted, driver.aggregates.negative_waits) == (7, 3)
    assert driver.cluster.label_sets.overflowed >= old.cluster.label_sets.overflowed > 0


@pytest.mark.parametrize(("queue", "counted"), [("mail", "mail"), ("other", "other"), (None, "unknown")])
def test_after_a_restart_tasks_wait_for_the_answers_of_workers(queue, counted):
    """A worker may have restarted with another queue meanwhile."""
    old = driver_after(heartbeat())
    old.cluster.record_inspection({"w@h": WorkerInfo(queues=("mail",), pool="solo")}, old.timestamp())
    driver = restarted(old)
    assert driver.cluster.registry.uninspected.keys() == {"w@h"}
    driver.apply(received())
    driver.wait(5)
    assert driver.counts() == {}
    if queue is not None:
        driver.cluster.record_inspection(
            {"w@h": WorkerInfo(queues=(queue,), pool="solo")}, driver.timestamp()
        )
    driver.wait(REPLY_SECONDS)
    assert driver.counts() == {("add", counted, "RECEIVED"): 1}


def test_a_broadcast_is_recognised_after_a_restart():
    bindings = (Binding("bcast.1", "all", "fanout", "celery", "all"),)
    old = driver_after(heartbeat())
    old.cluster.record_inspection(
        {"w@h": WorkerInfo(queues=("bcast.1",), bindings=bindings)}, old.timestamp()
    )
    old.apply(sent(queue="bcast.2", exchange="all", routing_key="celery"), received(host="a@h"))
    driver = restarted(old)
    driver.apply(received(host="b@h"), sent("u2", queue="bcast.3", exchange="all", routing_key="celery"))
    assert driver.counts() == {("add", "all", "PENDING"): 2, ("add", "all", "RECEIVED"): 2}
    assert driver.aggregate(queue="all").redeliveries == 0


def test_a_beat_that_is_down_is_known_after_a_restart():
    """Otherwise its alert would end."""
    old = driver_after(heartbeat())
    old.cluster.beats.record_replies(["celerybeat@h"], old.timestamp())
    replied = old.timestamp().wall
    for _ in range(MAX_UNANSWERED):
        old.wait(10)
        old.cluster.beats.record_replies([], old.timestamp())
    (beat,) = restarted(old).shown().beats
    assert (beat.name, beat.up, beat.last_reply) == ("celerybeat@h", False, replied)


def expecting(*runs: float, seconds: float) -> ClusterDriver:
    """Return a driver that expects a task every minute, after runs and as many seconds of watching."""
    driver = ClusterDriver(expected=[ExpectedTask("add", Every(60.0), grace=30.0)])
    begin = driver.now
    for second in range(int(seconds)):
        driver.now = begin + second
        driver.apply(*(sent(f"u{run}", at=driver.now) for run in runs if run == second))
        driver.cluster.watch_expected(driver.timestamp())
    return driver


def overdue_and_due(driver: ClusterDriver) -> list[tuple[bool, float]]:
    return [(view.overdue, view.due - T0 - 100) for view in driver.shown().expected]


def test_an_overdue_task_and_the_last_run_survive_a_restart():
    old = expecting(10, seconds=120)
    assert overdue_and_due(old) == [(True, 70), (True, 60)]
    new = restarted(old, away=5, expected=[watch.task for watch in old.cluster.expected.watches[:1]])
    assert overdue_and_due(new) == [(True, 70), (True, 60)]
    new.cluster.watch_expected(new.timestamp())
    assert {view.last for view in new.shown().expected} == {T0 + 110, None}


def test_a_file_without_expected_tasks_begins_to_watch_them():
    old = driver_after(sent())
    new = restarted(old, away=1e6, expected=[ExpectedTask("add", Every(60.0))])
    wall = new.timestamp().wall
    new.cluster.watch_expected(new.timestamp())
    assert {(view.overdue, view.due) for view in new.shown().expected} == {(False, wall + 60)}


def test_records_have_watches_only_if_one_changed():
    driver = expecting(10, seconds=20)
    recorder = Recorder(driver.cluster)
    assert recorder.changes(driver.timestamp()).watches is not None
    driver.now += 2
    wall = driver.timestamp().wall
    driver.cluster.watch_expected(driver.timestamp())
    changes = recorder.changes(driver.timestamp())
    assert (changes.watches, changes.watched) == (None, wall)


def test_shadow_names_survive_a_restart():
    old = driver_after(heartbeat())
    old.cluster.record_inspection({"w@h": WorkerInfo(registered=("add",))}, old.timestamp())
    old.apply(sent(), received(name="shadow"))
    driver = restarted(old)
    driver.apply(received("u2", name="shadow"))
    driver.wait(3)
    assert driver.counts()["add", "unknown", "RECEIVED"] == 1


def measured(name: str = "add", **fields: float) -> dict:
    return task_event("measured", name=name, fields=fields)


def test_measurements_survive_a_restart():
    old = driver_after(measured(size=2, share=0.5), measured("mul", size=1), limits=Limits(max_series=2))
    records = StateRecords(old)
    old.apply(measured(size=3), measured("div", size=1))
    records.save()
    driver = ClusterDriver(Limits(max_series=4))
    state.restore(records.saved, driver.cluster, driver.timestamp())
    assert driver.shown().measurements == old.shown().measurements
    assert driver.cluster.measurements.overflowed == old.cluster.measurements.overflowed == 2
    assert driver.cluster.events["task-measured"] == 4
    driver.apply(measured(size=4))
    assert driver.shown().measurements["add", "size"] == Summary(3, 9.0)


def test_idle_measurements_are_removed_after_a_restart_too():
    old = driver_after(measured(size=2), limits=Limits(series_ttl=100))
    records = StateRecords(old)
    old.wait(50)
    records.save()
    driver = ClusterDriver(Limits(series_ttl=100))
    state.restore(records.saved, driver.cluster, driver.timestamp())
    driver.wait(90)
    records = StateRecords(driver)
    assert records.saved.measurements.keys() == {("add", "size")}
    driver.wait(20)
    records.save()
    assert records.saved.measurements == {REST: Summary(1, 2.0)}


@pytest.mark.parametrize("is_renamed", [False, True])
def test_new_name_rules_apply_to_earlier_measurements(is_renamed):
    names = ["job-1", "job-2", "shop", "unknown", "other"]
    old = driver_after(*(measured(name, size=1) for name in names))
    rules = shown_as(None, re.compile("shop|unknown|other"), [(re.compile("job-.*"), "job")])
    driver = ClusterDriver(show=rules)
    driver.cluster.label_sets.renamed = is_renamed
    state.restore(saved_cluster(old), driver.cluster, driver.timestamp())
    counts = {name: summary.count for (name, _), summary in driver.shown().measurements.items()}
    shown = {"job": 2} if is_renamed else {"job-1": 1, "job-2": 1, "shop": 1}
    assert counts == shown | {"unknown": 1, "other": 1}


def test_a_smaller_limit_adds_earlier_measurements_to_other():
    old = driver_after(
        *(measured(f"job-{number}", size=1) for number in range(5)), limits=Limits(max_series=4)
    )
    driver = ClusterDriver(Limits(max_series=2))
    state.restore(saved_cluster(old), driver.cluster, driver.timestamp())
    counts = {pair: summary.count for pair, summary in driver.shown().measurements.items()}
    assert counts == {("job-0", "size"): 1, ("job-1", "size"): 1, REST: 3}


def test_a_file_from_before_measurements_is_read():
    driver = driver_after(*LIFE)
    encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode
    changes = decode(encode(Recorder(driver.cluster).changes(driver.timestamp())))
    for name in ("measurements", "removed_measurements"):
        del changes[name]
    del changes["sums"]["measurements_overflowed"]
    saved = SavedCluster()
    saved.apply(decode(encode(changes), type=Changes))
    new = ClusterDriver()
    state.restore(saved, new.cluster, new.timestamp())
    assert new.by_state() == driver.by_state()


def test_deferred_events_are_stored_without_arguments_and_ancestry():
    driver = ClusterDriver(records=RecordBuilder(Aggregates((), ()), arguments=True))
    event = received(args="('SECRET',)", root_id="ROOT")
    for decoded in decode(json.dumps(event).encode(), EventWithArguments):
        driver.cluster.apply(decoded, driver.timestamp())
    recorder = state.Recorder(driver.cluster)
    recorder.changes(driver.timestamp())
    stored = msgspec.msgpack.encode(recorder.tasks(["u1"], driver.timestamp()))
    assert b"u1" in stored
    assert b"SECRET" not in stored
    assert b"ROOT" not in stored
