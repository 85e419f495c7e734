"""What a history remembers of the attempts and deliveries of one task."""

from __future__ import annotations

import pytest

from celery_exporter.core.task_history import MAX_ATTEMPTS, Delivery, TaskHistory, generation_of
from celery_exporter.core.types import LabelSet


def delivery(
    worker: str = "a@h", attempt: int = 0, *, started: float | None = None, ended: bool = False
) -> Delivery:
    return Delivery(worker, 7, attempt, 1.0, 2.0, started, ended)


def history(*deliveries: Delivery, received: int | None = None, **fields) -> TaskHistory:
    return TaskHistory({}, received, list(deliveries), **fields)


def test_attempts_are_received_up_to_the_newest_one_except_skipped_ones():
    task = history(received=3, skipped={1})
    assert [task.is_received(attempt) for attempt in range(5)] == [True, False, True, True, False]
    assert not history().is_received(0)


def test_each_sending_of_an_id_is_a_generation_of_attempts():
    assert [generation_of(attempt) for attempt in (0, MAX_ATTEMPTS - 1, MAX_ATTEMPTS)] == [0, 0, 1]


def test_an_attempt_is_superseded_by_a_delivery_of_a_later_generation():
    task = history(delivery(), delivery(attempt=MAX_ATTEMPTS))
    assert task.is_superseded(5)
    assert not task.is_superseded(MAX_ATTEMPTS + 5)
    assert not history().is_superseded(5)


@pytest.mark.parametrize(("ended", "is_open"), [(False, True), (True, False)])
def test_a_generation_is_open_while_a_delivery_of_it_is(ended, is_open):
    task = history(delivery(ended=ended), delivery(attempt=MAX_ATTEMPTS))
    assert task.is_open_before(1) is is_open
    assert not task.is_open_before(0)


def test_a_delivery_that_is_given_back_before_its_start_is_remembered_without_a_worker():
    task = history(delivery("a@h"))
    task.give_back("a@h")
    (returned,) = task.deliveries
    assert (returned.worker, returned.pid, returned.attempt, returned.ready) == ("", None, 0, 1.0)
    assert returned.is_given_back()


def test_deliveries_of_other_workers_stay_when_one_gives_the_task_back():
    task = history(delivery("b@h"), delivery("a@h"))
    task.give_back("a@h")
    assert task.deliveries == [delivery("b@h")]


def test_a_started_delivery_is_not_given_back():
    task = history(delivery("a@h", started=3.0))
    task.give_back("a@h")
    assert task.deliveries == []


def test_the_next_attempt_is_the_oldest_later_one_that_was_not_received():
    task = history(received=1)
    task.sent = {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}
    assert (task.next_sent(0), task.next_sent(2), task.next_sent(3)) == (2, 3, None)


def test_attempts_are_those_that_were_sent_or_delivered():
    task = history(delivery(attempt=2))
    task.sent = {0: 1.0}
    assert (task.attempts(), task.delivered()) == ({0, 2}, {2})


@pytest.mark.parametrize(
    ("received", "skipped", "is_dropped"),
    [(1, None, True), (0, None, False), (None, None, False), (1, {0}, False)],
)
def test_the_label_set_of_an_attempt_is_dropped_once_a_later_one_was_received(received, skipped, is_dropped):
    label_sets = {0: LabelSet("add", "elsewhere")}
    task = history(received=received, skipped=skipped, attempt_label_sets=label_sets)
    task.drop_label_set_if_over(0)
    assert (task.attempt_label_sets == {}) is is_dropped


def test_the_label_set_of_an_attempt_stays_while_it_is_delivered():
    task = history(delivery(), received=1, attempt_label_sets={0: LabelSet("add", "elsewhere")})
    task.drop_label_set_if_over(0)
    assert task.attempt_label_sets
