"""What is known of one task agrees with its events, its records and its state."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_exporter.core import records
from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.limits import Limits
from celery_exporter.core.records import ATTEMPT_ENDS, Record, RecordBuilder
from celery_exporter.core.task_details import MAX_ATTEMPTS_KEPT
from celery_exporter.core.task_info import LOST, OPEN_STATE_NAMES, STATE_NAMES, TaskInfo, task_info
from celery_exporter.core.task_search import find
from celery_exporter.core.types import State

from .cluster_driver import (
    T0,
    ClusterDriver,
    failed,
    received,
    rejected,
    retried,
    sent,
    started,
    succeeded,
    task_event,
)
from .lives import OVERLAPPING_RETRY, RETRY_ELSEWHERE, RETRY_LIFE, any_task_event


def driver_with_details(limits: Limits | None = None, kept_tasks: int = 100, **options) -> ClusterDriver:
    aggregates = Aggregates((), ())
    builder = RecordBuilder(aggregates, **options)
    return ClusterDriver(limits, aggregates=aggregates, records=builder, kept_tasks=kept_tasks)


def info_of(*events: dict, uuid: str = "u1") -> TaskInfo:
    driver = driver_with_details()
    driver.apply(*events)
    driver.wait(2.5)
    return find(driver.cluster.tasks, [uuid])[0]


def test_a_task_that_succeeded_has_all_of_its_times():
    ids = {"root_id": "r1", "parent_id": "p1"}
    info = info_of(sent(**ids), received(at=0.5, **ids), started(at=3), succeeded(at=7, runtime=3.5))
    (attempt,) = info.attempts
    assert (info.task_name, info.queue_name, info.state, info.since) == ("add", "q", "SUCCESS", T0 + 7)
    assert (info.worker, info.client, info.root_id, info.parent_id) == ("w@h", "client@h", "r1", "p1")
    times = (info.first_sent, attempt.sent, attempt.received, attempt.started, attempt.ended)
    assert [time and time - T0 for time in times] == [0, 0, 0.5, 3, 7]
    assert (attempt.queue_wait_seconds, attempt.prefetch_wait_seconds) == (3, 2.5)
    assert (info.runtime_seconds, attempt.runtime_seconds, attempt.worker) == (3.5, 3.5, "w@h")


def test_a_failure_names_its_exception_and_its_runtime_is_that_of_its_times():
    info = info_of(sent(), received(), started(at=1), failed(at=4))
    assert (info.state, info.exception, info.runtime_seconds) == ("FAILURE", "ValueError", 3)


def test_an_open_task_says_what_it_waits_for():
    assert [(each.state, each.worker) for each in info_of(sent()).attempts] == [("PENDING", None)]
    waiting = info_of(sent(eta="2033-01-01T00:00:00+00:00"), received())
    assert (waiting.state, waiting.worker, waiting.attempts[-1].eta) == ("RECEIVED", "w@h", 1_988_150_400)
    running = info_of(sent(), received(), started())
    assert (running.state, running.attempts[-1].ended, running.runtime_seconds) == ("STARTED", None, None)


def test_each_attempt_of_a_retried_task_is_there():
    for events, worker, queue in ((RETRY_LIFE, "w@h", "q"), (RETRY_ELSEWHERE, "r@h", "right")):
        info = info_of(*events)
        seen = [(each.retries, each.state, each.worker, each.queue_name) for each in info.attempts]
        assert seen == [(0, "RETRY", "w@h", "q"), (1, "SUCCESS", worker, queue)]
        assert all(None not in {each.sent, each.received, each.started, each.ended} for each in info.attempts)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_task_that_is_first_seen_in_its_first_attempt_has_all_of_the_next_one(cut):
    """The end of an attempt is not taken for that of the next one, which its worker has received by then."""
    info = info_of(*OVERLAPPING_RETRY[cut:])
    (retry,) = [attempt for attempt in info.attempts if attempt.state == "RETRY"]
    assert (retry.retries or 0, retry.ended, retry.queue_wait_seconds) == (0, T0 + 1, None)
    last = next(attempt for attempt in info.attempts if attempt.retries == 1)
    assert last == info_of(*OVERLAPPING_RETRY).attempts[1]
    assert last.queue_wait_seconds == T0 + 2 - (T0 + 0.8)


def test_a_task_that_waits_for_its_retry_has_a_pending_attempt():
    info = info_of(sent(), received(), started(), retried(at=1), sent(at=1.1, retries=1))
    assert info.state == "RETRY"
    assert [(each.retries, each.state) for each in info.attempts] == [(0, "RETRY"), (1, "PENDING")]


def test_a_task_that_was_revoked_before_its_receipt_has_one_attempt():
    """Its worker sends no task-received, as for a task that it does not register."""
    for end in (task_event("revoked", at=1), failed(at=1, exception="NotRegistered('add')")):
        (attempt,) = info_of(sent(), end).attempts
        assert (attempt.retries, attempt.sent, attempt.ended) == (0, T0, T0 + 1)


def test_a_task_that_failed_and_was_rejected_has_one_attempt_which_ended_first():
    """Celery 5.7 reports both for `Reject`, and with `acks_on_failure_or_timeout = False`."""
    failure, rejection = failed(at=1, exception="reject requeue=False: no"), rejected(at=1.001)
    for events, state in (((failure, rejection), "FAILURE"), ((rejection, failure), "REJECTED")):
        for first in ((sent(), received(), started()), ()):
            info = info_of(*first, *events)
            assert [(each.state, each.exception) for each in info.attempts] == [(state, "Reject")]
            assert (info.state, info.exception) == (state, "Reject")
            assert info.since == info.attempts[0].ended
    again = info_of(sent(), received(), started(), failure, received(at=2), rejected(at=3))
    assert [each.state for each in again.attempts] == ["FAILURE", "REJECTED"]


def test_the_client_of_a_retried_task_sent_its_first_attempt():
    """The process of the first attempt sends the second one."""
    again = sent(at=1.1, retries=1) | {"hostname": "gen1@worker"}
    info = info_of(sent(), received(), started(), retried(at=1), again)
    assert (info.client, info.first_sent) == ("client@h", T0)
    late = sent(at=1.2)  # the client made its event when the task was retried already
    info = info_of(late, received(), started(), retried(at=1), again)
    assert (info.client, info.first_sent) == ("client@h", T0 + 1.2)
    info = info_of(again, received(at=1.2, retries=1), late)
    assert (info.client, info.first_sent) == ("client@h", T0 + 1.2)


def test_a_receipt_that_comes_after_the_start_leaves_the_start():
    (attempt,) = info_of(started(at=2), sent(), received(at=1), succeeded(at=3)).attempts
    times = (attempt.received, attempt.started, attempt.ended)
    assert [time and time - T0 for time in times] == [1, 2, 3]


def test_an_attempt_with_an_unknown_number_is_ordered_by_time():
    """The exporter was started while the task was retried."""
    info = info_of(retried(at=1), received(at=2, retries=1), started(at=3), succeeded(at=10, runtime=7))
    assert (info.state, info.exception, info.runtime_seconds) == ("SUCCESS", None, 7)
    assert [(each.state, each.retries) for each in info.attempts] == [("RETRY", None), ("SUCCESS", 1)]


def test_an_unknown_exception_is_absent():
    assert info_of(sent(), received(), started(), retried(exception="None")).exception is None


def test_a_task_that_ended_without_an_event_is_lost_for_a_reason():
    driver = driver_with_details()
    driver.apply(sent(), received(), started())
    task = driver.cluster.tasks.get("u1")
    driver.cluster.end_silently(task, "not_running", driver.timestamp())
    info = task_info(task)
    assert (info.state, info.reason, info.worker) == (LOST, "not_running", "w@h")
    assert [(each.state, each.ended) for each in info.attempts] == [(LOST, driver.timestamp().wall)]
    driver.apply(received(at=9), started(at=10))
    driver.wait(2.5)  # a task-sent of it might come
    again = task_info(driver.cluster.tasks.get("u1"))
    assert (again.state, again.reason) == ("STARTED", None)
    assert [each.state for each in again.attempts] == [LOST, "STARTED"]


def test_a_task_that_is_forgotten_while_it_runs_goes_on_when_its_end_comes():
    driver = driver_with_details(Limits(task_ttl=10))
    driver.apply(sent(), received(), started())
    driver.wait(20)
    assert driver.cluster.tasks.get("u1") is None
    (info,) = find(driver.cluster.tasks, ["u1"])
    assert (info.state, info.reason) == ("STARTED", "forgotten")
    driver.apply(succeeded(at=30, name="add"))
    driver.wait(2.5)
    (info,) = find(driver.cluster.tasks, ["u1"])
    seen = [(each.state, each.reason, each.started, each.ended) for each in info.attempts]
    assert seen == [("STARTED", "forgotten", T0 + 0.2, None), ("SUCCESS", None, None, T0 + 30)]
    assert (info.state, info.reason, len(driver.cluster.tasks.kept)) == ("SUCCESS", None, 0)


def test_finished_tasks_are_kept_up_to_the_limit():
    driver = driver_with_details(kept_tasks=100)
    for number in range(300):
        uuid = f"u{number}"
        driver.apply(sent(uuid), received(uuid), started(uuid), succeeded(uuid))
    driver.wait(70)
    kept = driver.cluster.tasks.kept
    assert len(driver.cluster.tasks.uuids()) == 0
    assert 100 <= len(kept) <= 101
    assert list(kept)[-1] == "u299"


def test_arguments_are_kept_only_if_they_are_recorded():
    assert info_of(sent(args="(1,)"), received(), started(), succeeded(result="2")).args is None


def test_an_excluded_or_unidentified_task_is_not_shown():
    aggregates = Aggregates((), ())
    hides = lambda name: "" if name == "secret" else name  # noqa: E731
    driver = ClusterDriver(
        aggregates=aggregates, records=RecordBuilder(aggregates), show=hides, kept_tasks=10
    )
    driver.apply(sent(name="secret"), received(name="secret"), started(), task_event("started", "u2"))
    assert find(driver.cluster.tasks, ["u1", "u2"]) == []
    driver.wait(100)
    assert find(driver.cluster.tasks, ["u1"]) == []


def is_reported_twice(end: Record, ends: list[Record]) -> bool:
    """Return whether an execution may have been reported as failed and as rejected: it is one attempt."""
    both = {State.FAILURE, State.REJECTED}
    return any({end.state, other.state} == both and end.worker == other.worker for other in ends)


@settings(max_examples=300)
@given(st.lists(st.tuples(any_task_event, st.sampled_from([0.0, 0.5, 3.0, 70.0])), max_size=30))
def test_for_any_events_each_recorded_end_is_an_attempt_of_the_task(events):
    driver = driver_with_details(Limits(max_tasks=100))
    made: list[Record] = []
    tasks = driver.cluster.tasks
    for event, pause in events:
        driver.apply(event)
        driver.wait(pause)
        made += driver.cluster.take_records()
        for info in find(tasks, [*tasks.uuids(), *tasks.kept]):
            assert info.state in STATE_NAMES
            assert msgspec.json.decode(msgspec.json.encode(info), type=TaskInfo) == info
            task = tasks.get(info.uuid)
            if task is not None and task.bucket.state is not None:
                assert info.state in OPEN_STATE_NAMES
    driver.wait(3)
    made += driver.cluster.take_records()
    for info in find(tasks, tasks.uuids()):
        ends = [
            record
            for record in made
            if isinstance(record, Record)
            and record.uuid == info.uuid
            and record.state in ATTEMPT_ENDS
            and not (record.state is State.REJECTED and not record.is_final)
        ][-MAX_ATTEMPTS_KEPT:]
        recorded = {(each.state.name, each.attempt, each.timestamp, each.started): each for each in ends}
        seen = {(each.state, each.retries, each.ended, each.started) for each in info.attempts if each.ended}
        assert seen <= recorded.keys()
        missing = [end for key, end in recorded.items() if key not in seen]
        assert all(is_reported_twice(end, ends) for end in missing)


def test_changed_tasks_are_taken_once_until_they_change_again():
    driver = driver_with_details(Limits(task_ttl=30))
    cluster = driver.cluster
    driver.apply(sent("u0"))
    assert cluster.take_changed(10) == ([], 0)
    cluster.note_changes()
    driver.apply(sent("u1"), sent("u2"), received("u1"))
    assert [info.uuid for info in cluster.take_changed(1)[0]] == ["u1"]
    assert [info.uuid for info in cluster.take_changed(5)[0]] == ["u2"]
    assert cluster.take_changed(5) == ([], 0)
    driver.apply(started("u1"))
    assert [(info.uuid, info.state) for info in cluster.take_changed(5)[0]] == [("u1", "STARTED")]
    cluster.end_silently(cluster.tasks.get("u1"), "not_running", driver.timestamp())
    assert [(info.uuid, info.state) for info in cluster.take_changed(5)[0]] == [("u1", LOST)]
    driver.wait(40)
    assert {(info.uuid, info.reason) for info in cluster.take_changed(5)[0]} == {
        ("u0", "forgotten"),
        ("u2", "forgotten"),
    }


def test_of_too_many_changed_tasks_the_newest_wait_and_the_others_are_counted(monkeypatch):
    monkeypatch.setattr(records, "MAX_CHANGED", 3)
    driver = driver_with_details()
    driver.cluster.note_changes()
    for number in range(5):
        driver.apply(sent(f"u{number}"))
    driver.wait(0.25)
    infos, surplus = driver.cluster.take_changed(10)
    assert ([info.uuid for info in infos], surplus) == (["u2", "u3", "u4"], 2)
    assert driver.cluster.take_changed(10) == ([], 0)
