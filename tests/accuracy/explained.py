"""Why tasks are where they are: answers of the exporter of a scene, compared with the recorded outcomes."""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from harness.diagnoses import LAG_SECONDS, PENDING, Asker, contradictions, states_between
from harness.outcomes import Entry

if TYPE_CHECKING:
    from typing import Self

    from .scene import Scene


#: Tasks that are asked about at the end, besides those while the workers stop.
ASKED_AT_END = 2


class Explained:
    """Asks about the tasks of a scene all the time, and judges the answers at the end."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._asker = Asker(lambda: scene.exporter, self._choose)
        self._listening_since = self._counted_at = math.inf
        self._samples: list[str] = []  # ids of tasks, instead of all

    def __enter__(self) -> Self:
        self._asker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._asker.stop()

    def listens(self) -> None:
        """Note that the exporter has started, and receives events."""
        self._listening_since = time.time()

    def all_counted(self) -> None:
        """Note that all events have arrived. From now on, ask about one task in each state."""
        self._counted_at = time.time()
        entries = self._entries()
        uuids = {states_between(entries[uuid], math.inf, math.inf): uuid for uuid in self._scene.uuids}
        self._samples = list(uuids.values())

    def assert_true(self, *, are_lost: bool = False) -> None:
        """Assert that no answer was false. If events `are_lost`, a task may never have been seen."""
        self._asker.stop()
        uuids = self._samples or self._scene.uuids
        for uuid in random.sample(uuids, min(ASKED_AT_END, len(uuids))):
            self._asker.ask(uuid)
        entries = self._entries()
        lines = [
            line
            for answer in self._asker.answers
            for line in contradictions(
                answer,
                entries[answer.explanation.uuid],
                0.0 if answer.asked > self._counted_at else LAG_SECONDS,
                lambda entry: not are_lost and self._is_reported(entry),
            )
        ]
        assert not lines, "\n\n".join(lines)
        assert self._asker.errors == []

    def _choose(self) -> str | None:
        uuids = self._samples or self._scene.uuids
        return random.choice(uuids) if uuids else None

    def _is_reported(self, entry: Entry) -> bool:
        """Return whether the exporter gets an event of what an entry records."""
        state, task = entry.outcome.state, entry.outcome.task
        return entry.stored > self._listening_since and (state != PENDING or self._scene.has_sent_event(task))

    def _entries(self) -> dict[str, list[Entry]]:
        """Return the entries of each task, in order."""
        entries: dict[str, list[Entry]] = defaultdict(list)
        for entry in self._scene.outcomes.entries():
            entries[entry.attempt.uuid].append(entry)
        return entries
