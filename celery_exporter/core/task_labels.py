"""Which label set a task has, by its events and by what workers replied.

A retry may go to another queue than the first attempt, and other work under the same id has another name. So
each attempt may have a label set of its own; the task has that of its newest one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from celery_exporter.core.events import Event
from celery_exporter.core.label_sets import LabelSets
from celery_exporter.core.task_exceptions import unregistered_name
from celery_exporter.core.task_history import TaskHistory, generation_of
from celery_exporter.core.tasks import Task, TaskTable
from celery_exporter.core.types import EXCLUDED, OTHER, UNKNOWN, LabelSet
from celery_exporter.core.worker_registry import WorkerRegistry


class TaskLabels:
    """Finds and assigns the label sets of tasks and their attempts.

    `fallbacks` counts tasks under the name of the label that had to do without a value.
    """

    def __init__(
        self, tasks: TaskTable, label_sets: LabelSets, workers: WorkerRegistry, fallbacks: Counter[str]
    ) -> None:
        self._tasks = tasks
        self._label_sets = label_sets
        self._workers = workers
        self._fallbacks = fallbacks

    def find(self, events: Sequence[Event]) -> LabelSet:
        """Return the label set that these events of a task determine.

        A missing queue is the only one that a sender consumes, if it is one; else it is `unknown`.
        """
        name = queue = None
        for event in events:
            name = name or event.name or unregistered_name(event.exception)
            queue = queue or event.queue
        if name is not None and queue is not None:  # the usual case
            return self._label_sets.of_task(name, queue)
        if name is None:
            self._fallbacks["task_name"] += 1
        elif not self._label_sets.shown(name):
            return EXCLUDED
        if queue is None and self._label_sets.by_queue:
            self._fallbacks["queue_name"] += 1
            queues = (self._workers.only_queue(event.hostname) for event in events)
            queue = next(filter(None, queues), None)
        return self._label_sets.of_task(name, queue)

    def at_worker(self, label_set: LabelSet, worker: str) -> LabelSet:
        """Return the label set for what a worker did; of one beyond the limit of workers it has `other`."""
        if not self._label_sets.by_worker:
            return label_set
        return self._label_sets.at_worker(label_set, worker if worker in self._workers.workers else OTHER)

    def is_missing(self, task: Task) -> bool:
        """Return whether the queue of an identified, open task is unknown."""
        return task.bucket.group.label_set.queue_name == UNKNOWN and task.bucket.state is not None

    def update_at_receipt(self, task: Task, event: Event) -> None:
        """Take from a receipt what was unknown when the task was sent."""
        if task.expanded is not None:
            task.expanded.drop_label_set_if_over(event.retries or 0)
        if not task.is_sent(event.retries or 0):
            self.update(task, event, self._workers.only_queue(event.hostname))
            return
        label_set = task.label_set_of(event.retries)
        if event.name is not None and self._label_sets.shown(event.name) != label_set.task_name:
            self._compare_names(event.name, event.hostname, label_set)
        is_unknown = label_set.queue_name == UNKNOWN
        queue = self._workers.only_queue(event.hostname) if is_unknown else None
        if queue is not None and label_set.task_name != OTHER:
            self._assign(task, event, self._label_sets.admit(LabelSet(label_set.task_name, queue)))

    def _compare_names(self, name: str, worker: str, label_set: LabelSet) -> None:
        """Record which task a shadow name stands for: the one that was sent. No worker registers it."""
        if not self._workers.is_shadow_name(name, worker) or label_set.task_name in (OTHER, UNKNOWN):
            return
        if name not in self._workers.registered_names and not name.startswith("celery."):
            self._label_sets.add_shadow(name, label_set.task_name)

    def update(self, task: Task, event: Event, queue: str | None) -> None:
        """Take name and queue of an attempt from the event that reports it: it may have gone elsewhere.

        The task moves with its newest attempt; the others keep their label sets.
        """
        label_set = task.bucket.group.label_set
        if label_set.task_name == OTHER or event.name is None:
            return
        before = None if queue else self._before(task.history(), label_set, event.retries or 0)
        if before is None:
            updated = self._label_sets.of_task(event.name, queue)
        else:
            updated = self._label_sets.of_name(event.name, before)
        self._assign(task, event, updated)

    def _assign(self, task: Task, event: Event, updated: LabelSet) -> None:
        """Give the attempt of an event its label set, and the task if the attempt is its newest."""
        bucket, attempt = task.bucket, event.retries or 0
        label_set, history = bucket.group.label_set, task.history()
        if updated == label_set and history.attempt_label_sets is None:
            return
        others = history.attempts() - {attempt}
        if others:
            before = history.attempt_label_sets or {}
            label_sets = {other: before.get(other, label_set) for other in others} | {attempt: updated}
            task.expand().attempt_label_sets = label_sets
        if attempt > max(others, default=-1) and not history.is_open_before(generation_of(attempt)):
            self._tasks.move(task, self._tasks.group(updated), bucket.effective_state, task.since)

    def _before(self, history: TaskHistory, label_set: LabelSet, attempt: int) -> LabelSet | None:
        """Return the label set of the attempt before one without a `task-sent`: it is in the same queue.

        None for the first attempt of a successor, which does other work and may come from anywhere.
        """
        label_sets = history.attempt_label_sets or dict.fromkeys(history.attempts(), label_set)
        generation = generation_of(attempt)
        nearest = max((other for other in label_sets if generation_of(other) == generation), default=None)
        if nearest is not None:
            return label_sets[nearest]
        if not generation:
            return label_set
        self._fallbacks["queue_name"] += self._label_sets.by_queue
        return None
