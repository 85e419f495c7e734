"""What is measured of a contender: CPU an event, and how many events a second it keeps up with."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from harness.waiting import eventually

from benchmarks.brokers import Broker, VoidError, due, replay
from benchmarks.contenders import Contender, Ours
from benchmarks.tape import Tape

#: Seconds in which the idle cost is measured, after as many in which the start dies away.
IDLE = 0.6
#: Seconds by which the last event may be late, when a rate is kept up with. That is 5 % of 10 s.
LATE = 0.5
#: Bytes that wait in the broker when a rate is given up before its time.
BEHIND = 8 * 2**20
#: Steps in which the highest rate is sought: up, and down; and halvings of what is between the two.
STEP, STEPS, HALVINGS = 1.5, 8, 3
#: Share of a rate that counts as that rate being published.
PUBLISHED = 0.98
#: Seconds for the last events to be counted.
LAST = 2.0

_numbers = itertools.count()


@contextmanager
def started(contender: type[Contender], broker: Broker, folder: Path) -> Iterator[Contender]:
    """Start it on a broker to which nobody listens any more."""
    eventually(lambda: not broker.is_heard(), every=0.02, what="the subscriber before gone")
    with contender(folder / f"{contender.letter}-{next(_numbers)}", broker) as process:
        try:
            yield process
        except VoidError as error:
            raise VoidError(f"{error}; the log of {contender.name} ends with\n{process.tail()}") from None


class Replayed(NamedTuple):
    """One replay of a tape: CPU us an event, the share of events that was counted, and how it came up."""

    cpu: float
    share: float
    start: float | None  # ms to the first /metrics, for what is timed
    memory: float  # MB before the first event


def measure_replay(contender: type[Contender], broker: Broker, folder: Path, tape: Tape) -> Replayed:
    """Replay a tape as fast as the contender takes it."""
    with started(contender, broker, folder) as process:
        process.measure_idle(IDLE)
        memory = process.memory()
        before, start = process.cpu(), time.monotonic()
        replay(broker, tape)
        process.rest()
        seconds, cpu = time.monotonic() - start, process.cpu() - before
        seen, expected = count(process, tape)
        return Replayed(
            cpu=(cpu - process.idle * seconds) / tape.kinds.total() * 1e6,
            share=seen / expected,
            start=process.came_up * 1e3 if isinstance(process, Ours) else None,
            memory=memory,
        )


def count(process: Contender, tape: Tape) -> tuple[int, int]:
    """Return how many events it has counted, and how many there were."""
    seen, expected = process.counted(), process.expected(tape.kinds)
    end = time.monotonic() + LAST
    while seen != expected and process.alive() and time.monotonic() < end:
        time.sleep(0.1)
        seen = process.counted()
    return seen, expected


class Rate(NamedTuple):
    """Events a second; `is_limit`: it kept up, and more could not be published."""

    rate: float
    is_limit: bool = False


def sustained(
    contender: type[Contender], broker: Broker, folder: Path, tape: Tape, guess: float, hold: float
) -> Rate:
    """Return the highest rate that it keeps up with for `hold` seconds, to some 5 %."""
    with started(contender, broker, folder) as process:
        process.measure_idle(IDLE)
        low = high = None
        rate = guess
        for _ in range(STEPS):
            published, kept_up = hold_rate(process, tape, rate, hold)
            if kept_up and published < PUBLISHED * rate:
                return Rate(published, is_limit=True)
            low, high = (rate, high) if kept_up else (low, rate)
            if low and high:
                break
            rate = rate * STEP if kept_up else rate / STEP
        if low is None:
            raise VoidError(f"{process.name} does not keep up with {rate:.0f} events a second")
        for _ in range(HALVINGS if high else 0):
            middle = (low * high) ** 0.5
            published, kept_up = hold_rate(process, tape, middle, hold)
            if kept_up and published < PUBLISHED * middle:
                return Rate(published, is_limit=True)
            low, high = (middle, high) if kept_up else (low, middle)
        return Rate(low)


def hold_rate(process: Contender, tape: Tape, rate: float, hold: float) -> tuple[float, bool]:
    """Publish at a rate; return what it came to, and whether the last event was worked off soon."""
    broker, start, sent, look = process.broker, time.monotonic(), 0, 0.0
    kept_up = True
    for batch, events in due(tape, rate, hold):
        if batch:
            broker.send(batch)
            sent += events
        if (now := time.monotonic()) > look:
            look = now + 0.2
            if broker.backlog() > BEHIND:
                kept_up = False
                break
    end = time.monotonic()
    broker.settle()
    late = process.rest() - end
    return sent / (end - start), kept_up and late < LATE
