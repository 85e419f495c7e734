"""The state machine of a cluster: events in, facts out.

Law: every event goes through `apply`, in any order, and the sums that come out do not depend on the
order within the reorder window. A client's `task-sent` (the only event with the queue) and a worker's
events travel on different connections and overtake each other; so a task is *introduced* by its
`task-sent`, and events that come earlier are parked until then, or until the window has passed. Then
they are applied, and from there on the task's events come in order, for one sender's events do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from itertools import islice
from operator import attrgetter
from typing import ClassVar

from msgspec import Struct

from celery_exporter.core.events import TASK_TYPES, WORKER_TYPES, Event, exception_class, unregistered_name
from celery_exporter.core.facts import (
    OTHER,
    UNKNOWN,
    Fact,
    Key,
    Known,
    Moment,
    Moved,
    Prefetched,
    Queued,
    Raised,
    Ran,
    Redelivered,
    State,
    WorkerGone,
)
from celery_exporter.core.tasks import Delivery, Task, TaskTable
from celery_exporter.core.workers import MAX_WORKERS, Profile, Worker

#: Seconds for which a finished task's late events find it: ten times the longest delay we know of
#: between a task's end and its last event (a worker's event buffer).
TOMBSTONE_SECONDS = 60.0
#: Tombstones kept at a time: at 300 bytes each, 15 MB.
MAX_TOMBSTONES = 50_000
#: Between two looks at all rooms and workers.
SWEEP_SECONDS = 1.0
#: Events parked for one task; more come from no honest sender, and are not worth waiting for.
MAX_PARKED = 64
#: Tasks that wait for their task-sent at a time, some 2 KB each: 10,000 new ones a second, usually.
MAX_LIMBO = 20_000
#: Open deliveries kept for one task: redelivered more often, it has worse problems than a lost runtime.
MAX_DELIVERIES = 8
#: Retries of one task whose sending is remembered.
MAX_ATTEMPTS = 100
#: Queues whose names are learnt from events and workers; each costs a call to the broker per interval.
MAX_QUEUES = 1_000


class Effect(Struct, frozen=True):
    """What a task event does: the state it is counted as entering, and where the task is afterwards.

    `lands` is None when the task is finished. `stays` events change nothing about where the task is.
    """

    counts: State
    lands: State | None = None
    stays: bool = False


#: The transition table. All unfinished states take each event alike, for each may be the next that
#: reaches us. Celery records RETRY for a cancelled task (mark_as_retry); it will be delivered again.
EFFECTS = {
    "task-sent": Effect(State.PENDING, stays=True),
    "task-received": Effect(State.RECEIVED, State.RECEIVED),
    "task-started": Effect(State.STARTED, State.STARTED),
    "task-succeeded": Effect(State.SUCCESS),
    "task-failed": Effect(State.FAILURE),
    "task-retried": Effect(State.RETRY, State.RETRY),
    "task-revoked": Effect(State.REVOKED),
    "task-rejected": Effect(State.REJECTED),
    "task-cancelled": Effect(State.RETRY, State.RETRY),
}


class Limits(Struct, frozen=True):
    """Times in seconds, counts of things; what bounds the tables."""

    reorder_window: float = 2.0
    worker_timeout: float = 60.0
    worker_purge: float | None = 600.0  # None: silent workers are never forgotten
    task_ttl: float = 86_400.0
    max_tasks: int = 300_000
    max_series: int = 20_000


class Cluster:
    """What is known of tasks and workers. Not thread-safe: one lock, held by its owner, guards it.

    `labels` are the optional labels in use on task metrics, of "queue_name" and "worker".
    """

    def __init__(self, limits: Limits, labels: Iterable[str] = ("queue_name",)) -> None:
        self.limits = limits
        self.tasks = TaskTable(limits.max_tasks, MAX_TOMBSTONES)
        self.workers: dict[str, Worker] = {}
        self.queues: set[str] = set()  # named by events and workers
        self.events = dict.fromkeys((*TASK_TYPES, *WORKER_TYPES, OTHER), 0)
        self.fallbacks: Counter[str] = Counter({"task_name": 0, "queue_name": 0, "worker": 0})
        self.refused: Counter[str] = Counter({"worker": 0, "queue": 0})
        self.negative_waits = 0
        self.folded = 0
        self.keys: dict[Key, Key] = {}  # all label sets in use, each once
        self._by_queue = "queue_name" in labels
        self._by_worker = "worker" in labels
        self._next_sweep = 0.0
        self._facts: list[Fact] = []

    # -- the doors: what happened, what workers answered, what time it is ----------------------------

    def apply(self, event: Event, now: Moment) -> list[Fact]:
        """Take one event in; return what follows from it."""
        facts = self._facts = []
        kind = event.type
        if kind in EFFECTS:
            self._task_event(event, now)
        elif kind in WORKER_TYPES:
            self._worker_event(event, now)
        else:
            kind = OTHER
        self.events[kind] += 1
        return facts

    def learn(self, profiles: Mapping[str, Profile], now: Moment) -> list[Fact]:
        """Take in what workers answered, by node name; return the label sets that are known by it."""
        for name, profile in profiles.items():
            worker = self._worker(name, now)
            if worker is not None:
                worker.profile = profile
                self._see_queues(profile.queues or ())
        # Where there is no room, a task that may never come is not worth folding.
        foreseen = self._foreseen_keys() - self.keys.keys()
        room = max(0, self.limits.max_series - len(self.keys))
        return [Known(self._admitted(key)) for key in islice(foreseen, room)]

    def expire(self, now: Moment) -> list[Fact]:
        """Let time pass: introduce who waited long enough, forget who was silent too long."""
        facts = self._facts = []
        tasks = self.tasks
        for task in tasks.overdue(tasks.limbo, now.listened - self.limits.reorder_window):
            self._introduce(task, None, now)
        if now.listened >= self._next_sweep:
            self._next_sweep = now.listened + SWEEP_SECONDS
            self._sweep(now)
        return facts

    def _sweep(self, now: Moment) -> None:
        tasks = self.tasks
        for task in tasks.overdue(tasks.finished, now.listened - TOMBSTONE_SECONDS):
            tasks.forget(task)
        for room in tasks.rooms():
            self._evict(tasks.overdue(room, now.listened - self.limits.task_ttl), now)
        for worker in list(self.workers.values()):
            self._judge(worker, now)

    # -- tasks ---------------------------------------------------------------------------------------

    def _task_event(self, event: Event, now: Moment) -> None:
        sent = event.type == "task-sent"
        if sent:
            self._see_queues((event.queue,) if event.queue else ())
        else:
            self._hear_worker(event, now)
        uuid = event.uuid or ""
        task = self.tasks.get(uuid)
        if task is not None and sent and self._is_sent_anew(task, event, now):
            self.tasks.forget(task)
            task = None
        if task is None:
            task = self.tasks.new(uuid, now.listened)
            self._evict(self.tasks.surplus(), now)
        if task.kind is not None:
            self._step(task, event, now)
        elif sent:
            self._introduce(task, event, now)
        else:
            self._park(task, event, now)

    def _is_sent_anew(self, task: Task, event: Event, now: Moment) -> bool:
        """Tell whether the id of a finished task was used again, for a new one."""
        past = now.listened - task.heard > self.limits.reorder_window
        return task.kind is not None and task.state is None and past and event.timestamp > task.since

    def _park(self, task: Task, event: Event, now: Moment) -> None:
        if event.exception is not None:
            event.exception = event.exception[:512]  # the class, or NotRegistered('name'), is in there
        event.uuid, event.hostname = task.uuid, self._shared_name(event.hostname)
        if task.parked is None:
            task.parked = []
        task.parked.append(event)
        if len(task.parked) >= MAX_PARKED:
            self._introduce(task, None, now)
        elif len(self.tasks.limbo) > MAX_LIMBO:
            self._introduce(next(iter(self.tasks.limbo.values())), None, now)

    def _introduce(self, task: Task, sent: Event | None, now: Moment) -> None:
        """Give the task its key, from `task-sent` or from what is known without it; then catch up."""
        events, task.parked = ([sent] if sent else []) + (task.parked or []), None
        kind = self.tasks.kind(self._find_key(events))
        self.tasks.move(task, kind, State.PENDING, events[0].timestamp)
        for event in events:
            self._step(task, event, now)

    def _find_key(self, events: list[Event]) -> Key:
        """Return the key that these events tell, else what is left: the only queue it can be, `unknown`."""
        name = queue = None
        for event in events:
            name = name or event.name or unregistered_name(event.exception)
            queue = queue or event.queue
        if name is None:
            self.fallbacks["task_name"] += 1
        if queue is None and self._by_queue:
            self.fallbacks["queue_name"] += 1
            queue = next(filter(None, (self._only_queue(event.hostname) for event in events)), None)
        return self._admitted(Key(name or UNKNOWN, (queue or UNKNOWN) if self._by_queue else ""))

    def _admitted(self, key: Key) -> Key:
        """Return the one instance of this key, or, when there are too many, the one that sums up the rest."""
        known = self.keys.get(key)
        if known is None:
            if len(self.keys) >= self.limits.max_series:
                self.folded += 1
                key = Key(OTHER, OTHER if key.queue_name else "", OTHER if key.worker else "")
            known = self.keys.setdefault(key, key)
        return known

    def _only_queue(self, hostname: str) -> str | None:
        """Return the queue a worker consumes, if it is one: what it runs can have come from no other."""
        worker = self.workers.get(hostname)
        queues = worker.profile.queues if worker else None
        return queues[0] if queues and len(queues) == 1 else None

    def _step(self, task: Task, event: Event, now: Moment) -> None:
        """Book one event of an introduced task, and put the task where the event says it is."""
        effect = EFFECTS[event.type]
        newest = self._MEASURE[effect.counts](self, task, event)
        self._book(Moved(self._key(task, event), effect.counts, min(event.timestamp, now.wall)))
        if not effect.stays and newest and (task.state is not None or self._opens(task, event, now)):
            self._land(task, event, effect)
        task.heard = now.listened

    def _opens(self, task: Task, event: Event, now: Moment) -> bool:
        """Tell whether a finished task was received anew, or an old event of it came late.

        Anew: later by the clock of the worker that ended it, or later than the reorder window by ours.
        """
        later = task.ended_by == event.hostname and event.timestamp > task.since
        anew = now.listened - task.heard > self.limits.reorder_window
        return event.type == "task-received" and (later or anew)

    def _land(self, task: Task, event: Event, effect: Effect) -> None:
        state = State.PENDING if event.requeue else effect.lands
        if state is None:
            task.ended_by, task.since = self._shared_name(event.hostname), event.timestamp
            self.tasks.finish(task)
        else:
            assert task.kind is not None  # noqa: S101  introduced, or it would not be here
            self.tasks.move(task, task.kind, state, event.timestamp)

    def _shared_name(self, hostname: str) -> str:
        """Return the worker's name as one string for all its tasks: a copy each would double their size."""
        worker = self.workers.get(hostname)
        return worker.name if worker else hostname

    def _key(self, task: Task, event: Event) -> Key:
        assert task.kind is not None  # noqa: S101
        key = task.kind.key
        if not self._by_worker or event.type == "task-sent":
            return key
        worker = event.hostname if event.hostname in self.workers else OTHER
        return self._admitted(Key(key.task_name, key.queue_name, worker))

    def _evict(self, tasks: Iterable[Task], now: Moment) -> None:
        for task in tasks:
            if task.kind is None:
                self._introduce(task, None, now)
            self.tasks.evicted += task.state is not None
            self.tasks.forget(task)

    # -- what is measured at each event; each tells whether the event is of the newest delivery ----------

    def _at_sent(self, task: Task, event: Event) -> bool:
        assert task.kind is not None  # noqa: S101
        key = task.kind.key
        name = event.name or key.task_name
        queue = (event.queue or key.queue_name) if self._by_queue else ""
        if key.task_name != OTHER and (name != key.task_name or queue != key.queue_name):
            # It came late, or is a retry that goes elsewhere: from now on this is true.
            self.tasks.rename(task, self.tasks.kind(self._admitted(Key(name, queue))))
        attempt, ready = event.retries or 0, max(event.timestamp, _epoch(event.eta))
        for delivery in task.deliveries or ():
            if delivery.attempt == attempt and delivery.ready is None:  # this was overtaken
                delivery.ready = ready
                if delivery.started is not None:
                    self._book(Queued(self._key(task, event), self._clamped(delivery.started - ready)))
        if attempt == 0:
            task.ready = ready
        elif len(task.resent or ()) < MAX_ATTEMPTS:
            task.resent = {**(task.resent or {}), attempt: ready}
        return True

    def _at_received(self, task: Task, event: Event) -> bool:
        attempt, eta = event.retries or 0, _epoch(event.eta)
        ready = task.ready_at(attempt)
        if task.received is not None and attempt <= task.received:
            self._book(Redelivered(self._key(task, event)))
            ready = event.timestamp
        task.received, received = attempt, max(event.timestamp, eta)
        for delivery in self._held(task, event):
            if delivery.received is None and delivery.started is not None:  # it was overtaken
                self._book(Prefetched(self._key(task, event), self._clamped(delivery.started - received)))
                delivery.received = received
                return False
        self._deliver(task, Delivery(event.hostname, event.pid, attempt, ready or eta or None, received))
        return True

    def _at_started(self, task: Task, event: Event) -> bool:
        delivery = next((each for each in self._held(task, event) if each.started is None), None)
        if delivery is None:  # its task-received did not reach us
            ready = task.ready if task.received is None else None
            delivery = Delivery(event.hostname, event.pid, task.received or 0, ready, None)
            self._deliver(task, delivery)
        key = self._key(task, event)
        if delivery.ready is not None:
            self._book(Queued(key, self._clamped(event.timestamp - delivery.ready)))
        if delivery.received is not None:
            self._book(Prefetched(key, self._clamped(event.timestamp - delivery.received)))
        delivery.started = event.timestamp
        return task.deliveries is None or task.deliveries[-1] is delivery

    def _at_success(self, task: Task, event: Event) -> bool:
        if event.runtime is not None:
            self._book(Ran(self._key(task, event), State.SUCCESS, event.runtime))
        return self._ended(task, self._last_held(task, event))

    def _at_failure(self, task: Task, event: Event) -> bool:
        self._book(Raised(self._key(task, event), exception_class(event.exception) or UNKNOWN))
        delivery = self._last_held(task, event)
        self._ran(task, event, delivery, State.FAILURE)
        return self._ended(task, delivery)

    def _at_retry(self, task: Task, event: Event) -> bool:
        delivery = self._first_held(task, event)
        self._ran(task, event, delivery, State.RETRY)
        return self._ended(task, delivery)

    def _at_rejection(self, task: Task, event: Event) -> bool:
        return self._ended(task, self._first_held(task, event))

    def _at_revocation(self, task: Task, event: Event) -> bool:
        return self._ended(task, self._last_held(task, event))

    def _ran(self, task: Task, event: Event, delivery: Delivery | None, state: State) -> None:
        """Book a runtime that the event does not carry, by the clock of the worker that ran it."""
        if delivery is not None and delivery.started is not None:
            seconds = self._clamped(event.timestamp - delivery.started)
            self._book(Ran(self._key(task, event), state, seconds))

    def _ended(self, task: Task, delivery: Delivery | None) -> bool:
        """Close a delivery; tell whether it was the newest (as one that we know nothing of must be)."""
        if delivery is None or task.deliveries is None:
            return True
        newest = task.deliveries[-1] is delivery
        delivery.ended = True
        if delivery.ready is not None or delivery.started is None:
            task.deliveries.remove(delivery)
        return newest

    def _first_held(self, task: Task, event: Event) -> Delivery | None:
        """Return the delivery that an event may end after which the task goes on: the oldest one."""
        held = self._held(task, event)
        return next((each for each in held if each.started is not None), held[0] if held else None)

    def _last_held(self, task: Task, event: Event) -> Delivery | None:
        """Return the delivery that an event may end which ends the task: one of the last attempt."""
        held = self._held(task, event)
        if len(held) < 2:
            return held[0] if held else None
        started = [each for each in held if each.started is not None] or held
        return max(started, key=attrgetter("attempt"), default=None)

    def _held(self, task: Task, event: Event) -> list[Delivery]:
        """Return the open deliveries to the sender's process, the oldest first."""
        return [
            each
            for each in task.deliveries or ()
            if each.worker == event.hostname and each.pid == event.pid and not each.ended
        ]

    def _deliver(self, task: Task, delivery: Delivery) -> None:
        """Add a delivery; those to an earlier process of the same worker died with it."""
        delivery.worker = self._shared_name(delivery.worker)
        if not task.deliveries:
            task.deliveries = [delivery]
            return
        alive = [
            each
            for each in task.deliveries
            if each.worker != delivery.worker or each.pid == delivery.pid or each.ended
        ]
        task.deliveries = [*alive[1 - MAX_DELIVERIES :], delivery]

    def _clamped(self, seconds: float) -> float:
        """Return a wait between two clocks: one below 0 is skew, and counted as such."""
        if seconds < 0:
            self.negative_waits += 1
            return 0.0
        return seconds

    def _book(self, fact: Fact) -> None:
        self._facts.append(fact)

    _MEASURE: ClassVar[dict[State, Callable[[Cluster, Task, Event], bool]]] = {
        State.PENDING: _at_sent,
        State.RECEIVED: _at_received,
        State.STARTED: _at_started,
        State.SUCCESS: _at_success,
        State.FAILURE: _at_failure,
        State.RETRY: _at_retry,
        State.REVOKED: _at_revocation,
        State.REJECTED: _at_rejection,
    }

    # -- workers and queues ------------------------------------------------------------------------------

    def _worker_event(self, event: Event, now: Moment) -> None:
        worker = self._worker(event.hostname, now)
        if worker is not None:
            worker.beat(event, now)
            worker.judge(now.listened, self.limits.worker_timeout)

    def _hear_worker(self, event: Event, now: Moment) -> None:
        worker = self._worker(event.hostname, now)
        if worker is not None:
            worker.task_event(event)
            worker.up = not worker.left
        elif self._by_worker:
            self.fallbacks["worker"] += 1

    def _worker(self, name: str, now: Moment) -> Worker | None:
        worker = self.workers.get(name)
        if worker is None:
            if len(self.workers) >= MAX_WORKERS:
                self.refused["worker"] += 1
                return None
            worker = self.workers[name] = Worker(name, now.listened)
        worker.heard = now.listened
        return worker

    def _judge(self, worker: Worker, now: Moment) -> None:
        worker.judge(now.listened, self.limits.worker_timeout)
        purge = self.limits.worker_purge
        if purge is None or worker.down_since is None or now.listened - worker.down_since <= purge:
            return
        del self.workers[worker.name]
        self._book(WorkerGone(worker.name))
        for key in [key for key in self.keys if key.worker == worker.name]:
            del self.keys[key]

    def _see_queues(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.queues:
                continue
            if len(self.queues) < MAX_QUEUES:
                self.queues.add(name)
            else:
                self.refused["queue"] += 1

    def _foreseen_keys(self) -> set[Key]:
        """Return the keys of registered tasks, where a task's workers all consume one and the same queue.

        Otherwise which queue it will come from is not known, and is not made up.
        """
        queues: dict[str, set[str]] = {}
        for worker in self.workers.values():
            for name in worker.profile.registered or ():
                queues.setdefault(name, set()).update(worker.profile.queues or (UNKNOWN, OTHER))
        if not self._by_queue:
            return {Key(name) for name in queues}
        return {Key(name, *only) for name, only in queues.items() if len(only) == 1}


def _epoch(eta: str | None) -> float:
    """Return an ISO 8601 time as epoch seconds; 0.0 (long ago) for none and for what is no time.

    Celery writes UTC offsets (kombu.utils.json, celery/app/amqp.py); a time without one is UTC.
    """
    if not eta:
        return 0.0
    try:
        parsed = datetime.fromisoformat(eta.replace("Z", "+00:00"))
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
