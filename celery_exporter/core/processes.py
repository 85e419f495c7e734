"""The processes that send heartbeats under one node name.

Usually there is one, and another one after a restart. Containers with a fixed hostname run several at a
time, often all with pid 1, so three things tell which process sent an event. Its pid. Its `processed`, which
never falls in one process. And its clock: Celery's timer lets no heartbeat come early, so two that are
closer together than a period are of two processes. (The Lamport clock in events tells nothing: workers set
theirs by what they hear of others.)

Where several processes may have sent an event, the one that counted most is taken to have counted on. Then
the counts that are known, from the highest to the lowest, are never above those that the processes have, and
no task is counted twice; some may be counted late.
"""

from __future__ import annotations

from msgspec import Struct

from celery_exporter.core.events import Event
from celery_exporter.core.types import Timestamp

#: Processes of one name that are told apart. What further ones count is left out.
MAX_PROCESSES = 8
#: Times that an earlier process must be heard again before a name counts as shared: two heartbeats of each.
SHARED_AFTER = 2
#: Periods within which the next heartbeat of a process that runs is received.
LATEST_HEARTBEATS = 2
#: Part of a period within which no process sends two heartbeats: its clock is read a little late at times.
EARLIEST_HEARTBEAT = 0.75


class Process(Struct, gc=False):
    """One process. `timestamp` is by its clock, `heard` is listening time; both of its newest event.

    `first` and `last` are the places of its events among all of the name. A goodbye is none of these.
    """

    pid: int | None
    processed: int | None
    timestamp: float
    last_seen: float
    active: int | None = None
    left: bool = False  # it said goodbye
    replaced: bool = False  # another one took its place, as far as is known
    replaces: bool = False  # it took the place of another one
    first: int = 0
    last: int = 0
    again: int = 0  # times that it was heard since its first event, or since another one might be it
    # Tasks to add to those counted once it is sure that this is a process of its own; None: it is.
    unsure: int | None = None


class Observation(Struct, frozen=True, gc=False):
    """What an event tells: who sent it, and how many tasks and restarts it adds to those counted."""

    process: Process
    is_new: bool
    tasks: int
    restarts: int


class Processes(Struct, gc=False):
    """The processes of a name, in the order in which they were last heard."""

    known: list[Process] = []
    alternations: int = 0  # heartbeats of an earlier process while a later one was heard, too
    events: int = 0

    def observe(
        self, event: Event, now: Timestamp, period_seconds: float, silence_seconds: float
    ) -> Observation:
        """Take in a worker event.

        `period_seconds` is the time between two heartbeats, `silence_seconds` how long one of several
        processes may be silent.
        """
        self.events += 1
        if self._is_usual(event, now):
            only = self.known[0]
            tasks = _count(only, event, self.known)
            self._note(only, event, now)
            return Observation(only, is_new=False, tasks=tasks, restarts=0)
        silence = silence_seconds if self.alternations else LATEST_HEARTBEATS * period_seconds
        self._pass_over_silence(now.listening, period_seconds)
        restarts = self._replace(None, event, now, silence)
        newest = self.known[-1] if self.known else None
        fitting = [process for process in self.known if self._may_have_sent(process, event)]
        possible = [process for process in fitting if not _is_early(process, event, now)]
        if not possible:
            process, tasks = self._add(event, now, fitting)
        else:
            process = self._likeliest(possible, event, period_seconds)
            self.alternations += process is not newest and event.type == "worker-heartbeat"
            tasks = _count(process, event, possible)
            self._note(process, event, now)
        restarts += self._replace(process, event, now, silence)
        return Observation(process, not possible, tasks + self._confirm(now.listening, silence), restarts)

    def _is_usual(self, event: Event, now: Timestamp) -> bool:
        """Tell whether an event is of the only process that is known, as nearly all are."""
        if len(self.known) != 1 or self.alternations:
            return False
        only = self.known[0]
        return self._may_have_sent(only, event) and not _is_early(only, event, now)

    def _pass_over_silence(self, listening: float, period: float) -> None:
        """Take no process for gone because of a time in which nobody of the name was heard.

        One that stays silent while each of the others is heard twice is gone: these are merely slow.
        """
        running = [process for process in self.known if not (process.left or process.replaced)]
        silence = listening - self.known[-1].last_seen if len(running) > 1 else 0.0
        if silence <= period:
            return
        beyond = min(silence, 2 * (silence - period))  # a heartbeat may be a little late
        heard_twice = 2 * (len(running) - 1)
        for process in running:
            if self.events - 1 - process.last < heard_twice:
                process.last_seen += beyond

    def _may_have_sent(self, process: Process, event: Event) -> bool:
        """Tell whether a process may have sent an event, by what it counted, and by whether it still runs."""
        newest = self.known[-1]
        if None not in (process.pid, event.pid) and process.pid != event.pid:
            return False
        if process is not newest and process.pid == newest.pid and (process.left or process.replaced):
            return False
        return event.processed is None or event.processed >= (process.processed or 0)

    def _likeliest(self, possible: list[Process], event: Event, period: float) -> Process:
        """Return the process whose heartbeat is due, of those that may have sent an event."""
        if event.type == "worker-heartbeat" and event.processed is not None:
            return min(possible, key=lambda each: (each.left, abs(event.timestamp - each.timestamp - period)))
        if event.processed is None and self.known[-1] in possible:
            return self.known[-1]
        return _highest(possible)  # it may come at any time

    def _add(self, event: Event, now: Timestamp, fitting: list[Process]) -> tuple[Process, int]:
        """Add a new process; return it with the number of tasks that it adds to those counted.

        If only the time tells it from those that fit, a clock may have been set, so all but what one of these
        may have counted since waits until it is heard again beside them.
        """
        process = Process(event.pid, event.processed, event.timestamp, now.listening, event.active)
        process.first = process.last = self.events
        process.left = event.type == "worker-offline"
        if len(self.known) >= MAX_PROCESSES:
            gone = next((each for each in self.known if each.left or each.replaced), None)
            if gone is None:
                return process, 0
            self.known.remove(gone)
        self.known.append(process)
        if fitting:
            for each in fitting:
                each.again = 0
            process.unsure = _highest(fitting).processed or 0
        return process, (event.processed or 0) - (process.unsure or 0)

    def _note(self, process: Process, event: Event, now: Timestamp) -> None:
        """Note that a known process was heard."""
        process.left = event.type == "worker-offline"
        process.again += 1
        if event.active is not None:
            process.active = event.active
        if process.left:
            return
        process.replaced = False
        process.last_seen, process.last = now.listening, self.events
        if event.processed is not None:
            process.timestamp = event.timestamp
        if process is not self.known[-1]:
            self.known.remove(process)
            self.known.append(process)

    def _replace(self, last_seen: Process | None, event: Event, now: Timestamp, silence: float) -> int:
        """Find who took the place of processes that are gone; return the number of restarts.

        That is one that was not heard before the last heartbeat of the other. `heard` sent the event, if that
        is known already.
        """
        restarts = 0
        for process in self.known[:]:
            if process.replaced or not _is_gone(process, last_seen, event, now, silence):
                continue
            later = (each for each in self.known if each.first > process.last and not each.replaces)
            successor = next(later, None)
            if successor is None:
                continue
            process.replaced = True
            if successor.unsure is not None:  # it is the same one, whose clock was set
                self.known.remove(process)
                successor.unsure = None
            else:
                successor.replaces = True
                restarts += 1
        return restarts

    def _confirm(self, listening: float, silence: float) -> int:
        """Return the tasks of processes that are sure by now: all that may be one were heard side by side."""
        tasks = 0
        for process in self.known if self.alternations >= SHARED_AFTER else ():
            alike = [each for each in self.alive(listening, silence) if each.pid == process.pid]
            if process.unsure is not None and all(each.again >= SHARED_AFTER for each in alike):
                tasks += process.unsure
                process.unsure = None
        return tasks

    def restore(self, shift: float) -> None:
        """Go on with a listening clock that is `shift` seconds ahead. Nobody was silent meanwhile."""
        for process in self.known:
            process.last_seen += shift

    def alive(self, listening: float, silence_seconds: float) -> list[Process]:
        """Return the processes that run now, as far as is known."""
        return [
            process
            for process in self.known
            if not (process.left or process.replaced) and listening - process.last_seen <= silence_seconds
        ]

    def is_shared(self, listening: float, silence_seconds: float) -> bool:
        """Tell whether several processes use the name now."""
        if self.alternations and len(self.alive(listening, silence_seconds)) < 2:
            self.alternations = 0
        return self.alternations >= SHARED_AFTER


def _is_early(process: Process, event: Event, now: Timestamp) -> bool:
    """Tell whether a heartbeat comes too early for a process that was heard of last.

    By its clock and by ours: clocks of several hosts differ, and events that were held up come together.
    """
    if event.type != "worker-heartbeat" or event.processed is None or not event.freq:
        return False
    earliest = EARLIEST_HEARTBEAT * event.freq
    return event.timestamp - process.timestamp < earliest and now.listening - process.last_seen < earliest


def _count(process: Process, event: Event, possible: list[Process]) -> int:
    """Give a process what it counted; return how many tasks were processed, at least.

    That is since the highest count that it may have had, which it then leaves to the other one.
    """
    if event.processed is None:
        return 0
    highest = _highest(possible)
    before = highest.processed or 0
    highest.processed, process.processed = process.processed, event.processed
    return event.processed - before


def _highest(processes: list[Process]) -> Process:
    return max(processes, key=lambda each: each.processed or 0)


def _is_gone(
    process: Process, last_seen: Process | None, event: Event, now: Timestamp, silence: float
) -> bool:
    """Tell whether a process is gone, now that this event was heard.

    Its clock tells only of events that were held up and come together, two of another one among them.
    """
    waited = now.listening - process.last_seen
    if process is last_seen or process.left or waited >= silence:
        return process.left or process is not last_seen
    is_heard_again = last_seen is not None and last_seen.again > 0 and last_seen.first > process.last
    return is_heard_again and waited == 0 and event.timestamp - process.timestamp >= silence
