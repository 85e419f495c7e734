"""The tasks that scenarios send."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from .scene import Scene, size


class Job(NamedTuple):
    """A task, and the number of times that it is sent; usually ten times as many in the full form."""

    task: str
    times: int
    arguments: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


PLAIN = (
    Job("tasks.succeed", 70),
    Job("tasks.fail_with_value_error", 8),
    Job("tasks.fail_with_key_error", 4),
    Job("tasks.fail_with_inner_error", 4),
    Job("tasks.reject", 2),
    Job("tasks.requeue_once", 2),
    Job("tasks.nobody_registered", 2),
    Job("tasks.retry_once", 6),
    Job("tasks.retry_and_fail", 2),
    Job("tasks.retry_without_exc", 2),
    Job("tasks.autoretry_and_fail", 2),
    Job("tasks.fail_after_retries", 2, (2,)),
    Job("tasks.fail_after_retries", 1, (0,)),
)
BACK_OFF = (Job("tasks.back_off", 2),)
LATER = (
    Job("tasks.succeed", 4, (), (("countdown", 1),)),
    Job("tasks.retry_once", 2, (1,)),
)
KILLED = (Job("tasks.die", 1),)


def send_shuffled(
    scene: Scene,
    jobs: tuple[Job, ...],
    queues: tuple[str, ...] = ("celery",),
    *,
    full: int = 10,
    **options: Any,
) -> None:
    """Send all jobs to each queue, `full` times as many in the full form, in a reproducible order."""
    messages = [(job, queue) for queue in queues for job in jobs for _ in range(job.times * size(1, full))]
    random.Random(2).shuffle(messages)
    for job, queue in messages:
        scene.send(job.task, *job.arguments, queue=queue, **dict(job.options), **options)
