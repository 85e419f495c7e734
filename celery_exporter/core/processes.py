"""The processes that send heartbeats under one node name.

Usually there is one, and another one after a restart. Containers with a fixed hostname run several at a
time, all with pid 1: their heartbeats alternate, and each one looks like a restart of the other. They are
told apart by pid, and where that is equal by `processed`, which never falls in one process. A heartbeat that
several processes may have sent is taken for that of the one that counted most: no task is counted twice.
"""

from __future__ import annotations

from msgspec import Struct

from celery_exporter.core.events import Event
from celery_exporter.core.words import Moment

#: Processes of one name that are told apart. What a further one counted before it was seen is left out.
MAX_PROCESSES = 8
#: Times that an earlier process must be heard again before a name counts as shared: two heartbeats of each.
SHARED_AFTER = 2
#: Periods within which the next heartbeat of a process that runs is received.
LATEST_BEATS = 2


class Process(Struct, gc=False):
    """One process. `timestamp` is by its clock, `heard` is listening time; both of its newest event."""

    pid: int | None
    processed: int | None
    timestamp: float
    heard: float
    active: int | None = None
    left: bool = False  # it said goodbye
    replaced: bool = False  # another one took its place, as far as is known


class Processes(Struct, gc=False):
    """The processes of a name, in the order in which they were last heard."""

    known: list[Process] = []
    alternations: int = 0  # heartbeats of an earlier process while a later one was heard, too
    is_open: bool = False  # whether the newest process replaced the others, or runs beside them

    def find(self, event: Event, period_seconds: float, silence_seconds: float) -> Process | None:
        """Return the process that sent an event, None for one that is new.

        `period_seconds` is the time between two heartbeats. With the pid of the newest process, an earlier
        one is looked for only if its last heartbeat is recent: to start another one takes longer. Where
        processes are known to alternate it may have been silent for `silence_seconds`.
        """
        longest = silence_seconds if self.alternations else LATEST_BEATS * period_seconds
        fitting = [
            process
            for process in self.known
            if _fits(process, event)
            and (
                process is self.known[-1]
                or process.pid != self.known[-1].pid
                or self._may_be_heard_again(process, event, longest)
            )
        ]
        return max(fitting, key=lambda process: (process.processed or 0, -process.heard), default=None)

    def _may_be_heard_again(self, process: Process, event: Event, longest_silence: float) -> bool:
        gone = process.left or (process.replaced and not self.alternations)
        return not gone and event.timestamp - process.timestamp <= longest_silence

    def add(self, event: Event, now: Moment) -> tuple[Process, int]:
        """Add a new process; return it with the number of tasks that it adds to those counted."""
        counted = event.processed or 0
        if len(self.known) >= MAX_PROCESSES:
            oldest = self.known.pop(0)
            if not (oldest.left or oldest.replaced):
                counted = 0  # of more processes than are told apart
        process = Process(event.pid, event.processed, event.timestamp, now.listened, event.active)
        self.known.append(process)
        return process, counted

    def update(self, process: Process, event: Event, now: Moment) -> int:
        """Note an event of a known process; return how many tasks it processed since the one before."""
        if process is not self.known[-1]:
            self.known.remove(process)
            self.known.append(process)
        before, process.heard = process.processed or 0, now.listened
        process.timestamp = max(process.timestamp, event.timestamp)
        process.left = process.replaced = False
        if event.active is not None:
            process.active = event.active
        if event.processed is None:
            return 0
        process.processed = event.processed
        return max(0, event.processed - before)

    def restore(self, pid: int | None, processed: int | None, shift: float, now: Moment) -> None:
        """Take over what a state file holds, whose listening times are `shift` seconds behind ours.

        A file of an earlier version holds only the newest process, as `pid` and `processed`.
        """
        for process in self.known:
            process.heard += shift  # nobody was silent while nobody listened
        if not self.known and processed is not None:
            self.known.append(Process(pid, processed, 0.0, now.listened))

    def replace_others(self) -> None:
        """Note that the newest process runs in place of the others."""
        for process in self.known[:-1]:
            process.replaced = True
        self.is_open = False

    def alive(self, listened: float, silence_seconds: float) -> list[Process]:
        """Return the processes that run now, as far as is known."""
        return [
            process
            for process in self.known
            if not (process.left or process.replaced) and listened - process.heard <= silence_seconds
        ]

    def is_shared(self, listened: float, silence_seconds: float) -> bool:
        """Tell whether several processes use the name now."""
        if self.alternations and len(self.alive(listened, silence_seconds)) < 2:
            self.alternations = 0
        return self.alternations >= SHARED_AFTER


def _fits(process: Process, event: Event) -> bool:
    """Tell whether a process may have sent an event."""
    if None not in (process.pid, event.pid) and process.pid != event.pid:
        return False
    return event.processed is None or event.processed >= (process.processed or 0)
