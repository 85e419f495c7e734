"""Two descriptions of a task together have what either one knows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from celery_exporter.core.task_info import AttemptInfo, TaskInfo, completed
from celery_exporter.core.task_merge import MAX_ATTEMPTS, merged
from celery_exporter.core.task_search import find
from unit.history.task_infos import infos

from .cluster_driver import T0, received, retried, sent, started, succeeded
from .lives import LIFE, OVERLAPPING_RETRY, RETRY_ELSEWHERE, RETRY_LIFE
from .test_task_info import driver_with_details, info_of

IDS = {"root_id": "r1", "parent_id": "p1"}


def test_what_an_older_description_knows_is_kept():
    older = info_of(sent(**IDS), received(**IDS), started(), retried(at=1), sent(at=1.1, retries=1))
    newer = info_of(received(at=5, retries=1), started(at=6), succeeded(at=7))
    both = merged(newer, older)
    assert (both.state, both.root_id, both.parent_id, both.client) == ("SUCCESS", "r1", "p1", "client@h")
    assert (both.first_sent, both.queue_name) == (older.first_sent, "q")
    assert [(each.retries, each.state) for each in both.attempts] == [(0, "RETRY"), (1, "SUCCESS")]
    assert both.attempts[1].sent == T0 + 1.1
    assert both.attempts[1].queue_wait_seconds == T0 + 6 - (T0 + 1.1)


def test_the_client_is_that_of_the_first_sending_that_is_known():
    older = info_of(sent(**IDS), received(**IDS), started())
    newer = info_of(retried(at=1), sent(at=1.1, retries=1) | {"hostname": "gen1@worker"})
    assert (newer.client, merged(newer, older).client) == ("gen1@worker", "client@h")
    assert merged(older, newer).client == "client@h"


def test_a_task_that_ran_during_a_restart_has_the_times_from_before_it():
    older = info_of(sent(**IDS), received(at=1, **IDS), started(at=2))
    newer = info_of(succeeded(at=9))
    (attempt,) = merged(newer, older).attempts
    times = (attempt.sent, attempt.received, attempt.started, attempt.ended)
    assert [time and time - T0 for time in times] == [0, 1, 2, 9]
    assert (attempt.state, attempt.queue_wait_seconds) == ("SUCCESS", 2)


def test_a_runtime_follows_from_times_that_two_descriptions_have():
    older = TaskInfo("u", "add", "q", "STARTED", T0, attempts=[AttemptInfo("STARTED", 0, started=T0)])
    failed = AttemptInfo("FAILURE", 0, ended=T0 + 4)
    newer = TaskInfo("u", "add", "q", "FAILURE", T0 + 4, attempts=[failed])
    both = merged(newer, older)
    assert (both.runtime_seconds, both.attempts) == (4, [completed(replace(failed, started=T0))])


def test_an_end_whose_task_has_no_name_since_a_restart_keeps_the_name():
    older = info_of(sent(**IDS), received(**IDS), started())
    newer = info_of(succeeded(at=9))
    both = merged(newer, older)
    assert newer.task_name is None
    assert (both.task_name, both.queue_name, both.state) == ("add", "q", "SUCCESS")


def test_an_end_stays_if_the_newer_description_is_from_a_state_file_before_it():
    """Both files are written once a second. A kill may come between the two."""
    older = info_of(sent(**IDS), received(**IDS), started(), succeeded(at=1))
    restored = TaskInfo("u1", "add", "q", "STARTED", T0 + 0.2, "w@h")
    assert merged(restored, older) == older
    lost = AttemptInfo("LOST", worker="w@h", ended=T0 + 60, reason="not_running")
    ended_silently = replace(restored, state="LOST", since=T0 + 60, reason="not_running", attempts=[lost])
    assert merged(ended_silently, older) == older


def test_a_task_that_runs_again_is_not_over():
    older = info_of(sent(**IDS), received(**IDS), started(), succeeded(at=1))
    restored = TaskInfo("u1", "add", "q", "STARTED", T0 + 2, "w@h")
    assert merged(restored, older).state == "STARTED"
    again = TaskInfo("u1", "add", "q", "PENDING", T0, attempts=[AttemptInfo("PENDING", 0, sent=T0)])
    assert merged(again, older).state == "PENDING"
    lost = replace(again.attempts[0], state="LOST", ended=T0 + 9)
    assert merged(replace(again, state="LOST", since=T0 + 9, attempts=[lost]), older).state == "LOST"


def test_without_attempts_of_its_own_a_task_has_those_from_before_a_restart():
    older = info_of(sent(**IDS), received(), started(), retried(at=1), sent(at=1.1, retries=1))
    newer = TaskInfo("u1", "add", "q", "RETRY", T0 + 1, "w@h")
    assert merged(newer, older).attempts == older.attempts


def test_another_delivery_of_an_attempt_that_is_over_is_another_attempt():
    over = AttemptInfo("SUCCESS", 0, received=T0, started=T0, ended=T0 + 1)
    again = AttemptInfo("RECEIVED", 0, received=T0 + 5)
    unknown = AttemptInfo("PENDING", 0, sent=T0 + 4)
    for attempt in (again, unknown):
        newer = TaskInfo("u", "add", "q", attempt.state, T0 + 5, attempts=[attempt])
        older = TaskInfo("u", "add", "q", "SUCCESS", T0 + 1, attempts=[over])
        assert merged(newer, older).attempts == [over, attempt]


def test_an_attempt_that_was_delivered_again_is_only_the_new_delivery():
    older = info_of(sent(), received(), started())
    newer = info_of(received(at=50, host="b@h"), started(at=51, host="b@h"))
    assert merged(newer, older).attempts == newer.attempts


def test_an_attempt_whose_end_nothing_was_seen_of_stays_before_a_later_one():
    older = info_of(sent(), received(), started())
    newer = info_of(received(at=8, retries=1), started(at=9))
    assert merged(newer, older).attempts == [*older.attempts, *newer.attempts]


#: The events of a task that is retried twice, in the order of their times.
IN_ORDER = [
    *(sent(), received(), started(), retried(at=1)),
    *(sent(at=1.1, retries=1), received(at=1.2, retries=1), started(at=2), retried(at=3)),
    *(sent(at=3.1, retries=2), received(at=3.2, retries=2), started(at=4), succeeded(at=5)),
]
WITHOUT_SENT = [event for event in IN_ORDER if event["type"] != "task-sent"]


@pytest.mark.parametrize("events", [LIFE, IN_ORDER, OVERLAPPING_RETRY, WITHOUT_SENT])
def test_a_restart_without_a_state_file_changes_no_attempt(events):
    """Wherever it comes. What the new process writes is merged with what it wrote before, too."""
    attempts = info_of(*events).attempts
    for cut in range(1, len(events)):
        older, newer = info_of(*events[:cut]), info_of(*events[cut:])
        both = merged(newer, older)
        assert both.attempts == merged(newer, both).attempts == attempts, cut


def test_a_number_that_is_only_assumed_is_unknown_if_another_attempt_has_it():
    older = info_of(sent(), received(), started(), retried(at=1))
    newer = info_of(started(at=9))
    assert [each.retries for each in newer.attempts] == [0]
    both = merged(newer, older)
    assert [(each.retries, each.state) for each in both.attempts] == [(0, "RETRY"), (None, "STARTED")]
    ended = merged(info_of(started(at=9), succeeded(at=10)), both)
    assert [(each.retries, each.state) for each in ended.attempts] == [(0, "RETRY"), (None, "SUCCESS")]


REPLACED = [
    *(sent(), received(), started()),
    *(sent(at=1, name="mul"), received(at=1.1, name="mul"), started(at=2), succeeded(at=3)),
]


@pytest.mark.parametrize("cut", [4, 5, 6])
def test_work_that_replaced_a_task_keeps_its_number_over_a_restart_without_a_state_file(cut):
    older, newer = info_of(*REPLACED[:cut]), info_of(*REPLACED[cut:])
    expected = info_of(*REPLACED).attempts[1]
    assert expected.generation == 1
    both = merged(newer, older)
    assert both.attempts[-1] == merged(newer, both).attempts[-1] == expected


def test_the_attempts_are_bounded():
    over = [AttemptInfo("RETRY", number, ended=T0 + number) for number in range(2 * MAX_ATTEMPTS)]
    newest = AttemptInfo("STARTED", 2 * MAX_ATTEMPTS)
    older = TaskInfo("u", "add", "q", "RETRY", T0, attempts=over)
    newer = TaskInfo("u", "add", "q", "STARTED", T0 + 1, attempts=[newest])
    assert merged(newer, older).attempts == [*over[1 - MAX_ATTEMPTS :], newest]


@given(infos())
def test_two_equal_descriptions_are_one(info):
    assert merged(info, info) == info


@given(
    st.sampled_from((LIFE, RETRY_LIFE, RETRY_ELSEWHERE)),
    st.lists(st.sampled_from((0.0, 0.5, 3.0)), min_size=8),
)
def test_a_newer_description_of_one_process_has_all_that_the_older_ones_have(events, pauses):
    """In the order of a real worker: where an event is late, the older description may know more."""
    driver, together = driver_with_details(), None
    for event, pause in zip(events, pauses, strict=False):
        driver.apply(event)
        driver.wait(pause)
        for info in find(driver.cluster.tasks, ["u1"]):
            together = info if together is None else merged(info, together)
            assert together == info
