"""When task-sent comes early, late, or not at all."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from harness.delayed_events import DelayedDispatcher
from harness.outcomes import Outcome
from harness.waiting import eventually, until_equal

from .jobs import PLAIN, send_shuffled
from .scene import Scene, size
from .sums import UNKNOWN

#: How late a task-sent may come.
LATEST_SECONDS = 10.0


class Off(NamedTuple):
    """A scenario without task-sent: what the worker consumes, and what its tasks' queue is called then."""

    name: str
    queues: str
    shown_as: str


@pytest.mark.parametrize(
    "scenario",
    [
        Off("task-sent off, one queue", "left", "left"),
        Off("task-sent off, two queues", "left,right", UNKNOWN),
    ],
    ids=lambda row: row.name,
)
def test_without_task_sent_the_queue_is_the_only_one_it_can_be_or_unknown(
    scene: Scene, scenario: Off
) -> None:
    """Every other sum is exact; how long tasks were queued is not said at all."""

    def seen(entries: Counter[Outcome]) -> Counter[Outcome]:
        found: Counter[Outcome] = Counter()
        for entry, count in entries.items():
            if entry.state != "PENDING":
                found[entry._replace(queue=scenario.shown_as)] += count
        return found

    scene.seen, scene.is_introduced = seen, lambda _: False
    scene.client = scene.make_client(task_send_sent_event=False)
    scene.start(scene.exporter, scene.make_worker(queues=scenario.queues, task_send_sent_event=False))
    send_shuffled(scene, PLAIN, tuple(scenario.queues.split(",")))
    scene.await_ends()
    samples = scene.holds()
    fallbacks = samples.by("celery_exporter_label_fallbacks_total", "label")
    assert fallbacks == {("task_name",): 0, ("queue_name",): scene.sent, ("worker",): 0}


def test_worker_events_that_overtake_task_sent(scene: Scene) -> None:
    """Nothing is booked before the queue is known, as long as that takes less than the reorder window.

    That is longer here than usual, for a busy machine may take seconds for a task.
    """
    exporter = scene.make_exporter("--reorder-window", str(2 * LATEST_SECONDS))
    scene.start(exporter, scene.make_worker(), scene.make_worker("threads@test", pool="threads"))
    for _ in range(size(1, 10)):  # as many at a time as workers can begin with while the news of them waits
        sent, done = scene.sent, scene.total("SUCCESS")
        with DelayedDispatcher(scene.client, 0.0, LATEST_SECONDS) as late:
            send_shuffled(scene, PLAIN, full=1, event_dispatcher=late)
            scene.send("tasks.retry_with_late_task_sent", times=6)
            eventually(
                lambda: scene.total("SUCCESS") - done + late.waiting > scene.sent - sent,  # noqa: B023  at once
                every=0.02,
                what="a task that ended before its task-sent was published",
            )
            late.deliver_within(1.5)
        scene.await_ends()
    scene.await_counted()  # what the workers themselves tell late dies with them
    samples = scene.holds()
    assert not any(samples.by("celery_exporter_label_fallbacks_total", "label").values())


def test_a_backlog_before_the_first_starts(scene: Scene) -> None:
    """As many as that are in flight at once, and each keeps its name and its queue."""
    scene.start(scene.exporter)
    scene.send("tasks.succeed", times=size(3_000, 50_000))
    waiting = {"state": "PENDING", "task_name": "tasks.succeed", "queue_name": "celery"}
    until_equal(lambda: scene.exporter.value("celery_tasks_in_flight", **waiting), scene.sent)
    workers = (scene.make_worker(node, pool="threads", concurrency=4) for node in ("a@test", "b@test"))
    scene.start(*workers)
    scene.await_ends()
    samples = scene.holds()
    assert samples.value("celery_exporter_tasks_evicted_total") == 0
