"""The flower profile: the values that tests/data/compat/record.py recorded with Flower 2.2.0."""

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
#: The differences that the remarks describe: Flower names a client by its process, keeps the active tasks of
#: a worker that is down, omits tasks with an eta, and keeps the time of a task that was retried or rejected.
CLIENT = re.compile(r'worker="gen\d+@')
DOWN = ("celery@box-2", "prefork@tape")
ACTIVE_OF_DOWN = tuple(
    f'flower_worker_number_of_currently_executing_tasks{{worker="{name}"}}' for name in DOWN
)
WITH_ETA = re.compile(r'flower_(task_prefetch_time_seconds|worker_prefetched_tasks)\{task="shop.remind"')
NOT_ENDED = ('task="shop.mail",worker="celery@box-1"', 'task="shop.refund"', 'task="tasks.reject"')
#: In Flower a late worker-offline restores a removed worker, and the counts of clients on its host stay.
REMOVED = (
    'flower_worker_online{worker="celery@box-2"}',
    'flower_events_total{task="shop.mail",type="task-sent",worker="gen40@box-2"}',
)


def recorded(case: str) -> set[str]:
    """Return the recorded samples, changed by the differences that the remarks describe."""
    lines = (HERE / "flower-2.2.0" / f"{case}.txt").read_text().splitlines()
    drop = (*ACTIVE_OF_DOWN, *REMOVED) if case == "purged" else ACTIVE_OF_DOWN
    by_host = {CLIENT.sub('worker="', line) for line in lines if not line.startswith(drop)}
    return {_ended(line) for line in by_host}


def _ended(line: str) -> str:
    is_time = line.startswith("flower_task_prefetch_time_seconds") and any(
        labels in line for labels in NOT_ENDED
    )
    return f"{line.rpartition(' ')[0]} 0.0" if is_time else line


def exposed(case: str) -> set[str]:
    """Return our samples, without event counts of 0 and the differences that the remarks describe."""
    stream, _, sendings = CASES[case]
    snapshot = replay(messages(stream, sendings=sendings), SELECTION)
    page = samples(Exposition(SELECTION.rows).render(snapshot).decode()).splitlines()
    shown = (line for line in page if line.startswith("flower_") and not WITH_ETA.match(line))
    return {line for line in shown if not (line.startswith("flower_events_total") and line.endswith(" 0.0"))}


@pytest.mark.parametrize("case", FOLDERS["flower-2.2.0"])
def test_stream_has_the_samples_of_flower(case):
    assert sorted(exposed(case)) == sorted(recorded(case))


def times(*events: dict) -> list[float]:
    """Return the exposed prefetch times after these events, in seconds."""
    driver = ClusterDriver(labels=SELECTION.labels, clients=True)
    driver.apply(*events)
    driver.wait(3)
    lines = Exposition(SELECTION.rows).render(driver.shown(prefetched=True)).decode().splitlines()
    return [
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("flower_task_prefetch_time_seconds{")
    ]


RUNNING = (received(at=1), started(at=4))


def test_prefetch_time_is_that_of_the_running_task():
    assert times(*RUNNING) == [3.0]


@pytest.mark.parametrize("end", [succeeded, failed, retried, rejected])
def test_prefetch_time_is_zero_after_the_task_ended(end):
    assert times(*RUNNING, end(at=5)) == [0.0]


def test_task_revoked_while_waiting_does_not_end_the_running_one():
    revoked = task_event("revoked", "u2", at=5, expired=True)
    assert times(*RUNNING, received("u2", at=4.5), revoked) == [3.0]


def test_prefetch_time_is_that_of_the_task_started_last():
    assert times(*RUNNING, received("u2", at=5), started("u2", at=6)) == [1.0]


def test_worker_that_started_no_task_has_no_prefetch_time():
    assert times(heartbeat(), received()) == []
