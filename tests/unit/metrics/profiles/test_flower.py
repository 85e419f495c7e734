"""Who scrapes Flower and leaves it for ours: the numbers that contracts/record.py recorded of 2.2.0."""

from __future__ import annotations

import re

import pytest
from data.compat.record import CASES, FOLDERS
from data.compat.streams import HERE, messages, samples

from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select
from unit.core.cluster_driver import (
    ClusterDriver,
    failed,
    heartbeat,
    received,
    rejected,
    retried,
    started,
    succeeded,
    task_event,
)
from unit.test_golden_replay import replay

SELECTION = select(("flower",), MetricOptions())
#: What the remarks say: a client is called by its process there; what a worker runs that is down is not
#: known; a task with an eta is left out; the last time stays where a task was retried or rejected.
CLIENT = re.compile(r'worker="gen\d+@')
DOWN = ("celery@box-2", "prefork@tape")
OF_DOWN = tuple(f'flower_worker_number_of_currently_executing_tasks{{worker="{name}"}}' for name in DOWN)
WITH_ETA = re.compile(r'flower_(task_prefetch_time_seconds|worker_prefetched_tasks)\{task="shop.remind"')
NOT_ENDED = ('task="shop.mail",worker="celery@box-1"', 'task="shop.refund"', 'task="tasks.reject"')
#: A late goodbye brings a worker back there that was forgotten, and what was sent at its host stays.
FORGOTTEN = (
    'flower_worker_online{worker="celery@box-2"}',
    'flower_events_total{task="shop.mail",type="task-sent",worker="gen40@box-2"}',
)


def there(case: str) -> set[str]:
    """Return what was recorded, but for what the remarks name."""
    lines = (HERE / "flower-2.2.0" / f"{case}.txt").read_text().splitlines()
    drop = (*OF_DOWN, *FORGOTTEN) if case == "purged" else OF_DOWN
    named = {CLIENT.sub('worker="', line) for line in lines if not line.startswith(drop)}
    return {_ended(line) for line in named}


def _ended(line: str) -> str:
    is_time = line.startswith("flower_task_prefetch_time_seconds") and any(each in line for each in NOT_ENDED)
    return f"{line.rpartition(' ')[0]} 0.0" if is_time else line


def here(case: str) -> set[str]:
    """Return what we show, but for events of which there are none yet and what the remarks name."""
    stream, _, sendings = CASES[case]
    snapshot = replay(messages(stream, sendings=sendings), SELECTION)
    page = samples(Exposition(SELECTION.rows).render(snapshot).decode()).splitlines()
    shown = (line for line in page if line.startswith("flower_") and not WITH_ETA.match(line))
    return {line for line in shown if not (line.startswith("flower_events_total") and line.endswith(" 0.0"))}


@pytest.mark.parametrize("case", FOLDERS["flower-2.2.0"])
def test_a_stream_is_shown_as_by_flower_sample_by_sample(case):
    assert sorted(here(case)) == sorted(there(case))


def times(*events: dict) -> list[float]:
    """Return the prefetch times that are shown after these events."""
    driver = ClusterDriver(labels=SELECTION.labels, clients=True)
    driver.apply(*events)
    driver.wait(3)
    lines = Exposition(SELECTION.rows).render(driver.shown(prefetched=True)).decode().splitlines()
    return [
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("flower_task_prefetch_time_seconds{")
    ]


BEGUN = (received(at=1), started(at=4))


def test_the_time_of_the_task_that_runs_is_shown():
    assert times(*BEGUN) == [3.0]


@pytest.mark.parametrize("end", [succeeded, failed, retried, rejected])
def test_a_time_is_zero_once_its_task_ended(end):
    assert times(*BEGUN, end(at=5)) == [0.0]


def test_a_task_that_is_revoked_while_it_waits_ends_no_other():
    revoked = task_event("revoked", "u2", at=5, expired=True)
    assert times(*BEGUN, received("u2", at=4.5), revoked) == [3.0]


def test_the_newest_time_of_several_is_shown():
    assert times(*BEGUN, received("u2", at=5), started("u2", at=6)) == [1.0]


def test_a_worker_that_starts_nothing_has_no_time():
    assert times(heartbeat(), received()) == []
