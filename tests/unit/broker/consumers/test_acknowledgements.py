"""A durable queue: which messages were used, which may be redelivered, and that each counts once."""

from __future__ import annotations

import pytest

from celery_exporter.broker.consumers.acknowledgements import MEMORY_PREFETCHES, Acknowledgements

PREFETCH = 10


def delivered(
    acks: Acknowledgements, tag: int, body: bytes = b"message", *, redelivered: bool = False
) -> bool:
    """Deliver one message on a connection of its own, and use it; return whether it was new."""
    acks.start_connection()
    is_new = acks.deliver(tag, body, redelivered=redelivered)
    acks.end_read()
    return is_new


def test_a_redelivered_message_is_used_once():
    acks = Acknowledgements(PREFETCH)
    assert delivered(acks, 1)
    assert [delivered(acks, 1, redelivered=True) for _ in range(3)] == [False] * 3


def test_a_redelivered_message_that_was_used_by_the_process_before_is_dropped():
    before, after = Acknowledgements(PREFETCH), Acknowledgements(PREFETCH)
    delivered(before, 1)
    after.expect_again(before.unconfirmed(before.mark))
    assert not delivered(after, 1, redelivered=True)


def test_a_message_that_was_not_used_is_new_when_it_is_redelivered():
    acks = Acknowledgements(PREFETCH)
    acks.start_connection()
    assert acks.deliver(1, b"message", redelivered=False)  # and the connection is lost before the read ends
    assert delivered(acks, 1, redelivered=True)


def test_messages_are_acknowledged_when_they_are_released():
    acks = Acknowledgements(PREFETCH)
    acks.start_connection()
    for tag in (1, 2, 3):
        acks.deliver(tag, b"%d" % tag, redelivered=False)
    acks.end_read()
    assert acks.next_tag() is None
    acks.release((1, 2))
    assert (acks.next_tag(), acks.next_tag()) == (2, None)
    assert not acks.is_confirmed
    acks.confirm(2)
    assert acks.is_confirmed
    assert len(acks.unconfirmed(acks.mark)) == 1


def test_a_release_on_an_earlier_connection_acknowledges_nothing_on_this_one():
    acks = Acknowledgements(PREFETCH)
    delivered(acks, 7)
    mark = acks.mark
    acks.start_connection()
    acks.release(mark)
    assert acks.next_tag() is None


@pytest.mark.parametrize(
    ("count", "is_urgent"), [(0, False), (PREFETCH // 2, False), (PREFETCH // 2 + 1, True)]
)
def test_messages_wait_to_be_released_when_half_of_the_prefetch_count_does(count, is_urgent):
    acks = Acknowledgements(PREFETCH)
    acks.start_connection()
    for tag in range(1, count + 1):
        acks.deliver(tag, b"message", redelivered=False)
    assert acks.is_waiting() is is_urgent


def test_the_number_of_unconfirmed_messages_is_bounded():
    acks = Acknowledgements(PREFETCH)
    for number in range(20 * PREFETCH):
        delivered(acks, 1, b"%d" % number)
    assert len(acks.unconfirmed(acks.mark)) <= MEMORY_PREFETCHES * PREFETCH + 1
