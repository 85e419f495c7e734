"""The label sets in use: each is one object, and there are no more of them than somebody chose.

Invariant: a label set that there is no room for is added up under task_name `other`, and what was counted
under one that is given up moves there; so a sum over all tasks never falls. Room is counted in label sets,
and in the bytes of their values: each is written some 70 times on a page.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from celery_exporter.core.task_names import ShownAs, clipped
from celery_exporter.core.types import EXCLUDED, OTHER, UNKNOWN, LabelSet

#: Shadow names whose tasks are known. An application may make one up for each call.
MAX_SHADOWS = 1_000
#: Bytes of a label set's values, on the average of as many as there may be. Usual ones have 60.
MEAN_BYTES = 300


class Keys:
    """`labels` are the optional labels in use on task metrics, of "queue_name" and "worker".

    `show` says what a task is called, `show_queue` what a queue is. Tasks of a queue that is not shown are
    still counted, under queue_name `other`: an excluded queue must not lower a sum over a task's queues.
    """

    def __init__(
        self,
        limit: int,
        labels: Iterable[str] = ("queue_name",),
        show: ShownAs = str,
        show_queue: ShownAs = str,
    ) -> None:
        self.by_queue = "queue_name" in labels
        self.by_worker = "worker" in labels
        self.folded = 0  # times a label set was added up as other
        self.show = show
        self.show_queue = show_queue
        # Whether what is restored was shown by other rules: today's apply to what they made of it.
        self.renamed = False
        self.queues_renamed = False
        self.shadows: dict[str, str] = {}  # what workers call a task (its shadow name) → what it is shown as
        self._limit = limit
        self._bytes, self._most_bytes = 0, limit * MEAN_BYTES  # of the values of all
        self._known: dict[LabelSet, LabelSet] = {}
        # What most tasks are called, and their keys; by worker, the keys of what it did to them.
        self._found: dict[tuple[str | None, str | None], LabelSet] = {}
        self._at: dict[str, dict[LabelSet, LabelSet]] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._known)

    def key(self, name: str | None, queue: str | None) -> LabelSet:
        """Return the key of tasks of this name, as the application calls them, and queue; None is unknown."""
        shown = self.shown(name) if name else UNKNOWN
        return LabelSet(shown, self.queue_label(queue) if self.by_queue else "") if shown else EXCLUDED

    def queue_label(self, queue: str | None) -> str:
        """Return the label value of a queue, as the application calls it; None is unknown."""
        return (clipped(self.show_queue(queue)) or OTHER) if queue else UNKNOWN

    def shown(self, name: str) -> str:
        """Return what tasks of this name, or with this shadow name, are shown as."""
        shown = self.shadows.get(name)
        return clipped(self.show(name)) if shown is None else shown

    def forget_shadows(self, registered: Collection[str]) -> None:
        """Forget the shadow names that workers have as names of tasks by now."""
        for name in [name for name in self.shadows if name in registered]:
            del self.shadows[name]

    def learn_shadow(self, shadow: str, shown: str) -> None:
        """Show tasks that workers call `shadow` under the name of the task that it stands for."""
        if len(self.shadows) < MAX_SHADOWS:
            self.shadows[shadow] = shown
            self._found.clear()

    def of_task(self, name: str | None, queue: str | None) -> LabelSet:
        """Return the same, admitted."""
        found = self._found.get((name, queue))
        if found is None:
            key = self.key(name, queue)
            found = self.admit(key)
            if found == key and len(self._found) < self._limit:  # what is folded is counted each time
                self._found[name, queue] = found
        return found

    def of_name(self, name: str, key: LabelSet) -> LabelSet:
        """Return the key of tasks of this name in the queue of another key, admitted."""
        shown = self.shown(name)
        return self.admit(LabelSet(shown, key.queue_name) if shown else EXCLUDED)

    def at_worker(self, key: LabelSet, worker: str) -> LabelSet:
        """Return the key for what this worker did to tasks of that key."""
        known = self._at.get(worker)
        if known is not None and key in known:
            return known[key]
        if not self.by_worker or key is EXCLUDED:
            return key
        there = LabelSet(key.task_name, key.queue_name, worker)
        found = self.admit(there)
        if found == there:  # what is folded is counted each time
            self._at.setdefault(worker, {})[key] = found
        return found

    def admit(self, key: LabelSet) -> LabelSet:
        """Return the one instance of this key, or, when there are too many, the one that sums up the rest."""
        known = EXCLUDED if key == EXCLUDED else self._known.get(key)
        if known is None:
            if not self._has_room(key):
                self.folded += 1
                key = rest(key)
            known = self._known.get(key)
        if known is None:
            known = self._known[key] = key
            self._bytes += _size(key)
        return known

    def _has_room(self, key: LabelSet) -> bool:
        return len(self._known) < self._limit and self._bytes + _size(key) <= self._most_bytes

    def foresee(self, keys: set[LabelSet]) -> list[LabelSet]:
        """Admit keys of tasks that may come, as far as there is room: they are not worth folding."""
        new = keys - self._known.keys() - {EXCLUDED}
        return [self.admit(key) for key in new if self._has_room(key)]

    def give_up(self, moves: Mapping[LabelSet, LabelSet]) -> list[tuple[LabelSet, LabelSet]]:
        """Forget keys; return each with the admitted one to which its sums move."""
        self._found.clear()
        self._at.clear()
        for key in moves:
            del self._known[key]
            self._bytes -= _size(key)
        return [(key, self.admit(into)) for key, into in moves.items()]

    def restore(self, key: LabelSet) -> LabelSet:
        """Return a key of an earlier process, with the labels that are in use now, admitted."""
        if self.renamed and key.task_name not in {OTHER, UNKNOWN, EXCLUDED.task_name}:
            name = self.show(key.task_name)
            key = LabelSet(name, key.queue_name, key.worker) if name else EXCLUDED
        queue = (key.queue_name or UNKNOWN) if self.by_queue and key != EXCLUDED else ""
        if self.queues_renamed and queue not in {"", OTHER, UNKNOWN}:
            queue = self.queue_label(queue)
        return self.admit(LabelSet(key.task_name, queue, key.worker if self.by_worker else ""))

    def without_worker(self, key: LabelSet) -> LabelSet:
        """Return the key of the tasks to which somebody did something."""
        return self.admit(LabelSet(key.task_name, key.queue_name)) if key.worker else key

    def of_workers(self, workers: set[str]) -> list[LabelSet]:
        """Return the keys of what these workers did."""
        return [key for key in self._known if key.worker in workers]

    def of_tasks(self, keys: set[LabelSet]) -> list[LabelSet]:
        """Return these keys of tasks, and those of what each worker did to such tasks."""
        return [key for key in self._known if LabelSet(key.task_name, key.queue_name) in keys]


def _size(key: LabelSet) -> int:
    """Return the bytes of a label set's values."""
    values = (key.task_name, key.queue_name, key.worker)
    return sum(len(value.encode("utf-8", "replace")) for value in values)


def rest(key: LabelSet) -> LabelSet:
    """Return the key under which what this key stands for is added up with others."""
    return LabelSet(OTHER, OTHER if key.queue_name else "", OTHER if key.worker else "")
