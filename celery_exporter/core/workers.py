"""Workers: whether each is up, how far its clock is off, and how many of its events were missed.

Invariant: a worker is down after a time of listening without an event of it. The time depends on its own
heartbeat interval, and never on its clock.
"""

from __future__ import annotations

import math

import msgspec
from msgspec import Struct

from celery_exporter.core.events import Event
from celery_exporter.core.processes import MAX_HEARTBEAT_PERIODS, Observation, Process, Processes
from celery_exporter.core.routing import Binding
from celery_exporter.core.types import Timestamp

#: Workers at a time. The biggest known clusters have some thousands. Beyond the limit new names are rejected
#: and counted, so that existing workers stay.
MAX_WORKERS = 5_000
#: Heartbeat intervals without an event after which a worker is down.
MAX_MISSED_HEARTBEATS = 3
#: Minimum seconds of silence after which one of several processes of a name counts as gone.
PROCESS_SILENCE_SECONDS = 10.0
#: Seconds between two heartbeats of a worker that does not report its interval.
DEFAULT_HEARTBEAT_SECONDS = 2.0
#: Longest heartbeat interval that is accepted, in seconds.
MAX_HEARTBEAT_SECONDS = 3_600.0
#: Seconds for which a solo worker may be silent: it sends nothing while it runs a task.
SOLO_MAX_SILENCE_SECONDS = 600.0
#: Seconds of a window for clock skew. The least delayed event of the last two windows determines the skew.
SKEW_WINDOW_SECONDS = 60.0
#: Processed tasks of a worker over all restarts: the largest count that a sample (a float) holds exactly.
MAX_PROCESSED = 2**53
#: Heartbeats in a row with more processed tasks and without `task-started` after which task events count as
#: off. By whether the worker sends task events (None: unknown). A heartbeat may overtake a `task-started`.
SILENT_HEARTBEATS = {None: 2, True: 3, False: 1}
#: Seconds after a heartbeat with more processed tasks within which a `task-started` of these arrives.
START_DELAY_SECONDS = 3.0
#: Listening time of the newest event of a worker of which none was received.
NEVER = -math.inf
#: Seconds by which a start may be stamped before or after its worker counts it. Between the two the worker
#: acknowledges the message, which takes as long as the broker needs.
MAX_START_OFFSET_SECONDS = 1.0


class WorkerInfo(Struct, frozen=True, gc=False):
    """The replies of a worker to inspection (celery inspect). None: no reply."""

    queues: tuple[str, ...] | None = None
    registered: tuple[str, ...] | None = None
    silent_tasks: tuple[str, ...] | None = None  # those of them with send_events = False
    pool: str | None = None  # prefork, threads, solo …
    pool_size: int | None = None  # tasks that it can run at once now
    pool_max: int | None = None  # upper limit of autoscaling; None: off
    prefetch_count: int | None = None
    max_resident_bytes: int | None = None
    auto_delete: tuple[str, ...] = ()  # those of its queues that the broker deletes without a consumer
    bindings: tuple[Binding, ...] = ()
    started_at: float | None = None  # epoch seconds of our clock, by its uptime
    replies: int = 1  # processes that replied under this name


class MissedEventEstimator(Struct, gc=False):
    """Compares the growth of a worker's `processed` count with the received `task-started` events.

    A worker increments `processed` when its pool accepts a task, right before it buffers `task-started`
    (celery/worker/request.py, on_accepted). A heartbeat may overtake that buffer. So the comparison is made
    one heartbeat later, by the worker's own timestamps: by then all events before the previous heartbeat have
    arrived. A difference counts when the starts right after that heartbeat cannot explain it.

    Without any start, task events may be off: then a later start decides whether the difference counts.
    """

    first_processed: int  # at the first heartbeat
    first_at: float  # timestamp of the first heartbeat
    newest_at: float  # timestamp of the newest heartbeat
    expected: int = 0  # starts between the first and the newest heartbeat, by `processed`
    received: int = 0  # starts between these two, by events
    received_since: int = 0  # starts after the newest heartbeat
    unsure_at_first: int = 0  # starts that the first heartbeat may have counted or not
    unsure_at_newest: int = 0  # starts that the newest heartbeat may have counted or not
    missed: int = 0  # starts that are certainly missing
    silent_heartbeats: int = 0  # in a row: more were expected, and none was received
    silent_since: float | None = None  # timestamp of the first of them, if nothing sent before it was lost
    is_interrupted: bool = False  # events may have been lost since the newest heartbeat
    began_off: bool = False  # task events may have been off until some time after the first heartbeat

    def started(self, timestamp: float) -> None:
        """Count one `task-started`."""
        self.silent_heartbeats, self.silent_since = 0, None
        if timestamp > self.newest_at:
            self.received_since += 1
            self.unsure_at_newest += timestamp <= self.newest_at + MAX_START_OFFSET_SECONDS
        elif timestamp > self.first_at:
            self.received += 1
        elif timestamp > self.first_at - MAX_START_OFFSET_SECONDS:
            self.unsure_at_first += 1

    def is_set_back(self, timestamp: float) -> bool:
        """Return whether the worker's clock was set back: its heartbeats arrive in the order of sending."""
        return timestamp < self.newest_at

    def from_newest(self) -> MissedEventEstimator:
        """Return an estimator that begins at the newest heartbeat: the first task event came after it."""
        processed, at = self.first_processed + self.expected, self.newest_at
        return MissedEventEstimator(processed, at, at, is_interrupted=self.is_interrupted, began_off=True)

    def is_next(self, timestamp: float, max_interval: float) -> bool:
        """Return whether a heartbeat is the next one: otherwise others were lost, and starts as well."""
        return not self.is_interrupted and timestamp - self.newest_at <= max_interval

    def is_silent(self) -> bool:
        """Return whether no start of a task arrived, though the exporter listened for long enough."""
        return self.silent_since is not None and self.newest_at - self.silent_since >= START_DELAY_SECONDS

    def on_heartbeat(self, processed: int, timestamp: float, *, is_next: bool) -> int:
        """Compare up to the previous heartbeat; return how many starts were missed since the first one."""
        missing = self.expected - self.received
        if missing > max(self.missed, self.unsure_at_first) + self.unsure_at_newest:
            self.missed = missing
        if processed - self.first_processed > self.expected and not self.received_since:
            self.silent_heartbeats += 1
            if is_next:
                self.silent_since = self.silent_since or timestamp
        self.is_interrupted = self.began_off = False
        self.received += self.received_since
        self.received_since = self.unsure_at_newest = 0
        self.expected, self.newest_at = processed - self.first_processed, timestamp
        return self.missed


class NewProcess(Struct, gc=False):
    """A process that may have replaced another one, as it was at its first event."""

    pid: int | None
    processed: int
    received_starts: int  # its starts that were received before
    restarts: int  # of its worker, before it


class Worker(Struct, gc=False):
    """The state of one worker; `name` is the node name."""

    name: str
    last_seen: float  # listening time of its newest event
    up: bool = True
    left: bool = False  # it sent worker-offline
    returned: float = 0.0  # timestamp, by its clock, of its first event after that
    down_since: float | None = None  # listening time
    heartbeat: float | None = None  # wall time of the newest heartbeat
    freq: float | None = None
    pid: int | None = None
    active: int | None = None
    processed: int | None = None  # by its current process
    processed_total: int = 0  # over all restarts
    restarts: int = 0
    loadavg: tuple[float, float, float] | None = None
    software: str = ""
    version: str = ""
    system: str = ""
    info: WorkerInfo = WorkerInfo()
    events: bool | None = None  # whether it sends task events; None: unknown
    sends_events: bool = False  # its current process has sent one
    estimator: MissedEventEstimator | None = None
    last_start: float = 0.0  # timestamp of its newest task-started
    last_start_pid: int | None = None  # of the process that sent it, …
    recent_starts: int = 0  # … and how many that process sent since its last heartbeat
    new_process: NewProcess | None = None  # until it is known whether it replaced the other one
    online: float = 0.0  # timestamp, by its clock, of its newest worker-online
    missed: int = 0
    missed_before: int = 0  # by earlier estimators
    skew: float | None = None  # its clock minus ours, by the least delayed event of this window
    skew_before: float | None = None  # … of the window before
    skew_until: float = 0.0  # listening time at which this window ends
    task_pid: int | None = None  # of its newest task event
    idle_since: float | None = None  # listening time since which it reports no active task
    processes: Processes = msgspec.field(default_factory=Processes)
    shared: bool = False  # several processes use the name, by their heartbeats
    starts: int = 0  # processes of this name after the first
    is_info_current: bool = False  # the current process replied with `info`
    is_resumed: bool = False  # another exporter received its events until now
    #: Whether all of its task events arrive here: a relay sends a shard those of its own workers.
    is_whole: bool = True

    @property
    def clock_skew(self) -> float | None:
        """Return the worker's clock minus ours in seconds, by the least delayed event; None: unknown."""
        return max((skew for skew in (self.skew, self.skew_before) if skew is not None), default=None)

    @property
    def is_shared(self) -> bool:
        """Return whether several processes use this name, by their heartbeats or their replies."""
        return self.shared or self.info.replies > 1

    def count_processes(self, listening: float) -> int:
        """Return how many processes use this name now, by their heartbeats or their replies."""
        alive = self.processes.alive(listening, self._silence_seconds()) if self.shared else ()
        return max(1, self.info.replies, len(alive))

    @property
    def current_info(self) -> WorkerInfo:
        """Return the info, without the queues and the start if an earlier process sent it."""
        if self.is_info_current:
            return self.info
        return msgspec.structs.replace(self.info, queues=None, bindings=(), started_at=None)

    def on_task_event(self, event: Event) -> None:
        """Record a task event of this worker."""
        if not self.sends_events:
            self._begin_estimate()
        self.events = self.sends_events = True
        if event.type == "task-started":
            self.idle_since = None
            self.last_start = event.timestamp
            self.recent_starts = self.recent_starts + 1 if event.pid == self.last_start_pid else 1
            self.last_start_pid = event.pid
            if self.estimator is not None:
                self.estimator.started(event.timestamp)

    def _begin_estimate(self) -> None:
        """Begin at the newest heartbeat if task events were off: those of earlier tasks were not sent."""
        if not self.events:
            self.new_process = None
        if self.estimator is not None and (not self.events or self.estimator.silent_since is not None):
            self.estimator = self.estimator.from_newest()

    def update_liveness(self, listening: float, timeout: float) -> None:
        """Update whether it is up: it may be silent for `timeout` seconds, or longer by its heartbeats."""
        interval = min(self.freq or 0.0, MAX_HEARTBEAT_SECONDS)
        max_silence = max(timeout, MAX_MISSED_HEARTBEATS * interval)
        if self.info.pool == "solo":
            max_silence = max(max_silence, SOLO_MAX_SILENCE_SECONDS)
        self.shared = self.processes.is_shared(listening, self._silence_seconds())
        self.up = not self.left and listening - self.last_seen <= max_silence
        if self.up:
            self.down_since = None
        elif self.down_since is None:
            self.down_since = listening

    def on_worker_event(self, event: Event, now: Timestamp) -> bool:
        """Record a worker event; return whether it is the first one of another process."""
        silence = self._silence_seconds()
        newest = self.processes.tracked[-1] if self.processes.tracked else None
        observation = self.processes.observe(
            event, now, event.freq or self.freq or DEFAULT_HEARTBEAT_SECONDS, silence
        )
        process = observation.process
        self._count(observation)
        if process.left and process is not self.processes.tracked[-1]:
            return False  # the last event of a process while another one runs
        self._describe(event, now)
        if process is not newest:
            self._close_estimate()
            self.sends_events = self.sends_events if newest is None else self._has_started_in(process, event)
        self.shared = self.processes.is_shared(now.listening, silence)
        if observation.is_new and newest is not None:
            starts = self.recent_starts if self.last_start_pid == process.pid else 0
            restarts_before = self.restarts - observation.restarts
            self.new_process = NewProcess(process.pid, event.processed or 0, starts, restarts_before)
        elif self.new_process is not None and event.processed is not None:
            self._add_missed_at_start(self.new_process)
        if self.last_start_pid == process.pid:
            self.recent_starts = 0
        self._update_left(process, event, now, silence)
        self.pid = process.pid if event.pid is None else event.pid
        self.active = process.active
        if self.shared:
            alive = self.processes.alive(now.listening, silence)
            self.active = sum(process.active or 0 for process in alive)
        if event.active is not None:
            self.idle_since = None if self.active else self.idle_since or now.listening
        if event.processed is not None:
            self.processed, self.is_resumed = event.processed, False
            if self.shared:
                self._close_estimate()
            else:
                self._estimate_missed(event.processed, event.timestamp)
        return observation.is_new and newest is not None

    def _count(self, observation: Observation) -> None:
        """Add what an event adds, unless another exporter has counted it."""
        if not self.is_resumed:
            self.restarts += observation.restarts
            self.processed_total = min(self.processed_total + observation.tasks, MAX_PROCESSED)

    def resume(self) -> None:
        """Expect the next event: another exporter has received all events for some time.

        What the worker did meanwhile was counted there, and is not missed. Until the event, it is down.
        """
        self._close_estimate()
        self.processes, self.new_process, self.recent_starts = Processes(), None, 0
        self.last_seen, self.is_resumed, self.sends_events = NEVER, True, False

    def interrupt(self) -> None:
        """Expect that events were lost: the event subscription was closed for a while."""
        if self.estimator is not None:
            self.estimator.is_interrupted = True
            if not self.sends_events:  # its first events may be among them
                self.estimator.silent_since = None

    def has_process(self, pid: int | None) -> bool:
        """Return whether a process with this pid is known."""
        return any(process.pid == pid for process in self.processes.tracked)

    def _update_left(self, process: Process, event: Event, now: Timestamp, silence: float) -> None:
        """Update whether the worker has left: the sender has, and no other process of the name runs."""
        others = self.processes.alive(now.listening, silence) if process.left else ()
        # Another process with the same pid may be the same one: a heartbeat of it was early.
        has_left = process.left and not any(self.shared or other.pid != process.pid for other in others)
        self.returned = event.timestamp if self.left and not has_left else self.returned
        self.left = has_left

    def _silence_seconds(self) -> float:
        """Return for how long one process may be silent while others of its name send events."""
        if self.info.pool == "solo":
            return SOLO_MAX_SILENCE_SECONDS
        interval = min(self.freq or 0.0, MAX_HEARTBEAT_SECONDS)
        return max(PROCESS_SILENCE_SECONDS, MAX_MISSED_HEARTBEATS * interval)

    def _has_started_in(self, process: Process, event: Event) -> bool:
        """Return whether a process sent a `task-started` before `event`, its first worker event."""
        is_later = event.type != "worker-online" or self.last_start > event.timestamp
        return is_later and self.recent_starts > 0 and self.last_start_pid == process.pid

    def _add_missed_at_start(self, new_process: NewProcess) -> None:
        """Count the events that a process sent before its first received one, if it replaced another one.

        A process that runs beside another one of its name may have run long before the exporter.
        """
        if self.shared:
            self.new_process = None
        elif self.sends_events and self.restarts > new_process.restarts:
            self.new_process = None
            unsure = self.estimator.unsure_at_first if self.estimator else 0
            missing = max(0, new_process.processed - new_process.received_starts - unsure)
            if missing and self.is_whole and not self.info.silent_tasks:
                self.missed_before = min(self.missed_before + missing, MAX_PROCESSED)
                self.missed = min(self.missed + missing, MAX_PROCESSED)

    def _describe(self, event: Event, now: Timestamp) -> None:
        self.heartbeat = now.wall
        if event.type == "worker-online":
            self.online = event.timestamp
        if event.freq:
            self.freq = event.freq
        self.loadavg = event.loadavg or self.loadavg
        self.software = event.sw_ident or self.software
        self.version = event.sw_ver or self.version
        self.system = event.sw_sys or self.system
        self._measure_skew(event.timestamp - now.wall, now.listening)

    def _measure_skew(self, skew: float, listening: float) -> None:
        if listening >= self.skew_until:
            self.skew_before, self.skew, self.skew_until = self.skew, skew, listening + SKEW_WINDOW_SECONDS
        else:
            self.skew = skew if self.skew is None else max(skew, self.skew)

    def _estimate_missed(self, processed: int, timestamp: float) -> None:
        if not self.is_whole:
            return
        estimator = self.estimator
        is_next = estimator is not None and estimator.is_next(timestamp, self._max_heartbeat_interval())
        if estimator is None or estimator.is_set_back(timestamp) or (estimator.began_off and is_next):
            # Timestamps no longer show which starts were counted, or the first event came in this interval.
            self._close_estimate()
            unsure = int(self.last_start > timestamp - MAX_START_OFFSET_SECONDS)
            self.estimator = MissedEventEstimator(processed, timestamp, timestamp, unsure_at_first=unsure)
            return
        missed = estimator.on_heartbeat(processed, timestamp, is_next=is_next)
        if self.info.silent_tasks:  # it runs tasks without events
            self.events = self.events or None
        elif self._is_silent(estimator):
            self.events = self.sends_events = False
            self._close_estimate()
        elif self.sends_events and estimator.silent_since is None:
            self.missed = min(self.missed_before + missed, MAX_PROCESSED)

    def _max_heartbeat_interval(self) -> float:
        """Return the seconds by which a heartbeat follows the previous one if none between them was lost."""
        if self.info.pool == "solo":
            return math.inf
        return MAX_HEARTBEAT_PERIODS * (self.freq or DEFAULT_HEARTBEAT_SECONDS)

    def _is_silent(self, estimator: MissedEventEstimator) -> bool:
        """Return whether task events are off: tasks were processed, and no event of them arrived.

        A process that has sent events before may send some that are lost. Its next event shows that.
        """
        if estimator.silent_heartbeats >= SILENT_HEARTBEATS[self.events]:
            return True
        return not self.sends_events and estimator.is_silent()

    def _close_estimate(self) -> None:
        self.missed_before, self.estimator = self.missed, None


def host(node: str) -> str:
    """Return the host part of a node name."""
    return node.partition("@")[2] or node
