"""Workers: who is alive, whose clock is off, and how many of their events never reached us.

Liveness is judged by how long *we* listened in vain and by the worker's own heartbeat interval, never by
its clock.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from celery_exporter.core.events import Event
from celery_exporter.core.processes import Processes
from celery_exporter.core.routing import Binding
from celery_exporter.core.types import Timestamp

#: Workers remembered at a time. The biggest clusters known have some thousands; beyond the limit new
#: names are refused (and counted), which keeps the honest ones.
MAX_WORKERS = 5_000
#: A heartbeat that is late by less than this many intervals proves nothing.
MISSED_HEARTBEATS = 3
#: Seconds of silence, at least, after which one of several processes of a name counts as gone.
PROCESS_SILENCE_SECONDS = 10.0
#: Seconds between two heartbeats, where a worker does not say.
DEFAULT_HEARTBEAT_SECONDS = 2.0
#: The slowest heartbeat that is believed, in seconds.
MAX_HEARTBEAT_SECONDS = 3_600.0
#: Seconds that a solo worker may be silent, for it is while it runs a task. One that takes longer looks dead.
SOLO_MAX_SILENCE_SECONDS = 600.0
#: Skew is the least delayed event of the last one to two such spans, in seconds.
SKEW_WINDOW_SECONDS = 60.0
#: Tasks that a worker may say it processed, over all restarts: what a float, so a sample, holds exactly.
MAX_PROCESSED = 2**53
#: Heartbeats in a row with `processed` grown and no `task-started`, before task events count as off: for a
#: worker never heard to send any (one may be overtaken by the heartbeat), and for one that did.
SILENT_HEARTBEATS = {None: 2, True: 3, False: 1}


class WorkerInfo(Struct, frozen=True, gc=False):
    """What a worker answers when asked (control inspect). None: it did not say."""

    queues: tuple[str, ...] | None = None
    registered: tuple[str, ...] | None = None
    silent_tasks: tuple[str, ...] | None = None  # those of them with send_events = False
    pool: str | None = None  # prefork, threads, solo …
    pool_size: int | None = None  # tasks it can run at once, as it is now
    pool_max: int | None = None  # to which it may grow by itself; None: it does not
    prefetch_count: int | None = None
    max_resident_bytes: int | None = None
    auto_delete: tuple[str, ...] = ()  # of its queues, those that the broker deletes without a consumer
    bindings: tuple[Binding, ...] = ()
    answers: int = 1  # processes that answered under this name


#: Seconds by which a start may be stamped after its worker has counted it, or before. Threads take turns, and
#: acknowledge the message in between, which takes as long as the broker does.
UNSURE_SECONDS = 1.0


class MissedEventEstimator(Struct, gc=False):
    """Compares the growth of a worker's `processed` count with the `task-started` events that came.

    `processed` is raised when the pool accepts a task, right before its `task-started` is buffered
    (celery/worker/request.py, on_accepted); a heartbeat may overtake that buffer. So the comparison is
    made one heartbeat later, by the worker's own timestamps: until then all has come that will come. What is
    missing is told when it is more than the starts can explain that came right after the mark.
    """

    base: int  # processed, at the first heartbeat
    since: float  # timestamp of the first heartbeat
    mark: float  # timestamp of the newest heartbeat
    due: int = 0  # started events owed up to the mark
    seen: int = 0  # … and seen
    fresh: int = 0  # seen since the mark
    unsure: int = 0  # seen that the first heartbeat may have counted or not
    late: int = 0  # seen that the mark may have counted or not
    reported: int = 0  # missing, for sure
    silent: int = 0  # heartbeats in a row that owed more and brought nothing

    def started(self, timestamp: float) -> None:
        """Count one `task-started`."""
        self.silent = 0
        if timestamp > self.mark:
            self.fresh += 1
            self.late += timestamp <= self.mark + UNSURE_SECONDS
        elif timestamp > self.since:
            self.seen += 1
        elif timestamp > self.since - UNSURE_SECONDS:
            self.unsure += 1

    def is_set_back(self, timestamp: float) -> bool:
        """Tell whether the worker's clock was set back: its heartbeats come in the order it sends them."""
        return timestamp < self.mark

    def on_heartbeat(self, processed: int, timestamp: float) -> int:
        """Close the span up to the last heartbeat; return how many events are missing since `base`."""
        missing = self.due - self.seen
        if missing > max(self.reported, self.unsure) + self.late:
            self.reported = missing
        if processed - self.base > self.due and not self.fresh:
            self.silent += 1
        self.seen += self.fresh
        self.fresh = self.late = 0
        self.due, self.mark = processed - self.base, timestamp
        return self.reported


class NewProcess(Struct, gc=False):
    """A process that may have replaced another one: what it had processed when it was heard first."""

    pid: int | None
    processed: int
    seen: int  # of its starts, those that came before
    restarts: int  # of its worker, before it


class Worker(Struct, gc=False):
    """What is known of one worker; `name` is the node name."""

    name: str
    last_seen: float  # listening time of its newest event
    up: bool = True
    left: bool = False  # it said goodbye
    returned: float = 0.0  # by its clock, when it was heard again after that
    down_since: float | None = None  # listening time
    heartbeat: float | None = None  # wall time of the newest heartbeat
    freq: float | None = None
    pid: int | None = None
    active: int | None = None
    processed: int | None = None  # as the worker counts, since its process started
    processed_total: int = 0  # over restarts
    restarts: int = 0
    loadavg: tuple[float, float, float] | None = None
    software: str = ""
    version: str = ""
    system: str = ""
    info: WorkerInfo = WorkerInfo()
    events: bool | None = None  # does it send task events? None: nothing proves it yet
    estimator: MissedEventEstimator | None = None
    last_start: float = 0.0  # by its clock, of a task
    starts_of: int | None = None  # the process that started it, …
    starts_since: int = 0  # … and how many since its last heartbeat
    new_process: NewProcess | None = None  # until it is known whether it replaced the other one
    online: float = 0.0  # when its newest consumer began, by its clock
    missed: int = 0
    missed_before: int = 0  # in reckonings that are closed
    skew: float | None = None  # its clock minus ours, least delayed event of this span
    skew_before: float | None = None  # … of the span before
    skew_until: float = 0.0  # listening time at which this span ends
    task_pid: int | None = None  # of its newest task event
    idle_since: float | None = None  # listening time since which it reports that it runs no task
    processes: Processes = msgspec.field(default_factory=Processes)
    shared: bool = False  # several processes use the name, as their heartbeats show
    starts: int = 0  # processes seen under this name, beyond the first
    is_info_current: bool = False  # `profile` was answered by the process that runs now

    @property
    def clock_skew(self) -> float | None:
        """Return the worker's clock minus ours, in seconds: what it says when the delay is least."""
        return max((skew for skew in (self.skew, self.skew_before) if skew is not None), default=None)

    @property
    def is_shared(self) -> bool:
        """Tell whether several processes use this name, by their heartbeats or their answers."""
        return self.shared or self.info.answers > 1

    def count_processes(self, listening: float) -> int:
        """Return how many processes use this name now, by their heartbeats or their answers."""
        alive = self.processes.alive(listening, self._silence_seconds()) if self.shared else ()
        return max(1, self.info.answers, len(alive))

    @property
    def current_info(self) -> WorkerInfo:
        """Return the profile without what only the process before is known to have said of its queues."""
        if self.is_info_current:
            return self.info
        return msgspec.structs.replace(self.info, queues=None, bindings=())

    def on_task_event(self, event: Event) -> None:
        """Learn from a task event that it sends them."""
        if self.events is False:
            self.estimator = None  # events sent from now on; what came before is not owed
        self.events = True
        if event.type == "task-started":
            self.idle_since = None
            self.last_start = event.timestamp
            self.starts_since = self.starts_since + 1 if event.pid == self.starts_of else 1
            self.starts_of = event.pid
            if self.estimator is not None:
                self.estimator.started(event.timestamp)

    def update_liveness(self, listening: float, timeout: float) -> None:
        """Decide whether it is up, after `timeout` seconds of silence at least."""
        patience = max(timeout, MISSED_HEARTBEATS * min(self.freq or 0.0, MAX_HEARTBEAT_SECONDS))
        if self.info.pool == "solo":
            patience = max(patience, SOLO_MAX_SILENCE_SECONDS)
        self.shared = self.processes.is_shared(listening, self._silence_seconds())
        self.up = not self.left and listening - self.last_seen <= patience
        if self.up:
            self.down_since = None
        elif self.down_since is None:
            self.down_since = listening

    def on_worker_event(self, event: Event, now: Timestamp) -> bool:
        """Learn from a worker event; tell whether it is the first one of another process."""
        silence = self._silence_seconds()
        newest = self.processes.known[-1] if self.processes.known else None
        last_seen = self.processes.observe(
            event, now, event.freq or self.freq or DEFAULT_HEARTBEAT_SECONDS, silence
        )
        process = last_seen.process
        self.restarts += last_seen.restarts
        self.processed_total = min(self.processed_total + last_seen.tasks, MAX_PROCESSED)
        if process.left and process is not self.processes.known[-1]:
            return False  # the last event of a process while another one runs
        self._describe(event, now)
        if process is not newest:
            self._close_estimate()
        self.shared = self.processes.is_shared(now.listening, silence)
        if last_seen.is_new and newest is not None:
            seen = self.starts_since if self.starts_of == process.pid else 0
            self.new_process = NewProcess(
                process.pid, event.processed or 0, seen, self.restarts - last_seen.restarts
            )
        elif self.new_process is not None and event.processed is not None:
            self._judge_beginning(self.new_process)
        if self.starts_of == process.pid:
            self.starts_since = 0
        others = self.processes.alive(now.listening, silence) if process.left else ()
        # One of the same pid may be the same one, a heartbeat of which came early.
        is_left = process.left and not any(self.shared or each.pid != process.pid for each in others)
        self.returned = event.timestamp if self.left and not is_left else self.returned
        self.left = is_left
        self.pid = process.pid if event.pid is None else event.pid
        self.active = process.active
        if self.shared:
            self.active = sum(each.active or 0 for each in self.processes.alive(now.listening, silence))
        if event.active is not None:
            self.idle_since = None if self.active else self.idle_since or now.listening
        if event.processed is not None:
            self.processed = event.processed
            if self.shared:
                self._close_estimate()
            else:
                self._estimate_missed(event.processed, event.timestamp)
        return last_seen.is_new and newest is not None

    def has_process(self, pid: int | None) -> bool:
        """Tell whether a process with this pid is known."""
        return any(process.pid == pid for process in self.processes.known)

    def _silence_seconds(self) -> float:
        """Return for how long one process may be silent while others of its name are heard."""
        if self.info.pool == "solo":
            return SOLO_MAX_SILENCE_SECONDS
        return max(PROCESS_SILENCE_SECONDS, MISSED_HEARTBEATS * min(self.freq or 0.0, MAX_HEARTBEAT_SECONDS))

    def _judge_beginning(self, new_process: NewProcess) -> None:
        """Count what a process did before it was heard first, if it is known by now that it replaced another.

        A process that runs beside another one of its name may have run for long before we did.
        """
        if self.shared:
            self.new_process = None
        elif self.restarts > new_process.restarts:
            self.new_process = None
            unsure = self.estimator.unsure if self.estimator else 0
            missing = max(0, new_process.processed - new_process.seen - unsure)
            if missing and self.events and not self.info.silent_tasks:
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
        if self.estimator is not None and self.estimator.is_set_back(timestamp):
            self._close_estimate()  # which starts it has counted cannot be told by their times
        if self.estimator is None:
            unsure = int(self.last_start > timestamp - UNSURE_SECONDS)
            self.estimator = MissedEventEstimator(processed, timestamp, timestamp, unsure=unsure)
            return
        missing = self.estimator.on_heartbeat(processed, timestamp)
        if self.info.silent_tasks:  # that it ran something without an event proves nothing
            return
        if self.estimator.silent >= SILENT_HEARTBEATS[self.events]:
            self.events = False
            self._close_estimate()
        elif self.events:
            self.missed = min(self.missed_before + missing, MAX_PROCESSED)

    def _close_estimate(self) -> None:
        self.missed_before, self.estimator = self.missed, None


def host(node: str) -> str:
    """Return the host's part of a node name."""
    return node.partition("@")[2] or node
