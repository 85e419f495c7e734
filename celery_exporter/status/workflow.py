"""The tasks of a workflow as a tree: each is below the task that sent it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from celery_exporter.core.task_info import TaskInfo


def in_tree_order(tasks: Iterable[TaskInfo]) -> list[TaskInfo]:
    """Return each task after the one that sent it, with all that it sent, the oldest first.

    A task whose sender is not among them is a root.
    """
    by_age = sorted(tasks, key=lambda task: (task.first_sent or task.since, task.uuid))
    uuids = {task.uuid for task in by_age}
    sent: dict[str | None, list[TaskInfo]] = {}
    for task in by_age:
        is_root = task.parent_id not in uuids or task.parent_id == task.uuid
        sent.setdefault(None if is_root else task.parent_id, []).append(task)
    waiting = sent.get(None, [])[::-1]
    ordered: dict[str, TaskInfo] = {}
    while waiting:
        task = waiting.pop()
        ordered[task.uuid] = task
        waiting += sent.get(task.uuid, [])[::-1]
    in_circles = [task for task in by_age if task.uuid not in ordered]  # only hostile clients send them
    return [*ordered.values(), *in_circles]


def levels(tasks: Sequence[TaskInfo]) -> list[int]:
    """Return how deep below a root each task is, in the order of the tree."""
    by_uuid: dict[str, int] = {}
    for task in tasks:
        by_uuid[task.uuid] = by_uuid.get(task.parent_id or "", -1) + 1
    return [by_uuid[task.uuid] for task in tasks]
