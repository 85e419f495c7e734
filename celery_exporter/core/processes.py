"""The processes that send heartbeats under one node name.

Usually there is one, and another one after a restart. Containers with a fixed hostname run several at a
time, often all with pid 1. Three things tell which process sent an event:

- Its pid.
- Its `processed`, which never falls in one process.
- Its clock: Celery's timer never fires early, so two heartbeats that are closer together than a period come
  from two processes.

The Lamport clock of events is of no use: workers set theirs by the events that they receive.

If several processes may have sent an event, the count is added to the process with the highest count. Then
the counts in this table, sorted, are never above the real ones, so no task is counted twice. Some may be
counted late.
"""

from __future__ import annotations

from msgspec import Struct

from celery_exporter.core.events import Event
from celery_exporter.core.types import Timestamp

#: Processes of one name that are distinguished. The counts of further ones are ignored.
MAX_PROCESSES = 8
#: Heartbeats of an earlier process, after those of a later one, until a name counts as shared.
SHARED_MIN_ALTERNATIONS = 2
#: Periods within which the next heartbeat of a running process is received.
MAX_HEARTBEAT_PERIODS = 2
#: Periods within which no process sends two heartbeats. Less than one: its clock may be read a little late.
MIN_HEARTBEAT_PERIODS = 0.75


class Process(Struct, gc=False):
    """One process of a node name.

    Its newest event is at `timestamp` by its clock, and at the listening time `last_seen`.

    `first_event` and `last_event` are sequence numbers among all events of the name. A worker-offline event
    changes none of these.
    """

    pid: int | None
    processed: int | None
    timestamp: float
    last_seen: float
    active: int | None = None
    left: bool = False  # it sent worker-offline
    replaced: bool = False  # another process has taken its place, as far as is known
    replaces: bool = False  # it has taken the place of another process
    first_event: int = 0
    last_event: int = 0
    later_events: int = 0  # since its first one, or since a process appeared that may be the same
    # Processed tasks that count once this is certainly a process of its own. None: it is one.
    uncounted: int | None = None


class Observation(Struct, frozen=True, gc=False):
    """The sender of an event, and the numbers of processed tasks and restarts that the event adds."""

    process: Process
    is_new: bool
    tasks: int
    restarts: int


class Processes(Struct, gc=False):
    """The processes of a name. The one with the newest event is last in `tracked`."""

    tracked: list[Process] = []
    alternations: int = 0  # heartbeats of an earlier process after those of a later one
    events: int = 0

    def observe(
        self, event: Event, now: Timestamp, period_seconds: float, silence_seconds: float
    ) -> Observation:
        """Record a worker event.

        `period_seconds` is the time between two heartbeats. `silence_seconds` is how long one of several
        processes may be silent.
        """
        self.events += 1
        if self._is_usual(event, now):
            only = self.tracked[0]
            tasks = _count(only, event, self.tracked)
            self._record(only, event, now)
            return Observation(only, is_new=False, tasks=tasks, restarts=0)
        silence = silence_seconds if self.alternations else MAX_HEARTBEAT_PERIODS * period_seconds
        self._discount_common_silence(now.listening, period_seconds)
        restarts = self._mark_replaced(None, event, now, silence)
        newest = self.tracked[-1] if self.tracked else None
        matching = [process for process in self.tracked if self._may_have_sent(process, event)]
        possible = [process for process in matching if not _is_early(process, event, now)]
        if not possible:
            process, tasks = self._add(event, now, matching)
        else:
            process = self._likeliest(possible, event, now.listening, period_seconds)
            self.alternations += process is not newest and event.type == "worker-heartbeat"
            tasks = _count(process, event, possible)
            self._record(process, event, now)
        restarts += self._mark_replaced(process, event, now, silence)
        return Observation(process, not possible, tasks + self._confirm(now.listening, silence), restarts)

    def _is_usual(self, event: Event, now: Timestamp) -> bool:
        """Return whether an event comes from the only process of the name, as nearly all do."""
        if len(self.tracked) != 1 or self.alternations:
            return False
        only = self.tracked[0]
        return self._may_have_sent(only, event) and not _is_early(only, event, now)

    def _discount_common_silence(self, listening: float, period: float) -> None:
        """Discount a time in which no process of the name was seen: they are slow, not gone.

        A process that is silent while two events of each of the others arrive is gone.
        """
        if not self.tracked:
            return
        running = [process for process in self.tracked if not (process.left or process.replaced)]
        silence = listening - self.tracked[-1].last_seen
        discount = max(0.0, min(silence, 2 * (silence - period)))  # a heartbeat may be a little late
        two_of_each = 2 * (len(running) - 1)
        for process in running:
            if self.events - 1 - process.last_event < two_of_each:
                process.last_seen += discount

    def _may_have_sent(self, process: Process, event: Event) -> bool:
        """Return whether a process may have sent an event: it still runs, and its pid and count match."""
        newest = self.tracked[-1]
        if None not in (process.pid, event.pid) and process.pid != event.pid:
            return False
        if process is not newest and process.pid == newest.pid and (process.left or process.replaced):
            return False
        return event.processed is None or event.processed >= (process.processed or 0)

    def _likeliest(self, possible: list[Process], event: Event, listening: float, period: float) -> Process:
        """Return the most likely sender of an event: of a heartbeat, the process whose heartbeat is due.

        It is due by its own clock and by ours: the clocks of two hosts can differ by what lies between their
        heartbeats, and heartbeats that were delayed arrive together.
        """
        if event.type == "worker-heartbeat" and event.processed is not None:

            def deviation(process: Process) -> float:
                by_its_clock = abs(event.timestamp - process.timestamp - period)
                return by_its_clock + abs(listening - process.last_seen - period)

            return min(possible, key=lambda process: (process.left, deviation(process)))
        if event.processed is None and self.tracked[-1] in possible:
            return self.tracked[-1]
        return _highest(possible)  # the other events come at any time

    def _add(self, event: Event, now: Timestamp, matching: list[Process]) -> tuple[Process, int]:
        """Add a new process; return it and the number of processed tasks that it adds.

        If only the time distinguishes it from matching processes, a clock may have been set. Then only the
        tasks that one of these may have processed since are added. The others are added when it is seen
        again beside them.
        """
        process = Process(event.pid, event.processed, event.timestamp, now.listening, event.active)
        process.first_event = process.last_event = self.events
        process.left = event.type == "worker-offline"
        if len(self.tracked) >= MAX_PROCESSES:
            over = next((other for other in self.tracked if other.left or other.replaced), None)
            if over is None:
                return process, 0
            self.tracked.remove(over)
        self.tracked.append(process)
        if matching:
            for other in matching:
                other.later_events = 0
            process.uncounted = _highest(matching).processed or 0
        return process, (event.processed or 0) - (process.uncounted or 0)

    def _record(self, process: Process, event: Event, now: Timestamp) -> None:
        """Record an event of a tracked process."""
        process.left = event.type == "worker-offline"
        process.later_events += 1
        if event.active is not None:
            process.active = event.active
        if process.left:
            return
        process.replaced = False
        process.last_seen, process.last_event = now.listening, self.events
        if event.processed is not None:
            process.timestamp = event.timestamp
        if process is not self.tracked[-1]:
            self.tracked.remove(process)
            self.tracked.append(process)

    def _mark_replaced(self, sender: Process | None, event: Event, now: Timestamp, silence: float) -> int:
        """Find the successors of processes that are gone; return the number of restarts.

        A successor is a process whose first event came after the last one of the other. `sender` sent the
        event; None if it is not determined yet.
        """
        restarts = 0
        for process in self.tracked[:]:
            if process.replaced or not _is_gone(process, sender, event, now, silence):
                continue
            later = (
                other
                for other in self.tracked
                if other.first_event > process.last_event and not other.replaces
            )
            successor = next(later, None)
            if successor is None:
                continue
            process.replaced = True
            if successor.uncounted is not None:  # it is the same process, whose clock was set
                self.tracked.remove(process)
                successor.uncounted = None
            else:
                successor.replaces = True
                restarts += 1
        return restarts

    def _confirm(self, listening: float, silence: float) -> int:
        """Return the uncounted tasks of processes that are certain by now.

        A process is certain when it and all that may be the same process were seen side by side.
        """
        tasks = 0
        for process in self.tracked if self.alternations >= SHARED_MIN_ALTERNATIONS else ():
            alike = [other for other in self.alive(listening, silence) if other.pid == process.pid]
            is_certain = all(other.later_events >= SHARED_MIN_ALTERNATIONS for other in alike)
            if process.uncounted is not None and is_certain:
                tasks += process.uncounted
                process.uncounted = None
        return tasks

    def restore(self, shift: float) -> None:
        """Move all listening times by `shift` seconds, so that the time between does not count as silence."""
        for process in self.tracked:
            process.last_seen += shift

    def alive(self, listening: float, silence_seconds: float) -> list[Process]:
        """Return the processes that run now, as far as is known."""
        return [
            process
            for process in self.tracked
            if not (process.left or process.replaced) and listening - process.last_seen <= silence_seconds
        ]

    def is_shared(self, listening: float, silence_seconds: float) -> bool:
        """Return whether several processes use the name now."""
        if self.alternations and len(self.alive(listening, silence_seconds)) < 2:
            self.alternations = 0
        return self.alternations >= SHARED_MIN_ALTERNATIONS


def _is_early(process: Process, event: Event, now: Timestamp) -> bool:
    """Return whether a heartbeat comes too early after the newest event of a process to be sent by it.

    It has to be early by its own clock and by ours. Clocks of several hosts differ, and events that were
    delayed arrive together.
    """
    if event.type != "worker-heartbeat" or event.processed is None or not event.freq:
        return False
    earliest = MIN_HEARTBEAT_PERIODS * event.freq
    return event.timestamp - process.timestamp < earliest and now.listening - process.last_seen < earliest


def _count(process: Process, event: Event, possible: list[Process]) -> int:
    """Set the count of a process; return how many tasks were processed, at least.

    That is the difference to the highest count of the possible senders. The process with that count gets the
    previous count of this one in exchange.
    """
    if event.processed is None:
        return 0
    highest = _highest(possible)
    before = highest.processed or 0
    highest.processed, process.processed = process.processed, event.processed
    return event.processed - before


def _highest(processes: list[Process]) -> Process:
    return max(processes, key=lambda process: process.processed or 0)


def _is_gone(process: Process, sender: Process | None, event: Event, now: Timestamp, silence: float) -> bool:
    """Return whether a process is gone at the time of an event; `sender` sent it, None if undetermined.

    The clock of the event counts only for events that were delayed and arrive together, with at least two of
    another process among them.
    """
    waited = now.listening - process.last_seen
    if process is sender or process.left or waited >= silence:
        return process.left or process is not sender
    is_seen_twice = sender is not None and sender.later_events > 0 and sender.first_event > process.last_event
    return is_seen_twice and waited == 0 and event.timestamp - process.timestamp >= silence
