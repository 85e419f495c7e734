"""task-sent events that arrive early, late, or never."""

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

#: Maximum delay of a task-sent.
MAX_DELAY_SECONDS = 10.0


class WithoutSent(NamedTuple):
    """A scenario without task-sent: the queues of the worker, and the label value of the queue."""

    name: str
    queues: str
    label: str


@pytest.mark.parametrize(
    "scenario",
    [
        WithoutSent("task-sent off, one queue", "left", "left"),
        WithoutSent("task-sent off, two queues", "left,right", UNKNOWN),
    ],
    ids=lambda row: row.name,
)
def test_without_task_sent_the_queue_is_the_only_one_of_the_worker_or_unknown(
    scene: Scene, scenario: WithoutSent
) -> None:
    """All other sums are exact, and there are no queue waits."""

    def expected(entries: Counter[Outcome]) -> Counter[Outcome]:
        relabelled: Counter[Outcome] = Counter()
        for entry, count in entries.items():
            if entry.state != "PENDING":
                relabelled[entry._replace(queue=scenario.label)] += count
        return relabelled

    scene.expected, scene.has_sent_event = expected, lambda _: False
    scene.client = scene.make_client(task_send_sent_event=False)
    scene.start(scene.exporter, scene.make_worker(queues=scenario.queues, task_send_sent_event=False))
    send_shuffled(scene, PLAIN, tuple(scenario.queues.split(",")))
    scene.await_ends()
    samples = scene.assert_exact()
    fallbacks = samples.by("celery_exporter_label_fallbacks_total", "label")
    assert fallbacks == {("task_name",): 0, ("queue_name",): scene.sent, ("worker",): 0}


def test_worker_events_that_overtake_task_sent(scene: Scene) -> None:
    """Tasks are counted under their queue if task-sent arrives within the reorder window.

    The window is longer than usual, because a busy machine may take seconds for a task.
    """
    exporter = scene.make_exporter("--reorder-window", str(2 * MAX_DELAY_SECONDS))
    scene.start(exporter, scene.make_worker(), scene.make_worker("threads@test", pool="threads"))
    for _ in range(size(1, 10)):  # so many that workers can start them while their task-sent is delayed
        sent, succeeded = scene.sent, scene.total("SUCCESS")
        with DelayedDispatcher(scene.client, 0.0, MAX_DELAY_SECONDS) as late:
            send_shuffled(scene, PLAIN, full=1, event_dispatcher=late)
            scene.send("tasks.retry_with_late_task_sent", times=6)
            eventually(
                lambda: scene.total("SUCCESS") - succeeded + late.waiting > scene.sent - sent,  # noqa: B023  at once
                every=0.02,
                what="a task that ended before its task-sent was published",
            )
            late.deliver_within(1.5)
        scene.await_ends()
    scene.await_counted()  # before the workers stop and lose their delayed events
    samples = scene.assert_exact()
    assert not any(samples.by("celery_exporter_label_fallbacks_total", "label").values())


def test_a_backlog_before_the_first_starts(scene: Scene) -> None:
    """All of them are in flight at the same time, and each keeps its name and queue."""
    scene.start(scene.exporter)
    scene.send("tasks.succeed", times=size(3_000, 50_000))
    waiting = {"state": "PENDING", "task_name": "tasks.succeed", "queue_name": "celery"}
    until_equal(lambda: scene.exporter.value("celery_tasks_in_flight", **waiting), scene.sent)
    workers = (scene.make_worker(node, pool="threads", concurrency=4) for node in ("a@test", "b@test"))
    scene.start(*workers)
    scene.await_ends()
    samples = scene.assert_exact()
    assert samples.value("celery_exporter_tasks_evicted_total") == 0
