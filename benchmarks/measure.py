"""Measures the CPU time of an event, and the highest rate that a contender sustains."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from harness.waiting import eventually

from benchmarks.brokers import Broker, VoidError, due, replay
from benchmarks.contenders import Contender, Ours
from benchmarks.event_stream import EventStream

#: Share of an event stream that is replayed before the measurement: it fills caches, and the exporter
#: inspects new workers.
WARM_UP_SHARE = 1 / 10
#: Wait after that, and duration of the measurement of idle CPU usage.
SETTLE_SECONDS, IDLE_SECONDS = 1.2, 0.6
#: A contender sustains a rate if it has processed the last event after this time, which is 5 % of 10 s.
MAX_DELAY_SECONDS = 0.5
#: With so many waiting bytes in the broker, an attempt stops early.
MAX_WAITING_BYTES = 8 * 2**20
#: Factor between two attempts, maximum number of these, and attempts between the last two.
STEP_FACTOR, STEPS, HALVINGS = 1.4, 8, 2
#: Share of a rate that has to be published.
MIN_PUBLISHED_SHARE = 0.98
#: Time for the last events to be counted.
COUNT_TIMEOUT_SECONDS = 2.0

_numbers = itertools.count()


@contextmanager
def started(contender: type[Contender], broker: Broker, folder: Path) -> Iterator[Contender]:
    """Run a contender on a broker without another subscriber; raise VoidError for each error."""
    eventually(lambda: not broker.has_subscriber(), every=0.02, what="the previous subscriber is gone")
    process = contender(folder / f"{contender.letter}-{next(_numbers)}", broker)
    try:
        with process:
            yield process
    except (VoidError, RuntimeError, AssertionError, OSError) as error:
        raise VoidError(f"{error}; the log of {contender.name} ends with\n{process.tail(20)}") from error


class Replayed(NamedTuple):
    """The result of a replay of an event stream."""

    cpu: float  # us for an event
    share: float  # of events that were counted
    start: float | None  # ms to the first /metrics; only of the exporter
    memory: float  # MB before the first event


def measure_replay(
    contender: type[Contender], broker: Broker, folder: Path, event_stream: EventStream
) -> Replayed:
    """Replay an event stream as fast as the contender processes it."""
    with started(contender, broker, folder) as process:
        memory = process.memory()
        warm_up = int(WARM_UP_SHARE * len(event_stream.messages))
        replay(broker, event_stream.messages[:warm_up])
        time.sleep(SETTLE_SECONDS)
        process.measure_idle(IDLE_SECONDS)
        before, start = process.cpu(), time.monotonic()
        replay(broker, event_stream.messages[warm_up:])
        process.wait_until_idle()
        seconds, cpu = time.monotonic() - start, process.cpu() - before
        counted, expected = count(process, event_stream)
        return Replayed(
            cpu=(cpu - process.idle * seconds) / sum(event_stream.sizes[warm_up:]) * 1e6,
            share=counted / expected,
            start=process.start_seconds * 1e3 if isinstance(process, Ours) else None,
            memory=memory,
        )


def count(process: Contender, event_stream: EventStream) -> tuple[int, int]:
    """Return how many events a process has counted, and how many it should have counted."""
    counted, expected = process.counted(), process.expected(event_stream.kinds)
    end = time.monotonic() + COUNT_TIMEOUT_SECONDS
    while counted != expected and process.alive() and time.monotonic() < end:
        time.sleep(0.1)
        counted = process.counted()
    return counted, expected


class Rate(NamedTuple):
    """Events per second, and the cores that the contender used for them.

    `is_limit`: the contender sustained it, and the benchmark could not publish more.
    """

    rate: float
    cores: float
    is_limit: bool = False


class Attempt(NamedTuple):
    """A rate that was tried: published events, cores in use, and whether the contender kept up."""

    events: int
    rate: float
    cores: float
    kept_up: bool


def sustained(
    contender: type[Contender],
    broker: Broker,
    folder: Path,
    event_stream: EventStream,
    guess: float,
    hold: float,
) -> Rate:
    """Return the highest rate that a contender sustains for `hold` seconds, to about 5 %."""
    with started(contender, broker, folder) as process:
        time.sleep(SETTLE_SECONDS)
        process.measure_idle(IDLE_SECONDS)
        attempts: list[Attempt] = []

        def attempt(rate: float) -> Attempt:
            attempts.append(try_rate(process, event_stream, rate, hold))
            return attempts[-1]

        rate = search(attempt, guess)
        events = sum(attempt.events for attempt in attempts)
        if isinstance(process, Ours) and (counted := process.counted()) != events:
            raise VoidError(f"{process.name} counted {counted:,} of {events:,} events")
        return rate


def search(attempt: Callable[[float], Attempt], guess: float) -> Rate:
    """Find the highest rate: step up or down from a guess, then narrow the interval."""
    best, high, rate = None, None, guess
    for _ in range(STEPS):
        result = attempt(rate)
        if result.kept_up and result.rate < MIN_PUBLISHED_SHARE * rate:
            return Rate(result.rate, result.cores, is_limit=True)
        best, high = (result, high) if result.kept_up else (best, rate)
        if best and high:
            break
        rate = rate * STEP_FACTOR if result.kept_up else rate / STEP_FACTOR
    if best is None:
        raise VoidError(f"{rate:,.0f} events a second are too many")
    for _ in range(HALVINGS if high else 0):
        middle = (best.rate * high) ** 0.5
        result = attempt(middle)
        best, high = (result, high) if result.kept_up else (best, middle)
    return Rate(best.rate, best.cores)


def try_rate(process: Contender, event_stream: EventStream, rate: float, hold: float) -> Attempt:
    """Publish at a rate for `hold` seconds, and return the result."""
    broker, sent, next_check, kept_up = process.broker, 0, 0.0, True
    start, cpu = time.monotonic(), process.cpu()
    for batch, events in due(event_stream, rate, hold):
        if batch:
            broker.send(batch)
            sent += events
        if (now := time.monotonic()) > next_check:
            next_check = now + 0.05
            if broker.backlog() > MAX_WAITING_BYTES:
                kept_up = False
                break
    end = time.monotonic()
    cores = (process.cpu() - cpu) / (end - start)
    broker.settle()
    delay = process.wait_until_idle() - end
    return Attempt(sent, sent / (end - start), cores, kept_up and delay < MAX_DELAY_SECONDS)
