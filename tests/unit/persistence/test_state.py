"""A restart changes nothing: what is put back goes on as if it had never been taken out."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.limits import Limits
from celery_exporter.core.routing import Binding
from celery_exporter.core.task_names import shown_as
from celery_exporter.core.types import EXCLUDED, LabelSet, State
from celery_exporter.core.worker_registry import ANSWER_SECONDS
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.persistence import state as memory
from celery_exporter.persistence.state import SavedCluster
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
from unit.core.test_cluster import LIFE, RETRY_LIFE, RIGHT, anything

from .state_records import Kept, remembered


def restarted(
    old: ClusterDriver, away: float = 0.0, clock: float = 0.0, kept: SavedCluster | None = None, **changed
) -> ClusterDriver:
    """Return a story that goes on from what the old one left, through the bytes of a state file."""
    usual = {"limits": old.cluster.limits, "labels": old.labels, "clients": old.clients}
    new = ClusterDriver(**{**usual, **changed})
    new.now, new.epoch = clock, old.epoch + old.now + away - clock
    memory.restore(kept or remembered(old), new.cluster, new.moment())
    return new


def test_tasks_that_were_heard_of_at_one_time_stay_in_their_order():
    driver = ClusterDriver()
    driver.apply(*(sent(f"u{number}", at=number) for number in range(600)))
    (bucket,) = restarted(driver).cluster.tasks.occupied(State.PENDING)
    assert list(bucket.tasks) == [f"u{number}" for number in range(600)]


def seen(driver: ClusterDriver) -> tuple:
    workers = {
        name: (worker.up, worker.pid, worker.processed_total, worker.restarts, worker.missed, worker.events)
        for name, worker in driver.cluster.workers.items()
    }
    aggregates = {key: msgspec.to_builtins(aggregate) for key, aggregate in driver.ledger.snapshot().items()}
    return aggregates, driver.gauges(), workers, driver.cluster.fallbacks, len(driver.cluster.tasks)


tales = st.lists(
    st.tuples(
        anything
        | st.builds(heartbeat, st.sampled_from(["a@h", "b@h"]), st.floats(0, 9), processed=st.integers(0, 9)),
        st.sampled_from([0.0, 0.5, 3.0, 70.0]),
    ),
    max_size=16,
)


@settings(max_examples=300)
@given(tales, tales, st.sets(st.integers(0, 15)))
def test_invariant_5_whatever_happened_a_restart_in_between_changes_no_sum(before, after, saves):
    """However often it was saved: each record holds all that changed since the one before."""
    whole = ClusterDriver(labels=("queue_name", "worker"))
    kept = Kept(whole)
    for number, (event, pause) in enumerate(before):
        whole.apply(event)
        whole.wait(pause)
        if number in saves:
            kept.save()
    kept.save()
    broken = restarted(whole, clock=whole.now, kept=kept.memory)
    for event, pause in after:
        for driver in (whole, broken):
            driver.apply(event)
            driver.wait(pause)
    for driver in (whole, broken):
        driver.wait(3)
    assert seen(broken) == seen(whole)


def test_an_unfinished_task_keeps_its_name_its_queue_and_its_times():
    driver = restarted(told(sent(), received(at=1), started(at=2)), away=60)
    assert driver.gauges() == {"STARTED": 1}
    driver.apply(failed(at=5))
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 1, "STARTED": 1, "FAILURE": 1}
    assert driver.aggregate().queue_wait.total == 2.0
    assert [histogram.total for histogram in driver.aggregate().runtime.values()] == [3.0]


def test_which_clients_sent_is_known_after_a_restart_and_goes_on():
    old = told(sent(), sent("u2", hostname="gen2@web"), clients=True)
    driver = restarted(old)
    assert driver.aggregate().clients == {"h": 1, "web": 1}
    driver.apply(sent("u3", hostname="gen3@web"))
    assert driver.aggregate().clients == {"h": 1, "web": 2}


def test_clients_that_nobody_shows_any_more_are_forgotten():
    driver = restarted(told(sent(), clients=True), clients=False)
    assert driver.aggregate().clients == {}
    assert driver.aggregate().transitions[State.PENDING] == 1


def test_clients_add_up_when_a_label_that_told_tasks_apart_is_not_in_use_any_more():
    old = told(sent(), sent("u2", queue="r"), sent("u3", queue="r", hostname="c@web"), clients=True)
    driver = restarted(old, labels=())
    assert driver.aggregate(queue="").clients == {"h": 2, "web": 1}


def told(*events: dict, **options) -> ClusterDriver:
    driver = ClusterDriver(**options)
    driver.apply(*events)
    return driver


LIVES = {
    "a retry that comes back to the same queue": RETRY_LIFE,
    "a retry that goes elsewhere": RIGHT,
    "a retry that another worker is heard of with first": [
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
def test_invariant_5_a_restart_anywhere_in_a_life_changes_nothing(life, cut, clock):
    told_before, told_after = LIVES[life][:cut], LIVES[life][cut:]
    whole = told(*told_before, labels=("queue_name", "worker"))
    broken = restarted(whole, clock=clock)
    for driver in (whole, broken):
        for event in told_after:
            driver.apply(event)
            driver.wait(0.25)
    assert seen(broken) == seen(whole)


def test_what_waits_with_nothing_is_not_taken():
    kept = remembered(told(sent(), received()))
    task = kept.tasks["u1"]
    kept.tasks["u2"] = msgspec.structs.replace(task, uuid="u2", label_set=None, state=None, deferred=None)
    driver = restarted(ClusterDriver(), kept=kept)
    assert driver.gauges() == {"RECEIVED": 1}
    assert driver.cluster.tasks.uuids() == ["u1"]


@pytest.mark.parametrize("clock", [0.0, 500.0])
def test_a_retry_that_waited_for_its_task_sent_waits_for_the_rest_of_the_window(clock):
    old = told(sent(), received(), started(), retried(), received(at=1, retries=1))
    old.wait(1)
    driver = restarted(old, clock=clock)
    driver.wait(0.75)
    assert driver.gauges() == {"RETRY": 1}
    driver.wait(0.75)
    assert driver.gauges() == {"RECEIVED": 1}


def test_a_receipt_that_waits_and_may_be_of_other_work_waits_on_after_a_restart():
    old = told(sent(name="add"), received(at=1, name="mul", retries=1))
    driver = restarted(old, clock=old.now)
    assert list(driver.cluster.tasks.awaiting_sent) == ["u1"]
    for each in (old, driver):
        each.apply(started(at=2), succeeded(at=3))
        each.wait(3)
    assert seen(driver) == seen(old)


def test_a_receipt_that_waits_is_applied_no_later_after_a_restart():
    old = told(sent(), sent(retries=1, at=1), received(at=1, retries=2))
    old.wait(1)
    old.apply(sent(retries=5, at=3))
    driver = restarted(old, clock=old.now)
    for each in (old, driver):
        each.wait(1.25)
        assert not each.cluster.tasks.awaiting_sent


def test_a_worker_process_that_was_silent_before_a_restart_is_as_silent_after_it():
    old = told(heartbeat("a@h", processed=1), heartbeat("a@h", processed=0))
    old.wait(70)
    driver = restarted(old, clock=old.now)
    for each in (old, driver):
        each.apply(*(heartbeat("a@h", at=at, processed=count) for at, count in ((0, 1), (5, 0), (5, 0))))
    assert seen(driver) == seen(old)


@pytest.mark.parametrize("pids", [(1, 1, 1), (7, 8, 9)])
@pytest.mark.parametrize("before", [1, 2, 4, 5, 7, 30])
def test_processes_of_one_name_are_told_apart_after_a_restart_as_before(before, pids):
    old = ClusterDriver()
    for beat in range(before):
        told_by_one_of_three(old, beat, pids)
    driver = restarted(old, clock=old.now)
    for each in (old, driver):
        for beat in range(before, before + 30):
            told_by_one_of_three(each, beat, pids)
    assert seen(driver) == seen(old)
    worker = driver.cluster.workers["w@h"]
    assert (worker.processed_total, worker.restarts, worker.shared) == (3 * 500 + 30 + before, 0, True)


def told_by_one_of_three(driver: ClusterDriver, beat: int, pids: tuple[int, ...]) -> None:
    """Tell the next heartbeat of three processes that do the same work."""
    driver.apply(heartbeat(at=driver.now, pid=pids[beat % 3], processed=501 + beat // 3))
    driver.wait(2 / 3)


def test_tasks_of_one_worker_share_its_name_after_a_restart_as_before():
    old = told(heartbeat("a@h"), *(sent(f"u{number}") for number in range(2)))
    old.apply(*(received(f"u{number}", host="a@h") for number in range(2)), received("u1", host="b@h"))
    old.wait(2.5)
    del old.cluster.workers["b@h"]
    driver = restarted(old)
    name = driver.cluster.workers["a@h"].name
    histories = [driver.cluster.tasks.get(uuid).history() for uuid in ("u0", "u1")]
    deliveries = [delivery for history in histories for delivery in history.deliveries]
    assert [each.worker for each in deliveries] == ["a@h", "a@h", "b@h"]
    assert all(each.worker is name for each in deliveries[:2])


def test_tasks_of_a_worker_that_was_restarted_are_those_of_its_processes_after_a_restart_of_ours_too():
    events = [
        event(uuid, pid=pid) for uuid, pid in (("u1", 4711), ("u2", 4712)) for event in (sent, received)
    ]
    driver = restarted(told(*events))
    assert [driver.cluster.tasks.get(uuid).pid for uuid in ("u1", "u2")] == [4711, 4712]
    assert driver.cluster.tasks.get("u2").pid is driver.cluster.workers["w@h"].task_pid


def test_an_idle_series_is_given_up_after_a_restart_too():
    old = told(*LIFE, limits=Limits(series_ttl=200))
    old.wait(50)
    driver = restarted(old)
    driver.wait(145)
    assert driver.by_state()["SUCCESS"] == 1
    driver.wait(60)
    assert driver.by_state("other")["SUCCESS"] == 1


@pytest.mark.parametrize("labels", [("queue_name",), ("queue_name", "worker")])
@pytest.mark.parametrize("events", [LIFE, LIFE[1:]], ids=["sent", "not-sent"])
def test_invariant_5_the_gauges_after_a_restart_are_those_of_before(labels, events):
    old = told(*events, labels=labels)
    old.wait(3)
    driver = restarted(old)
    assert {group.label_set for group in driver.shown().tasks} == {
        group.label_set for group in old.shown().tasks
    }
    assert driver.shown().series == old.shown().series


def test_an_unfinished_task_that_is_older_than_its_time_is_dropped():
    limits = Limits(task_ttl=100)
    old = told(sent("u1"), limits=limits)
    old.wait(60)
    old.apply(sent("u2"))
    driver = restarted(old, away=60)
    assert driver.gauges() == {"PENDING": 1}
    driver.apply(received("u2"))
    assert driver.gauges() == {"RECEIVED": 1}


def test_invariant_5_what_waits_for_its_task_sent_counts_after_a_long_time_away():
    old = told(sent(), received(), started(), retried(), received(retries=1), limits=Limits(task_ttl=100))
    driver = restarted(old, away=1_000)
    driver.wait(3)
    assert driver.by_state()["RECEIVED"] == 2


def test_the_time_away_makes_no_worker_silent():
    old = told(heartbeat(), limits=Limits(worker_timeout=60))
    old.wait(50)
    driver = restarted(old, away=1_000_000)
    driver.wait(9)
    assert driver.cluster.workers["w@h"].up
    driver.wait(3)
    assert not driver.cluster.workers["w@h"].up


def test_a_worker_that_was_down_is_forgotten_when_it_would_have_been():
    old = told(heartbeat(), limits=Limits(worker_timeout=10, purge_offline_worker_metrics=60))
    old.wait(50)
    driver = restarted(old, away=1_000)
    driver.wait(15)
    assert not driver.cluster.workers["w@h"].up
    driver.wait(10)
    assert driver.cluster.workers == {}


def test_a_late_goodbye_brings_back_no_worker_that_was_forgotten_before_a_restart_or_two():
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10))
    driver.apply(heartbeat(), heartbeat("x@h"))
    driver.wait(30)
    for _ in range(2):
        driver = restarted(driver)
        driver.apply(heartbeat(kind="offline"))
        assert driver.cluster.workers == {}
    driver.apply(heartbeat(), heartbeat(kind="offline"))
    assert driver.cluster.workers["w@h"].left


def test_a_clock_that_was_set_back_makes_no_task_younger_or_older():
    old = told(sent(), limits=Limits(task_ttl=10))
    old.wait(9)
    driver = restarted(old, away=-100)
    driver.wait(0.75)
    assert driver.gauges() == {"PENDING": 1}
    driver.wait(2)
    assert driver.gauges() == {}


def test_what_was_started_while_we_were_away_is_missed():
    old = told(heartbeat(at=0, processed=5), started(at=1), heartbeat(at=2, processed=6))
    driver = restarted(old, away=60)
    driver.apply(heartbeat(at=62, processed=26), heartbeat(at=64, processed=26))
    assert driver.cluster.workers["w@h"].missed == 20
    assert driver.cluster.workers["w@h"].processed_total == 26


def test_events_that_waited_for_their_task_sent_wait_on():
    driver = restarted(told(received(), started()), away=10)
    driver.wait(1.75)
    driver.apply(sent(), succeeded())
    assert driver.counts() == {
        ("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }


def test_a_late_event_of_a_finished_task_finds_its_tombstone():
    driver = restarted(told(*LIFE), away=5)
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
    ("labels", "key"),
    [
        (("queue_name", "worker"), LabelSet("add", "q", "w@h")),
        (("queue_name",), LabelSet("add", "q")),
        ((), LabelSet("add")),
        (("worker",), LabelSet("add", "", "w@h")),
    ],
)
def test_labels_that_are_not_in_use_any_more_are_summed_away(labels, key):
    driver = restarted(told(*LIFE, labels=("queue_name", "worker")), labels=labels)
    assert driver.ledger.snapshot()[key].transitions[3] == 1
    assert sum(aggregate.transitions[0] for aggregate in driver.ledger.snapshot().values()) == 1


def test_a_label_that_is_new_has_no_value_for_the_sums_of_before():
    driver = restarted(told(*LIFE, labels=()), labels=("queue_name",))
    assert set(driver.ledger.snapshot()) == {LabelSet("add", "unknown")}


NAMES = ["job-1", "job-2", "shop", "mail"]


@pytest.mark.parametrize(
    ("renamed", "shown"),
    [
        (False, {"job-1": 1, "job-2": 1, "shop": 1, "mail": 1, "unknown": 1, "other": 1}),
        (True, {"job": 2, "": 1, "mail": 1, "unknown": 1, "other": 1}),
    ],
)
def test_rules_for_names_apply_to_the_sums_of_before_when_they_are_new(renamed, shown):
    old = told(*(started(name, at=1) for name in (*NAMES, "nameless")), labels=("queue_name", "worker"))
    old.apply(*(sent(name, name=name) for name in NAMES))
    old.wait(3)
    old.ledger.count_transition(LabelSet("other", "other", "other"), State.STARTED, T0)
    kept = remembered(old)
    rules = shown_as(None, re.compile("shop|unknown|other"), [(re.compile("job-.*"), "job")])
    driver = ClusterDriver(labels=("queue_name", "worker"), show=rules)
    if renamed:
        driver.cluster.label_sets.renamed = True
    memory.restore(kept, driver.cluster, driver.moment())
    aggregates = driver.ledger.snapshot()
    began = {
        key.task_name: aggregate.transitions[State.STARTED]
        for key, aggregate in aggregates.items()
        if key.worker or key == EXCLUDED
    }
    assert began == shown
    assert (EXCLUDED in aggregates) is renamed
    assert {key.queue_name for key in aggregates if key.task_name in NAMES} <= {"q"}


def test_a_full_table_of_label_sets_is_full_of_the_same_ones():
    old = ClusterDriver(Limits(max_series=24))
    for number in range(5):
        old.apply(sent(f"u{number}", name=f"task{number}"))
    driver = restarted(old)
    driver.apply(sent("u9", name="task9"))
    assert set(driver.ledger.snapshot()) == set(old.ledger.snapshot())
    assert driver.counts()["other", "other", "PENDING"] == 3


@pytest.mark.parametrize("labels", [("queue_name",), ("queue_name", "worker")])
@pytest.mark.parametrize("events", [LIFE, LIFE[1:]], ids=["sent", "not-sent"])
def test_an_idle_series_whose_tasks_are_forgotten_is_given_up_after_a_restart_too(labels, events):
    old = told(*events, limits=Limits(series_ttl=200), labels=labels)
    old.wait(150)
    driver = restarted(old)
    driver.wait(190)
    assert driver.by_state()["SUCCESS"] == 1
    driver.wait(20)
    assert driver.by_state("other")["SUCCESS"] == 1


def test_hidden_tasks_stay_hidden():
    old = told(sent(name="noise"), show=lambda _: "")
    driver = restarted(old)
    assert set(driver.ledger.snapshot()) == {EXCLUDED}
    assert driver.shown().aggregates == {}


def test_histograms_over_other_bounds_begin_anew_and_counters_go_on():
    old = told(*LIFE)
    driver = ClusterDriver(ledger=Aggregates((2.0,), (0.1, 1.0, 10.0)))
    kept = remembered(old)
    memory.restore(kept, driver.cluster, driver.moment())
    aggregate = driver.aggregate()
    assert aggregate.transitions[3] == 1
    assert aggregate.runtime == {}
    assert sum(aggregate.queue_wait.counts) == 1


@pytest.mark.parametrize("wrong", ["runtime", "queue_wait", "prefetch_wait"])
def test_a_histogram_without_the_buckets_it_should_have_is_refused(wrong):
    old = told(*LIFE)
    kept = remembered(old)
    aggregate = kept.aggregates[LabelSet("add", "q")]
    (aggregate.runtime[State.SUCCESS] if wrong == "runtime" else getattr(aggregate, wrong)).counts.pop()
    driver = ClusterDriver()
    with pytest.raises(ValueError, match="buckets"):
        memory.restore(kept, driver.cluster, driver.moment())


def test_counters_of_our_own_go_on():
    old = told(received(at=9), sent(at=10), started("u2"), limits=Limits(max_series=8))
    old.wait(3)
    old.cluster.tasks.evicted, old.ledger.negative_waits = 7, 3
    old.cluster.limit_rejections.update(worker=2, queue=1)
    driver = restarted(old)
    assert driver.cluster.limit_rejections == {"worker": 2, "queue": 1}
    assert driver.cluster.events == old.cluster.events
    assert driver.cluster.fallbacks == old.cluster.fallbacks
    assert driver.cluster.queues.names() == ["q"]
    assert (driver.cluster.tasks.evicted, driver.ledger.negative_waits) == (7, 3)
    assert driver.cluster.label_sets.overflowed >= old.cluster.label_sets.overflowed > 0


@pytest.mark.parametrize(("queue", "booked"), [("mail", "mail"), ("other", "other"), (None, "unknown")])
def test_tasks_wait_for_what_workers_answer_now(queue, booked):
    """The worker may have restarted with another queue meanwhile."""
    old = told(heartbeat())
    old.cluster.record_inspection({"w@h": WorkerInfo(queues=("mail",), pool="solo")}, old.moment())
    driver = restarted(old)
    assert driver.cluster.registry.uninspected.keys() == {"w@h"}
    driver.apply(received())
    driver.wait(5)
    assert driver.counts() == {}
    if queue is not None:
        driver.cluster.record_inspection({"w@h": WorkerInfo(queues=(queue,), pool="solo")}, driver.moment())
    driver.wait(ANSWER_SECONDS)
    assert driver.counts() == {("add", booked, "RECEIVED"): 1}


def test_a_broadcast_is_one_after_a_restart_too():
    bindings = (Binding("bcast.1", "all", "fanout", "celery", "all"),)
    old = told(heartbeat())
    old.cluster.record_inspection({"w@h": WorkerInfo(queues=("bcast.1",), bindings=bindings)}, old.moment())
    old.apply(sent(queue="bcast.2", exchange="all", routing_key="celery"), received(host="a@h"))
    driver = restarted(old)
    driver.apply(received(host="b@h"), sent("u2", queue="bcast.3", exchange="all", routing_key="celery"))
    assert driver.counts() == {("add", "all", "PENDING"): 2, ("add", "all", "RECEIVED"): 2}
    assert driver.aggregate(queue="all").redeliveries == 0


def test_shadow_names_are_known_after_a_restart():
    old = told(heartbeat())
    old.cluster.record_inspection({"w@h": WorkerInfo(registered=("add",))}, old.moment())
    old.apply(sent(), received(name="shadow"))
    driver = restarted(old)
    driver.apply(received("u2", name="shadow"))
    driver.wait(3)
    assert driver.counts()["add", "unknown", "RECEIVED"] == 1
