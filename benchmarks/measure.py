"""What is measured of a contender: CPU an event, and how many events a second it keeps up with."""

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
from benchmarks.tape import Tape

#: Part of a tape that is played before the rest is measured: caches are filled, and who asks workers that
#: are new to it (the exporter does) has asked.
WARM_UP = 1 / 10
#: Seconds in which that dies away, and then in which the idle cost is measured.
SETTLE, IDLE = 1.2, 0.6
#: Seconds by which the last event may be late, when a rate is kept up with. That is 5 % of 10 s.
LATE = 0.5
#: Bytes that wait in the broker when a rate is given up before its time.
BEHIND = 8 * 2**20
#: Steps in which the highest rate is sought: up, and down; and halvings of what is between.
STEP, STEPS, HALVINGS = 1.4, 8, 2
#: Share of a rate that counts as that rate being published.
PUBLISHED = 0.98
#: Seconds for the last events to be counted.
LAST = 2.0

_numbers = itertools.count()


@contextmanager
def started(contender: type[Contender], broker: Broker, folder: Path) -> Iterator[Contender]:
    """Start it on a broker to which nobody listens any more; what goes wrong makes the run void."""
    eventually(lambda: not broker.is_heard(), every=0.02, what="the subscriber before gone")
    process = contender(folder / f"{contender.letter}-{next(_numbers)}", broker)
    try:
        with process:
            yield process
    except (VoidError, RuntimeError, AssertionError, OSError) as error:
        raise VoidError(f"{error}; the log of {contender.name} ends with\n{process.tail(20)}") from error


class Replayed(NamedTuple):
    """One replay of a tape: CPU us an event, the share of events that was counted, and how it came up."""

    cpu: float
    share: float
    start: float | None  # ms to the first /metrics, for what is timed
    memory: float  # MB before the first event


def measure_replay(contender: type[Contender], broker: Broker, folder: Path, tape: Tape) -> Replayed:
    """Replay a tape as fast as the contender takes it."""
    with started(contender, broker, folder) as process:
        memory = process.memory()
        warm_up = int(WARM_UP * len(tape.messages))
        replay(broker, tape.messages[:warm_up])
        time.sleep(SETTLE)
        process.measure_idle(IDLE)
        before, start = process.cpu(), time.monotonic()
        replay(broker, tape.messages[warm_up:])
        process.rest()
        seconds, cpu = time.monotonic() - start, process.cpu() - before
        seen, expected = count(process, tape)
        return Replayed(
            cpu=(cpu - process.idle * seconds) / sum(tape.sizes[warm_up:]) * 1e6,
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
    """Events a second, and the cores that the contender used for them.

    `is_limit`: it kept up, and more could not be published.
    """

    rate: float
    cores: float
    is_limit: bool = False


class Held(NamedTuple):
    """A rate that was tried: what was published, the cores in use, and whether the contender kept up."""

    events: int
    rate: float
    cores: float
    kept_up: bool


def sustained(
    contender: type[Contender], broker: Broker, folder: Path, tape: Tape, guess: float, hold: float
) -> Rate:
    """Return the highest rate that it keeps up with for `hold` seconds, to some 5 %."""
    with started(contender, broker, folder) as process:
        time.sleep(SETTLE)
        process.measure_idle(IDLE)
        tried: list[Held] = []

        def attempt(rate: float) -> Held:
            tried.append(hold_rate(process, tape, rate, hold))
            return tried[-1]

        rate = search(attempt, guess)
        events = sum(held.events for held in tried)
        if isinstance(process, Ours) and (counted := process.counted()) != events:
            raise VoidError(f"{process.name} counted {counted:,} of {events:,} events")
        return rate


def search(attempt: Callable[[float], Held], guess: float) -> Rate:
    """Step up or down from a guess until the highest rate is between two, then halve what is between."""
    best, high, rate = None, None, guess
    for _ in range(STEPS):
        held = attempt(rate)
        if held.kept_up and held.rate < PUBLISHED * rate:
            return Rate(held.rate, held.cores, is_limit=True)
        best, high = (held, high) if held.kept_up else (best, rate)
        if best and high:
            break
        rate = rate * STEP if held.kept_up else rate / STEP
    if best is None:
        raise VoidError(f"{rate:,.0f} events a second are too many")
    for _ in range(HALVINGS if high else 0):
        middle = (best.rate * high) ** 0.5
        held = attempt(middle)
        best, high = (held, high) if held.kept_up else (best, middle)
    return Rate(best.rate, best.cores)


def hold_rate(process: Contender, tape: Tape, rate: float, hold: float) -> Held:
    """Publish at a rate; tell what it came to, and whether the last event was worked off soon."""
    broker, sent, look, kept_up = process.broker, 0, 0.0, True
    start, cpu = time.monotonic(), process.cpu()
    for batch, events in due(tape, rate, hold):
        if batch:
            broker.send(batch)
            sent += events
        if (now := time.monotonic()) > look:
            look = now + 0.05
            if broker.backlog() > BEHIND:
                kept_up = False
                break
    end = time.monotonic()
    cores = (process.cpu() - cpu) / (end - start)
    broker.settle()
    late = process.rest() - end
    return Held(sent, sent / (end - start), cores, kept_up and late < LATE)
