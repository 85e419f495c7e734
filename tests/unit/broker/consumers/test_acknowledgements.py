"""A durable queue: which messages were used, which may be redelivered, and that each counts once."""

from __future__ import annotations

import pytest

from celery_exporter.broker.consumers.acknowledgements import (
    MEMORY_PREFETCHES,
    RELAYED_LINES,
    Acknowledgements,
)

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
    assert len(acks.unconfirmed(acks.mark)) == 3, "the reply may have come before the acknowledgement"
    acks.confirm(2)
    assert len(acks.unconfirmed(acks.mark)) == 1


def test_a_message_that_was_passed_over_is_only_acknowledged():
    acks = Acknowledgements(PREFETCH)
    acks.start_connection()
    acks.pass_over(1)
    acks.release(acks.mark)
    assert acks.next_tag() == 1
    assert acks.unconfirmed(acks.mark) == []
    assert acks.duplicates == 0


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


# -- messages of a relay -------------------------------------------------------------------------------------


def relayed(acks: Acknowledgements, *bodies: bytes) -> list[bool]:
    """Deliver new messages on the connection; return which of them were not dropped."""
    tag = acks.mark[1]
    is_new = [acks.deliver(tag + n, body, redelivered=False) for n, body in enumerate(bodies, 1)]
    acks.end_read()
    return is_new


@pytest.fixture
def of_relay() -> Acknowledgements:
    """Return what acknowledges messages of a relay, with an open connection."""
    acks = Acknowledgements(PREFETCH, relayed=True)
    acks.start_connection()
    return acks


def test_a_message_that_is_relayed_again_is_used_once(of_relay):
    assert relayed(of_relay, b"a", b"a", b"b") == [True, False, True]
    of_relay.start_connection()
    assert relayed(of_relay, b"b", b"c") == [False, True]
    assert of_relay.duplicates == 2


def test_a_message_without_a_relay_may_have_the_bytes_of_another_one():
    acks = Acknowledgements(PREFETCH)
    acks.start_connection()
    assert relayed(acks, b"a", b"a") == [True, True]


def test_a_relayed_message_that_was_not_used_is_new(of_relay):
    of_relay.deliver(1, b"a", redelivered=False)  # and the connection is lost before the read ends
    of_relay.start_connection()
    assert relayed(of_relay, b"a") == [True]


def test_the_next_process_knows_what_is_in_the_state_file(of_relay):
    relayed(of_relay, b"old")
    of_relay.start_connection()
    relayed(of_relay, b"saved")
    mark = of_relay.mark
    relayed(of_relay, b"not saved")
    after = Acknowledgements(PREFETCH, relayed=True)
    after.expect_again(of_relay.unconfirmed(mark))
    after.start_connection()
    assert relayed(after, b"old", b"saved", b"not saved") == [False, False, True]


def test_so_many_relayed_messages_are_remembered(of_relay):
    bodies = [b"%d" % number for number in range(RELAYED_LINES)]
    relayed(of_relay, *bodies)
    assert relayed(of_relay, bodies[0], b"one more", bodies[0]) == [False, True, True]
