"""The label sets in use: each is one object, and their number is limited.

Invariant: what belongs to a label set beyond the limit is added to the one with task_name `other`, and the
sums of a removed label set move there. So a sum over all tasks never falls. The limit is a number of label
sets, and of the bytes of their values: each is written some 70 times on a page.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from celery_exporter.core.task_names import ShownAs, clipped
from celery_exporter.core.types import EXCLUDED, OTHER, UNKNOWN, LabelSet

#: Shadow names whose tasks are known. An application may invent one for each call.
MAX_SHADOWS = 1_000
#: Bytes of the values of a label set, on average over as many as the limit allows. Usual ones have 60.
MEAN_BYTES = 300
#: Label sets for each reserved name that fit beyond the limit.
RESERVED_LABEL_SETS = 100


class LabelSets:
    """Makes label sets, and admits as many as `limit`. Not thread-safe.

    `label_names` are the optional labels in use on task metrics, of "queue_name" and "worker". `show` returns
    the label value of a task name, and `show_queue` that of a queue; an empty one excludes it. Tasks of an
    excluded queue are still counted, under queue_name `other`: excluding one must not lower a sum over
    queues. Label sets of tasks with `reserved` names fit beyond the limit: they are few.
    """

    def __init__(
        self,
        limit: int,
        label_names: Iterable[str] = ("queue_name",),
        show: ShownAs = str,
        show_queue: ShownAs = str,
        reserved: Collection[str] = (),
    ) -> None:
        self.by_queue = "queue_name" in label_names
        self.by_worker = "worker" in label_names
        self.overflowed = 0  # times that a label set beyond the limit was counted as other
        self.show = show
        self.show_queue = show_queue
        # Whether the state file was written with other naming rules: then today's apply to its label values.
        self.renamed = False
        self.queues_renamed = False
        self.shadows: dict[str, str] = {}  # shadow name → label value of the task that it stands for
        self._limit = limit
        self._reserved = reserved
        self._bytes, self._max_bytes = 0, limit * MEAN_BYTES  # of the values of all
        self._admitted: dict[LabelSet, LabelSet] = {}
        # Caches: by the name and queue of a task, and by worker and the label set of a task.
        self._of_tasks: dict[tuple[str | None, str | None], LabelSet] = {}
        self._at_workers: dict[str, dict[LabelSet, LabelSet]] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._admitted)

    # -- making them -----------------------------------------------------------------------------------

    def make(self, name: str | None, queue: str | None) -> LabelSet:
        """Return the label set of a task by its own name and queue; None is unknown. It is not admitted."""
        shown = self.shown(name) if name else UNKNOWN
        return LabelSet(shown, self.queue_label(queue) if self.by_queue else "") if shown else EXCLUDED

    def queue_label(self, queue: str | None) -> str:
        """Return the label value of a queue; None is unknown."""
        return (clipped(self.show_queue(queue)) or OTHER) if queue else UNKNOWN

    def shown(self, name: str) -> str:
        """Return the label value of a task name, or of a shadow name; empty if it is excluded."""
        shown = self.shadows.get(name)
        return clipped(self.show(name)) if shown is None else shown

    def add_shadow(self, shadow: str, shown: str) -> None:
        """Show tasks with this shadow name as the task that it stands for."""
        if len(self.shadows) < MAX_SHADOWS:
            self.shadows[shadow] = shown
            self._of_tasks.clear()

    def remove_shadows(self, registered: Collection[str]) -> None:
        """Remove the shadow names that workers now register as names of tasks."""
        for name in [name for name in self.shadows if name in registered]:
            del self.shadows[name]

    # -- admitting them ----------------------------------------------------------------------------------

    def of_task(self, name: str | None, queue: str | None) -> LabelSet:
        """Return the admitted label set of a task by its own name and queue; None is unknown."""
        label_set = self._of_tasks.get((name, queue))
        if label_set is None:
            wanted = self.make(name, queue)
            label_set = self.admit(wanted)
            if label_set == wanted and len(self._of_tasks) < self._limit:  # an overflow is counted each time
                self._of_tasks[name, queue] = label_set
        return label_set

    def of_name(self, name: str, label_set: LabelSet) -> LabelSet:
        """Return the admitted label set of tasks of this name in the queue of another label set."""
        shown = self.shown(name)
        return self.admit(LabelSet(shown, label_set.queue_name) if shown else EXCLUDED)

    def at_worker(self, label_set: LabelSet, worker: str) -> LabelSet:
        """Return the admitted label set for what a worker did to tasks of this label set."""
        cached = self._at_workers.get(worker)
        if cached is not None and label_set in cached:
            return cached[label_set]
        if not self.by_worker or label_set is EXCLUDED:
            return label_set
        wanted = LabelSet(label_set.task_name, label_set.queue_name, worker)
        admitted = self.admit(wanted)
        if admitted == wanted:  # an overflow is counted each time
            self._at_workers.setdefault(worker, {})[label_set] = admitted
        return admitted

    def admit(self, label_set: LabelSet) -> LabelSet:
        """Return the one instance of this label set; beyond the limit, the one that sums up the rest."""
        admitted = EXCLUDED if label_set == EXCLUDED else self._admitted.get(label_set)
        if admitted is None:
            if not self._fits(label_set):
                self.overflowed += 1
                label_set = rest(label_set)
            admitted = self._admitted.get(label_set)
        if admitted is None:
            admitted = self._admitted[label_set] = label_set
            self._bytes += _size(label_set)
        return admitted

    def admit_expected(self, label_sets: set[LabelSet]) -> list[LabelSet]:
        """Admit label sets of tasks that may come, as far as they fit; they cause no overflow."""
        new = label_sets - self._admitted.keys() - {EXCLUDED}
        return [self.admit(label_set) for label_set in new if self._fits(label_set)]

    def _fits(self, label_set: LabelSet) -> bool:
        if label_set.task_name in self._reserved:
            return len(self._admitted) < self._limit + len(self._reserved) * RESERVED_LABEL_SETS
        return len(self._admitted) < self._limit and self._bytes + _size(label_set) <= self._max_bytes

    # -- removing and restoring them -----------------------------------------------------------------------

    def remove(self, moves: Mapping[LabelSet, LabelSet]) -> list[tuple[LabelSet, LabelSet]]:
        """Remove label sets; return each with the admitted one that its sums move to."""
        self._of_tasks.clear()
        self._at_workers.clear()
        for label_set in moves:
            del self._admitted[label_set]
            self._bytes -= _size(label_set)
        return [(label_set, self.admit(into)) for label_set, into in moves.items()]

    def restore(self, label_set: LabelSet) -> LabelSet:
        """Return a label set of the state file, with the labels and names in use now, admitted."""
        name, queue = self.restored_name(label_set.task_name), label_set.queue_name
        if not name or name == EXCLUDED.task_name:
            return EXCLUDED
        queue = (queue or UNKNOWN) if self.by_queue else ""
        if self.queues_renamed and queue not in {"", OTHER, UNKNOWN}:
            queue = self.queue_label(queue)
        return self.admit(LabelSet(name, queue, label_set.worker if self.by_worker else ""))

    def restored_name(self, name: str) -> str:
        """Return a task name of the state file as it is shown now; empty if it is excluded."""
        is_renamed = self.renamed and name not in {OTHER, UNKNOWN, EXCLUDED.task_name}
        return self.show(name) or "" if is_renamed else name

    def without_worker(self, label_set: LabelSet) -> LabelSet:
        """Return the admitted label set of the tasks that a worker acted on."""
        return (
            self.admit(LabelSet(label_set.task_name, label_set.queue_name)) if label_set.worker else label_set
        )

    def of_workers(self, workers: set[str]) -> list[LabelSet]:
        """Return the label sets of these workers."""
        return [label_set for label_set in self._admitted if label_set.worker in workers]

    def of_tasks(self, label_sets: set[LabelSet]) -> list[LabelSet]:
        """Return these label sets of tasks, and those of each worker that acted on such tasks."""
        return [
            admitted
            for admitted in self._admitted
            if LabelSet(admitted.task_name, admitted.queue_name) in label_sets
        ]


def _size(label_set: LabelSet) -> int:
    """Return the bytes of the values of a label set."""
    values = (label_set.task_name, label_set.queue_name, label_set.worker)
    return sum(len(value.encode("utf-8", "replace")) for value in values)


def rest(label_set: LabelSet) -> LabelSet:
    """Return the label set that what does not fit is added to."""
    return LabelSet(OTHER, OTHER if label_set.queue_name else "", OTHER if label_set.worker else "")
