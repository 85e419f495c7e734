"""The accounts of a pusher close whatever the receiver does, and `put` never waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat

import pytest
from harness.waiting import eventually

from celery_exporter.core.records import MeasuredRecord, Measurements
from celery_exporter.core.snapshot import SinkView
from celery_exporter.core.types import State
from celery_exporter.sinks import pusher as pusher_module
from celery_exporter.sinks.base import (
    BUFFER_FULL,
    DELIVERED,
    FAULT,
    INCOMPLETE,
    REJECTED,
    SHUTDOWN,
    TOO_LARGE,
    Payload,
    PermanentError,
    TemporaryError,
    weight,
)
from celery_exporter.sinks.pusher import MAX_BATCH, Pusher


class Receiver:
    """A sink in memory. `answer` is called for each body; it may raise."""

    name, address = "receiver", "memory"
    min_interval = 0.0
    states = tuple(State)

    def __init__(
        self, answer: Callable[[list[int]], None] = lambda _: None, max_body_bytes: int = 10**9
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self.got: list[int] = []
        self.bodies: list[list[int]] = []
        self.closed = False
        self.answer = answer

    def select(self, records: Iterable[int]) -> list[int]:
        return [record for record in records if record >= 0]

    def encode(self, records: Sequence[int]) -> Payload:
        kept = [record for record in records if record % 1000 != 999]
        left_out = len(records) - len(kept)
        return Payload(" ".join(map(str, kept)).encode(), {INCOMPLETE: left_out} if left_out else {})

    def send(self, body: bytes, timeout: float) -> None:
        assert timeout > 0
        numbers = [int(number) for number in body.split()]
        self.bodies.append(numbers)
        self.answer(numbers)
        self.got += numbers

    def probe(self, timeout: float) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def running():
    """Return a function that starts a pusher for a receiver."""
    pushers = []

    def start(receiver: Receiver, limit: int = 10_000, flush_interval: float = 0.05) -> Pusher:
        pushers.append(Pusher(receiver, limit=limit, flush_interval=flush_interval))
        pushers[-1].start()
        return pushers[-1]

    yield start
    for pusher in pushers:
        pusher.stop()
        pusher.join()


def outcomes(view: SinkView) -> dict[str, int]:
    return {outcome: count for outcome, count in view.outcomes.items() if count}


def put(pusher: Pusher, records: range) -> None:
    """Put records, and check that the accounts close at once."""
    before = sum(pusher.view().outcomes.values()) + pusher.view().buffered
    pusher.put(records)
    assert sum(pusher.view().outcomes.values()) + pusher.view().buffered == before + len(records)


def is_empty(pusher: Pusher) -> Callable[[], bool]:
    return lambda: pusher.view().buffered == 0


def test_records_arrive_in_their_order_and_unwanted_ones_are_not_counted(running):
    receiver = Receiver()
    pusher = running(receiver)
    put(pusher, range(500))
    pusher.put([-1, -2])
    eventually(is_empty(pusher), 30)
    assert receiver.got == list(range(500))
    assert outcomes(pusher.view()) == {DELIVERED: 500}
    assert sum(pusher.view().durations.counts) == len(receiver.bodies)
    assert pusher.view().last_success is not None


def test_a_full_batch_is_sent_before_the_interval_is_over(running):
    receiver = Receiver()
    pusher = running(receiver, limit=100_000, flush_interval=3_600)
    for _ in range(2):  # the first flush may come at the start of the thread
        put(pusher, range(MAX_BATCH))
        eventually(is_empty(pusher), 30)
    assert outcomes(pusher.view())[DELIVERED] == 2 * (MAX_BATCH - MAX_BATCH // 1000)


def test_a_receiver_that_comes_back_gets_everything_in_order(running):
    failures = iter([TemporaryError("down"), TemporaryError("down", retry_after=0.0)])

    def answer(_: list[int]) -> None:
        if (error := next(failures, None)) is not None:
            raise error

    receiver = Receiver(answer)
    pusher = running(receiver)
    put(pusher, range(100))
    eventually(is_empty(pusher), 30)
    assert receiver.got == list(range(100))
    assert pusher.view().failing_since is None
    assert pusher.view().error == ""


def test_the_oldest_records_are_dropped_while_the_receiver_is_away(running):
    away = threading.Event()

    def answer(_: list[int]) -> None:
        if not away.is_set():
            raise TemporaryError("down", retry_after=0.0)

    receiver = Receiver(answer)
    pusher = running(receiver, limit=100)
    put(pusher, range(50))
    eventually(lambda: receiver.bodies != [], 30)
    for start in range(1_000, 9_000, 100):
        put(pusher, range(start, start + 100))
        assert pusher.view().buffered == 100
    assert pusher.view().failing_since is not None
    away.set()
    eventually(is_empty(pusher), 30)
    assert receiver.got == [*range(50), *range(8_950, 8_999)], "those that were in flight, and the newest"
    assert outcomes(pusher.view()) == {DELIVERED: 99, BUFFER_FULL: 7_950, INCOMPLETE: 1}


@pytest.mark.parametrize(("count", "delivered"), [(None, 0), (3, 97), (5_000, 0)])
def test_rejected_records_are_counted_and_not_sent_again(running, count, delivered):
    def answer(_: list[int]) -> None:
        raise PermanentError("bad", REJECTED, count)

    receiver = Receiver(answer)
    pusher = running(receiver)
    put(pusher, range(100))
    eventually(is_empty(pusher), 30)
    assert len(receiver.bodies) == 1
    assert outcomes(pusher.view()) == {REJECTED: 100 - delivered} | (
        {DELIVERED: delivered} if delivered else {}
    )
    assert pusher.view().lost == 100 - delivered


def test_rejected_records_are_added_to_those_that_were_left_out(running):
    def answer(_: list[int]) -> None:
        raise PermanentError("bad", INCOMPLETE, 2)

    pusher = running(Receiver(answer))
    put(pusher, range(995, 1_005))  # 999 is left out
    eventually(is_empty(pusher), 30)
    assert outcomes(pusher.view()) == {INCOMPLETE: 3, DELIVERED: 7}


def test_a_fault_of_a_sink_costs_one_batch_and_not_the_sink(running):
    failures = iter([ZeroDivisionError("fault")])

    def answer(_: list[int]) -> None:
        if (error := next(failures, None)) is not None:
            raise error

    receiver = Receiver(answer)
    pusher = running(receiver)
    put(pusher, range(10))
    eventually(is_empty(pusher), 30)
    put(pusher, range(10, 20))
    eventually(is_empty(pusher), 30)
    assert outcomes(pusher.view()) == {FAULT: 10, DELIVERED: 10}


@pytest.mark.parametrize("max_body_bytes", [100, 10**9])
def test_a_body_that_is_too_large_is_divided_until_one_record_is_left(running, max_body_bytes):
    def answer(numbers: list[int]) -> None:
        if len(numbers) > 8 or 77 in numbers:
            raise PermanentError("413", TOO_LARGE)

    receiver = Receiver(answer, max_body_bytes)
    pusher = running(receiver)
    put(pusher, range(200))
    eventually(is_empty(pusher), 30)
    assert receiver.got == [number for number in range(200) if number != 77]
    assert outcomes(pusher.view()) == {DELIVERED: 199, TOO_LARGE: 1}


@pytest.mark.parametrize(
    ("max_body_bytes", "records"), [(10_000, 3 * MAX_BATCH), (2_000, 1_500)], ids=["batches", "parts of one"]
)
def test_a_receiver_with_a_limit_of_bytes_a_second_is_not_sent_more(running, max_body_bytes, records):
    """Neither by the next flush, nor by another attempt."""
    receiver = Receiver(max_body_bytes=max_body_bytes)
    receiver.min_interval = 0.5
    attempts: list[tuple[float, int]] = []  # when, and how many bytes

    def answer(numbers: list[int]) -> None:
        attempts.append((time.monotonic(), len(" ".join(map(str, numbers)))))
        if len(attempts) == 2:
            raise TemporaryError("down", retry_after=0.0)

    receiver.answer = answer
    pusher = running(receiver, limit=10 * MAX_BATCH)
    begin = time.monotonic()
    put(pusher, range(records))
    eventually(is_empty(pusher), 30)
    put(pusher, range(1))
    eventually(is_empty(pusher), 30)
    assert len(attempts) >= 5
    sent = 0
    for at, size in attempts:  # a busy machine makes each of them later, and none earlier
        assert at - begin >= 0.5 * sent / max_body_bytes
        sent += size


def test_the_last_records_are_sent_at_the_end():
    receiver = Receiver()
    pusher = Pusher(receiver, limit=1_000, flush_interval=3_600)
    pusher.start()
    pusher.put(range(10))
    pusher.stop()
    pusher.join()
    assert receiver.got == list(range(10))
    assert receiver.closed
    assert outcomes(pusher.view()) == {DELIVERED: 10}


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_receiver_that_is_away_at_the_end_delays_it_for_a_bounded_time(is_frozen):
    released = threading.Event()

    def answer(_: list[int]) -> None:
        if is_frozen:
            released.wait()
        raise TemporaryError("down")

    pusher = Pusher(Receiver(answer), limit=1_000, flush_interval=0.01)
    pusher.start()
    pusher.put(range(10))
    begin = time.monotonic()
    pusher.stop()
    pusher.join()
    assert time.monotonic() - begin < 30, "it is 5.5 s; this machine may be busy"
    assert outcomes(pusher.view()) == {SHUTDOWN: 10}
    assert pusher.view().buffered == 0
    released.set()


def test_large_records_fill_the_buffer_earlier_and_are_sent_in_smaller_payloads(running):
    large = Measurements({}, {f"field{number}": "x" * 255 for number in range(50)})
    record = MeasuredRecord("u1", None, "add", "w@h", 1.7e9, large)
    away, sizes = threading.Event(), []

    class Measured(Receiver):
        def select(self, records: Iterable[object]) -> list[object]:
            return [*records]

        def encode(self, records: Sequence[object]) -> Payload:
            sizes.append(len(records))
            return Payload(b"1")

    def answer(_: list[int]) -> None:
        if not away.is_set():
            raise TemporaryError("down", retry_after=0.0)

    pusher = running(Measured(answer), limit=10_000)
    for _ in range(100):
        pusher.put([record] * 10)
    assert pusher.view().buffered * weight([record]) <= 10_000
    away.set()
    eventually(is_empty(pusher), 60)
    assert max(sizes) * weight([record]) <= MAX_BATCH
    assert sum(pusher.view().outcomes.values()) == 1_000


def test_an_answer_that_never_ends_is_a_failure(running, monkeypatch):
    monkeypatch.setattr("celery_exporter.sinks.pusher.SEND_TIMEOUT_SECONDS", 0.05)
    frozen = threading.Event()
    pusher = running(Receiver(lambda _: frozen.wait(60) and None))
    pusher.put(range(10))
    eventually(lambda: pusher.view().failing_since is not None, 30)
    assert "longer than the timeout" in pusher.view().error
    frozen.set()
    eventually(lambda: pusher.view().failing_since is None, 30)


def test_put_does_not_wait_for_a_frozen_receiver(running):
    frozen = threading.Event()
    receiver = Receiver(lambda _: frozen.wait(60) and None)
    pusher = running(receiver, limit=1_000)
    pusher.put(range(10))
    eventually(lambda: receiver.bodies != [], 30)
    putting = threading.Thread(target=lambda: [pusher.put(range(100)) for _ in range(100)], daemon=True)
    putting.start()
    putting.join(30)
    assert not putting.is_alive()
    assert pusher.view().buffered == 1_000
    frozen.set()


def test_another_error_of_an_outage_is_logged_as_soon_as_the_log_may_have_it(running, caplog, monkeypatch):
    monkeypatch.setattr(pusher_module, "LOG_INTERVAL_SECONDS", 0.3)
    texts = chain(["no token"], repeat("status 401"))

    def answer(_: list[int]) -> None:
        raise TemporaryError(next(texts), retry_after=0.0)

    pusher = running(Receiver(answer))
    pusher.put([1])
    eventually(lambda: any("status 401" in record.getMessage() for record in caplog.records), 60)
    assert sum("no token" in record.getMessage() for record in caplog.records) == 1
