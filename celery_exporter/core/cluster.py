"""The state machine of a cluster: events in, what follows from them into the ledger.

Invariant: every event goes through `apply`, in any order, and the sums that come out do not depend on the
order within the reorder window. A client's `task-sent` (the only event with the queue) and a worker's
events travel on different connections and overtake each other; so a task is *introduced* by its
`task-sent`, and events that come earlier are parked until then, or until the window has passed. Then
they are applied, and from there on the task's events come in order, for one sender's events do. So is
each retry, for it may go to another queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import attrgetter

from msgspec import Struct

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.events import TASK_TYPES, WORKER_TYPES, Event, unregistered_name, unwrap
from celery_exporter.core.identity import (
    add_predecessor,
    add_successor,
    find_received,
    find_sent,
    find_shadowed,
    generation_of,
    generations,
    is_alike,
)
from celery_exporter.core.label_sets import Keys, rest
from celery_exporter.core.queues import QueueTable
from celery_exporter.core.repeats import End, Ends
from celery_exporter.core.routing import Binding, Routes
from celery_exporter.core.task_names import ShownAs, clipped
from celery_exporter.core.tasks import MAX_ATTEMPTS, Delivery, StateBucket, Task, TaskHistory, TaskTable
from celery_exporter.core.transitions import EFFECTS, at_sent, epoch, usually_sent
from celery_exporter.core.types import EXCLUDED, OTHER, UNKNOWN, LabelSet, State, Timestamp
from celery_exporter.core.workers import MAX_WORKERS, Worker, WorkerInfo

#: Seconds for which a finished task's late events find it: ten times the longest delay we know of
#: between a task's end and its last event (a worker's event buffer).
TOMBSTONE_SECONDS = 60.0
#: Tombstones kept at a time: at 300 bytes each, usually, 15 MB.
MAX_TOMBSTONES = 50_000
#: Between two looks at all rooms and workers.
SWEEP_SECONDS = 1.0
#: Events parked for one task; more come from no honest sender, and are not worth waiting for.
MAX_PARKED = 64
#: Tasks that wait for their task-sent at a time, some 2 KB each: 10,000 new ones a second, usually.
MAX_LIMBO = 20_000
#: Tasks that are looked at, while events wait, for who has received and not started them: 6 ms.
MAX_PREFETCHED = 50_000
#: Events that end an execution.
REPEATABLE = tuple(kind for kind in EFFECTS if kind not in {"task-received", "task-started"})
#: Seconds by which a message may be received before its sender has written `task-sent`, on one clock.
SENT_DELAY = 0.05
#: Seconds for which a worker that started is asked again at once, and, if it restarted, tasks whose queue is
#: not known wait for its answer. Its first event comes before it takes questions.
ANSWER_SECONDS = 10.0

_TYPE, _HOSTNAME = attrgetter("type"), attrgetter("hostname")
# An enum's members are looked up each time they are named.
PENDING, RECEIVED, STARTED, REJECTED = State.PENDING, State.RECEIVED, State.STARTED, State.REJECTED


class Limits(Struct, frozen=True):
    """Times in seconds, counts of things; what bounds the tables."""

    reorder_window: float = 2.0
    worker_timeout: float = 60.0  # infinite: nobody is down before saying so
    worker_purge: float | None = 600.0  # None: silent workers are never forgotten
    task_ttl: float = 86_400.0
    max_tasks: int = 300_000
    max_series: int = 20_000  # in a family; celery_tasks_total has one for each key and state
    series_ttl: float | None = None  # None: idle label sets stay


class Cluster:
    """What is known of tasks and workers. Not thread-safe: one lock, held by its owner, guards it.

    What follows from events is booked in the `aggregates`. `labels` are the optional labels in use on task
    metrics, of "queue_name" and "worker"; `show` says what a task is called on them and `show_queue` what a
    queue is, `clients` whether it is told which host sent a task, and `hosts` whether sums over the workers
    of a host are shown.
    """

    def __init__(  # noqa: PLR0913  what is known, where it goes, and how it is shown
        self,
        limits: Limits,
        aggregates: Aggregates,
        labels: Iterable[str] = ("queue_name",),
        show: ShownAs = str,
        *,
        show_queue: ShownAs = str,
        clients: bool = False,
        hosts: bool = False,
    ) -> None:
        self.limits = limits
        self.aggregates = aggregates
        self.tasks = TaskTable(limits.max_tasks, MAX_TOMBSTONES)
        self.workers: dict[str, Worker] = {}
        self.queues = QueueTable()
        self.keys = Keys(limits.max_series // len(State), labels, show, show_queue)
        self.routes = Routes()
        # Workers that started of late and are to be asked, and those of them for whose answer tasks wait; by
        # the listening time of their first event.
        self.unasked: dict[str, float] = {}
        self._unanswered: dict[str, float] = {}
        self._registered_names: frozenset[str] = frozenset()
        #: Names of workers that were forgotten, the newest last: a late goodbye brings none back.
        self.purged: dict[str, None] = {}
        self.events = dict.fromkeys((*TASK_TYPES, *WORKER_TYPES, OTHER), 0)
        self.fallbacks: Counter[str] = Counter({"task_name": 0, "queue_name": 0, "worker": 0})
        self.refused: Counter[str] = Counter({"worker": 0, "queue": 0})
        #: Events that told once more what was counted already, by type.
        self.repeated: Counter[str] = Counter(dict.fromkeys(REPEATABLE, 0))
        self.ends = Ends()
        self.clients = clients
        #: Tasks that were taken out or put back without an event, by reason; see core/reconcile.py.
        self.reconciled: Counter[str] = Counter()
        self._hosts = hosts
        self._next_sweep = 0.0
        self._doors: dict[str, Callable[[Event, Timestamp], None]] = {
            "task-sent": self._sent,
            **dict.fromkeys(EFFECTS, self._happened),
            "task-received": self._received,
            **dict.fromkeys(WORKER_TYPES, self._worker_event),
        }

    # -- the doors: what happened, what workers answered, what time it is ----------------------------

    def apply(self, event: Event, now: Timestamp) -> None:
        """Take one event in."""
        kind = event.type
        door = self._doors.get(kind)
        if door is None:
            kind = OTHER
        else:
            door(event, now)
        self.events[kind] += 1

    def learn(
        self, profiles: Mapping[str, WorkerInfo], now: Timestamp, asked: Mapping[str, int] | None = None
    ) -> None:
        """Take in what workers answered, by node name, and the label sets that are known by it.

        `asked` has the workers that were known when they were asked, with `Worker.starts` as of then: whoever
        restarted since has not answered yet.
        """
        asked = asked or {}
        for name, profile in profiles.items():
            worker = self._worker(name, now)
            if worker is not None:
                worker.profile = profile
                for queue in () if worker.up else profile.queues or ():
                    self._use_queue(queue, now)
                if asked.get(name, worker.starts) == worker.starts:
                    worker.is_profile_current = profile.queues is not None
                    self._unanswered.pop(name, None)
                    self.unasked.pop(name, None)
        self._take_consumed(now)
        self.routes.learn(self._bindings())
        registered = self._registered()
        self._registered_names = frozenset(registered)
        self.keys.forget_shadows(self._registered_names)
        for key in self.keys.foresee(self._foreseen_keys(registered)):
            self.aggregates.touch(key)

    def expire(self, now: Timestamp) -> None:
        """Let time pass: introduce who waited long enough, forget who was silent too long."""
        tasks = self.tasks
        before = now.listened - self.limits.reorder_window
        for task in (*tasks.overdue(tasks.unidentified.tasks, before), *tasks.held_before(before)):
            if self._unanswered and self._awaits_answer(task, now):
                tasks.wait_longer(task, now.listened)
            else:
                self._release(task, now)
        if now.listened >= self._next_sweep:
            self._next_sweep = now.listened + SWEEP_SECONDS
            self._sweep(now)

    def _sweep(self, now: Timestamp) -> None:
        tasks = self.tasks
        self.ends.expire(now.listened)
        tasks.bound_changes()
        self._evict(tasks.overdue(tasks.finished, now.listened - TOMBSTONE_SECONDS), now)
        # What was taken out has a label set, which is kept no longer than this.
        longest = min(self.limits.task_ttl, self.limits.series_ttl or self.limits.task_ttl)
        self._evict(tasks.overdue(tasks.taken_out, now.listened - longest), now)
        started: Counter[str] | None = None
        for room in list(tasks.rooms()):  # by what is released here others may come into being
            overdue = tasks.overdue(room.tasks, now.listened - self.limits.task_ttl)
            if overdue and room.state is STARTED and started is None:
                started = tasks.started()
            for task in overdue:
                if self.outlives(task, now.wall, started or {}):
                    tasks.hear(task, now.listened)
                else:
                    self._evict([task], now)
            if not room.tasks:
                room.tasks.clear()  # gives back what it took when it was full
        self._judge_workers(now)
        if self.queues.is_expiry_due(now.listened):
            self._take_consumed(now)
            self.queues.expire(now.listened)
        late = now.listened - ANSWER_SECONDS
        for waiting in (self.unasked, self._unanswered):
            for name in [name for name, since in waiting.items() if since <= late]:
                del waiting[name]
        if self.limits.series_ttl is not None:
            self._give_up_idle(now.listened - self.limits.series_ttl)

    def outlives(self, task: Task, wall: float, started: Mapping[str, int]) -> bool:
        """Tell whether a task stays beyond --task-ttl: it is not due yet, or its worker must be running it.

        That is so while a worker reports as many active tasks as it has started (`started`, by name). If it
        answers which these are, they are heard of by that. How many tasks there may be bounds them, too.
        """
        if task.is_due_after(wall):
            return True
        worker = self.workers.get(task.held_by()) if task.room.state is STARTED else None
        return worker is not None and worker.up and (worker.active or 0) >= started.get(worker.name, 1)

    def take_out(self, task: Task, reason: str, now: Timestamp) -> None:
        """Finish a task without an event; a receipt or a start that follows all the same reopens it."""
        self.reconciled[reason] += 1
        task.heard = task.room.kind.heard = now.listened
        self._evict(self.tasks.finish(task, task.room.kind, None, now.wall), now)

    def put_back(self, task: Task, now: Timestamp) -> None:
        """Let a task wait again that its worker had received: the broker delivers it to another one."""
        task.unfold().give_back(task.held_by())
        self.tasks.move(task, task.room.kind, PENDING, now.wall)
        task.fold()

    def prefetched(self) -> dict[tuple[LabelSet, str], int] | None:
        """Return how many tasks each worker has received and not started; None if these are too many."""
        found = self.tasks.prefetched(MAX_PREFETCHED)
        return None if found is None else {at: count for at, count in found.items() if at[1] in self.workers}

    # -- tasks ---------------------------------------------------------------------------------------

    def _sent(self, event: Event, now: Timestamp) -> None:
        # By default a message goes to the default exchange, with the queue's name as its routing key.
        copied = (event.exchange or event.routing_key != event.queue) and self._route(event)
        queue, tasks = event.queue, self.tasks
        if queue is not None and queue not in self.queues.recent and not copied:
            self._use_queue(queue, now)
        task = tasks.get(event.uuid or "")
        if task is not None and task.room.state is None and self._is_sent_anew(task, event, now):
            self._evict([task], now)
            task = None
        if task is None:
            if queue is None and self.keys.by_queue:  # but its worker may consume only one
                self._park(self._new(event, tasks.unidentified, now), event, now)
                return
            known = event.name and queue
            key = self.keys.of_task(event.name, queue) if known else self._find_key([event])
            task = self._new(event, tasks.kind(key).rooms[PENDING], now)
        elif task.room is tasks.unidentified:
            is_usual = queue is not None and tasks.deferred[task.uuid][0].name == event.name
            if not is_usual and self._waits_for_receipt(task, event):
                self._park(task, event, now)
                return
            self._introduce(task, event)
        else:
            self._number_sent(task, event)
            self._place(task, event, queue)
        if copied:
            task.unfold().copied = True
        self._book_sent(task, event, now)
        if tasks.deferred and task.uuid in tasks.deferred:
            self._catch_up(task, now)

    def _waits_for_receipt(self, task: Task, event: Event) -> bool:
        """Tell whether only the worker that receives a task will tell its queue, or whose sending this is."""
        is_lost = event.queue is None and self.keys.by_queue
        return (is_lost and not self._is_answered(task)) or self._has_predecessor(task, event)

    def _note_expiry(self, task: Task, expires: str) -> None:
        """Remember when the message of a task expires."""
        at = epoch(expires)
        if at:
            self.tasks.expires[task.uuid] = at

    def _sent_anew(self, task: Task, event: Event, now: Timestamp) -> None:
        """Take a sending of a task in that is introduced: a late one, of a retry, or of other work."""
        self._number_sent(task, event)
        self._place(task, event, event.queue)
        self._book_sent(task, event, now)

    def _route(self, event: Event) -> bool:
        """Name the queue that the message went to; tell whether it went to several, as copies."""
        route = self.routes.find(event.queue, event.exchange, event.routing_key)
        event.queue = route.queue
        return route.copied

    def _received(self, event: Event, now: Timestamp) -> None:
        self._hear_worker(event, now)
        tasks = self.tasks
        task = tasks.get(event.uuid or "") or self._new(event, tasks.unidentified, now)
        if tasks.deferred and task.uuid in tasks.deferred:
            self._park(task, event, now)
            if task.room is tasks.unidentified:
                self._settle(task, event, now)
            return
        if task.room.state is RECEIVED and self._is_lost(task, event):
            self.put_back(task, now)
        if not _is_told(task, event):
            is_early = task.room is tasks.unidentified or self._is_early(task, event)
            if is_early or (self._unanswered and self._is_homeless(task, event)):
                self._park(task, event, now)
                return
            self._at_receipt(task, event)
        self._step(task, event, now)

    def _happened(self, event: Event, now: Timestamp) -> None:
        self._hear_worker(event, now)
        if event.exception is not None or event.traceback is not None:
            unwrap(event)
        unidentified = self.tasks.unidentified
        task = self.tasks.get(event.uuid or "") or self._new(event, unidentified, now)
        if task.room is unidentified:
            self._park(task, event, now)
        elif not (self.tasks.held and task.uuid in self.tasks.held):
            self._step(task, event, now)
        elif self._is_of_open_delivery(task, event):
            self._step(task, event, now)
            self._catch_up(task, now)
        else:
            self._park(task, event, now)

    def _is_lost(self, task: Task, event: Event) -> bool:
        """Tell whether a worker that receives a task anew has lost what it had received of it before.

        Each consumer begins with nothing (celery/worker/consumer/consumer.py, on_close): that of a container
        that comes back, whose process has the same pid again, and the next one after a lost connection.
        """
        worker = self.workers.get(event.hostname)
        if worker is None or worker.shared:  # another process may have come
            return False
        return task.held_by() == worker.name and task.since < worker.online

    def _new(self, event: Event, room: StateBucket, now: Timestamp) -> Task:
        task = self.tasks.new(event.uuid or "", now.listened, room, event.timestamp)
        if self.tasks.is_full():
            self._evict(self.tasks.surplus(), now)
        return task

    def _is_sent_anew(self, task: Task, event: Event, now: Timestamp) -> bool:
        """Tell whether the id of a finished task was used again, for a new one."""
        if task.room is self.tasks.unidentified:
            return False
        hold = self.tasks.held.get(task.uuid)  # a receipt that may be of what is sent now
        newest = task.heard if hold is None else hold.since
        return now.listened - newest > self.limits.reorder_window and event.timestamp > task.since

    def _park(self, task: Task, event: Event, now: Timestamp) -> None:
        if event.exception is not None:
            event.exception = event.exception[:512]  # the class, or NotRegistered('name'), is in there
        event.traceback = None
        event.uuid = task.uuid
        self.tasks.park(task, [event], now.listened)
        if len(self.tasks.deferred[task.uuid]) >= MAX_PARKED:
            self._release(task, now)
        unidentified, held = self.tasks.unidentified.tasks, self.tasks.held
        if len(unidentified) > MAX_LIMBO:
            self._release(next(iter(unidentified.values())), now)
        if len(held) > MAX_LIMBO and (oldest := self.tasks.get(next(iter(held)))):
            self._release(oldest, now)

    def _release(self, task: Task, now: Timestamp) -> None:
        """Wait no longer: apply what was parked."""
        if task.room is self.tasks.unidentified:
            sent = self._take_oldest_sent(task)
            self._introduce(task, sent)
            if sent is not None:
                self._book_sent(task, sent, now)
        self._catch_up(task, now, wait=False)

    def _take_oldest_sent(self, task: Task) -> Event | None:
        """Take the `task-sent` out of what waited if it is the oldest event of it."""
        waiting = self.tasks.deferred.get(task.uuid, [])
        if "task-sent" not in map(_TYPE, waiting):  # nearly always
            return None
        oldest = min(waiting, key=attrgetter("timestamp"))
        if oldest.type != "task-sent":
            return None
        waiting.remove(oldest)
        return oldest

    def _introduce(self, task: Task, sent: Event | None) -> None:
        """Give the task its key, from `task-sent` or from what is known without it."""
        if sent is not None and sent.name and sent.queue:
            key, since = self.keys.of_task(sent.name, sent.queue), sent.timestamp
        else:
            events = [each for each in self.tasks.deferred.get(task.uuid, []) if each.type != "task-sent"]
            if sent is not None:
                events.insert(0, sent)
            elif len({*map(_HOSTNAME, events)}) > 1:
                events = [each for each in events if each.hostname == events[0].hostname]
            key, since = self._find_key(events), events[0].timestamp
        self.tasks.move(task, self.tasks.kind(key), PENDING, since)

    def _catch_up(self, task: Task, now: Timestamp, *, wait: bool = True) -> None:
        """Apply what was parked, up to what has to wait for another task-sent, if that may still come.

        Events that waited are judged by when they came: a late one reopens no finished task, and one that
        came before the end of another delivery does.
        """
        hold, events = self.tasks.release(task)
        came = now if hold is None else Timestamp(hold.since, now.wall)
        ended_by = task.ended_by() if hold and hold.was_open and task.room.state is None else ""
        kinds = [*map(_TYPE, events)]
        if "task-sent" in kinds:
            for event in events:
                if event.type == "task-sent":
                    self._sent_anew(task, event, came)
            events = [event for event in events if event.type != "task-sent"]
        if not wait and (kinds.count("task-received") > 1 or (task.story and task.story.generations)):
            events.sort(key=self._happened_at)  # each sender's stay in their order
        for index, event in enumerate(events):
            if event.type == "task-received" and not _is_told(task, event):
                if self._is_early(task, event) and wait:
                    self.tasks.park(task, events[index:], came.listened, hold)
                    return
                self._at_receipt(task, event)
                if ended_by and not self._is_outdated(task, event):
                    self._reopen(task, event, came, ended_by)
                    ended_by = ""
                    continue
            self._step(task, event, came)
        if hold is not None and task.room.state is None:
            self.tasks.hear(task, now.listened)  # it may have ended just now

    def _happened_at(self, event: Event) -> float:
        """Return when an event happened, by our clock as far as the worker's is known."""
        return event.timestamp - self._skew(event.hostname)

    def _skew(self, worker: str) -> float:
        """Return by how many seconds a worker's clock is ahead of ours, as far as that is known."""
        known = self.workers.get(worker)
        return (known.clock_skew if known else None) or 0.0

    def _reopen(self, task: Task, event: Event, came: Timestamp, ended_by: str) -> None:
        """Apply a receipt that came before the end of another delivery, which was applied before it."""
        if task.room.state is None:
            self.ends.note_finished(task, came.listened)
            self.tasks.move(task, task.room.kind, PENDING, task.since)
        self._step(task, event, came)
        task.unfold().ended_by = ended_by

    def _find_key(self, events: list[Event]) -> LabelSet:
        """Return the key that these events tell, else what is left: the only queue it can be, `unknown`."""
        name = queue = None
        for event in events:
            name = name or event.name or unregistered_name(event.exception)
            queue = queue or event.queue
        if name is not None and queue is not None:  # nearly all
            return self.keys.of_task(name, queue)
        if name is None:
            self.fallbacks["task_name"] += 1
        elif not self.keys.shown(name):
            return EXCLUDED
        if queue is None and self.keys.by_queue:
            self.fallbacks["queue_name"] += 1
            queue = next(filter(None, (self._only_queue(event.hostname) for event in events)), None)
        return self.keys.of_task(name, queue)

    def _only_queue(self, hostname: str) -> str | None:
        """Return the queue a worker consumes, if it is one: what it runs can have come from no other."""
        worker = self.workers.get(hostname)
        if worker is None or not worker.is_profile_current:
            return None
        if worker.shared and worker.profile.answers == 1:  # what the other process consumes is not known
            return None
        queues = worker.profile.queues
        return self.routes.label(queues[0]) if queues and len(queues) == 1 else None

    def _settle(self, task: Task, event: Event, now: Timestamp) -> None:
        """Introduce a task that was sent to no queue that is known, once its worker's queues are."""
        worker = self.workers.get(event.hostname)
        deferred = self.tasks.deferred.get(task.uuid)
        if deferred and deferred[0].type == "task-sent" and worker is not None and worker.is_profile_current:
            self._release(task, now)

    def _is_answered(self, task: Task) -> bool:
        """Tell whether the queues of a worker that received the task are known."""
        names = (event.hostname for event in self.tasks.deferred.get(task.uuid, ()))
        return any(name in self.workers and self.workers[name].is_profile_current for name in names)

    def _is_homeless(self, task: Task, event: Event) -> bool:
        """Tell whether the queue of an introduced task will be known when its worker has answered."""
        unknown = task.room.kind.key.queue_name == UNKNOWN
        return unknown and event.hostname in self._unanswered and task.room.state is not None

    def _awaits_answer(self, task: Task, now: Timestamp) -> bool:
        """Tell whether what waits of a task came from a worker that restarted and has yet to answer."""
        since = (self._unanswered.get(event.hostname) for event in self.tasks.deferred.get(task.uuid, ()))
        return any(each is not None and now.listened - each < ANSWER_SECONDS for each in since)

    def _book_sent(self, task: Task, event: Event, now: Timestamp) -> None:
        """Book the sending of a task, or of a retry of it; where the task is does not change by it."""
        key = task.key_of(event.retries) if task.story else task.room.kind.key
        if task.story or not usually_sent(task, event):
            at_sent(task.unfold(), event, partial(self._key_at, key), self.aggregates)
            task.fold()
        self.aggregates.count_transition(key, PENDING, min(event.timestamp, now.wall))
        if self.clients:
            self.aggregates.count_sender(key, host(event.hostname))
        if event.expires is not None:
            self._note_expiry(task, event.expires)
        if (
            task.room.state is None and (event.retries or 0) >= MAX_ATTEMPTS
        ):  # a finished task's id was used again
            self.ends.note_finished(task, now.listened)
            task.unfold().ended_by = ""
            self.tasks.move(task, self.tasks.kind(task.key_of(event.retries)), PENDING, event.timestamp)
        task.room.kind.heard = now.listened
        self.tasks.hear(task, now.listened)

    def _step(self, task: Task, event: Event, now: Timestamp) -> None:
        """Book what a worker did to an introduced task, and put the task where the event says it is."""
        effect = EFFECTS[event.type]
        task.room.kind.heard = now.listened
        usual = effect.usual
        if usual is None or task.story is not None or not usual[0](task, event):
            if event.type in self.repeated and self.ends.is_repeated(task, event, effect.counts):
                self.repeated[event.type] += 1
                return
            self._step_of(task.unfold(), task, event, now)
            task.fold()
            return
        key = task.room.kind.key
        if self.keys.by_worker:
            key = self._key_at(key, event.hostname)
        usual[1](task, event, key, self.aggregates)
        at = event.timestamp
        self.aggregates.count_transition(key, effect.counts, at if at < now.wall else now.wall)  # noqa: FURB136  no call
        task.heard = now.listened
        if effect.lands is not None:
            self.tasks.move(task, task.room.kind, effect.lands, at)
        elif surplus := self.tasks.finish(task, task.room.kind, effect.counts, at):
            self._evict(surplus, now)

    def _at_receipt(self, task: Task, event: Event) -> None:
        """Take from a receipt what was not known when the task was sent."""
        if not task.is_sent(event.retries or 0):
            self._place(task, event, self._only_queue(event.hostname))
            return
        key = task.key_of(event.retries)
        if event.name is not None and self.keys.shown(event.name) != key.task_name and self._is_shadow(event):
            self._compare_names(event.name, key)
        queue = self._only_queue(event.hostname) if key.queue_name == UNKNOWN else None
        if queue is not None and key.task_name != OTHER:
            self._assign(task, event, self.keys.admit(LabelSet(key.task_name, queue)))

    def _compare_names(self, name: str, key: LabelSet) -> None:
        """Learn which task a shadow name stands for: the one that was sent. No worker knows a shadow name."""
        if key.task_name in (OTHER, UNKNOWN):
            return
        if name not in self._registered_names and not name.startswith("celery."):
            self.keys.learn_shadow(name, key.task_name)

    def _step_of(self, story: TaskHistory, task: Task, event: Event, now: Timestamp) -> None:
        """Do the same where there is more to know of the task than where its newest attempt is."""
        effect = EFFECTS[event.type]
        open_ = task.room.state is not None
        if not open_:
            self.ends.note_finished(task, now.listened)
        delivery = effect.find(story, event)
        if event.type in self.repeated:
            self._note_end(event, delivery, effect.counts, now)
        attempt = event.retries if delivery is None else delivery.attempt
        kind_key = task.key_of(attempt)
        key = self._key_at(kind_key, event.hostname)
        is_successor = self._is_successor(story, task, event)
        newest = effect.measure(story, event, delivery, key, self.aggregates)
        self.aggregates.count_transition(key, effect.counts, min(event.timestamp, now.wall))
        lands = PENDING if event.requeue and effect.counts is REJECTED else effect.lands
        if newest and (open_ or is_successor or self._opens(task, event, now)):
            task.heard = now.listened
            landing = _landing(story, event, lands)
            kind = self.tasks.kind(kind_key) if story.generations else task.room.kind
            if landing is not None:
                self.tasks.move(task, kind, landing, event.timestamp)
            elif surplus := self.tasks.finish(task, kind, effect.counts, event.timestamp):
                self._evict(surplus, now)
            if landing is None and attempt is not None:
                self._go_on(story, task, attempt)
            return
        self.tasks.hear(task, now.listened)
        if open_ and lands is None and not story.is_succeeded(attempt or 0):
            story.ended_by = event.hostname  # over when those it was delivered to since are, too

    def _note_end(self, event: Event, delivery: Delivery | None, state: State, now: Timestamp) -> None:
        """Remember an end, which may be told once more."""
        uuid, started = event.uuid or "", delivery.started if delivery else None
        end = End(uuid, event.hostname, state, event.timestamp, now.listened, event.runtime, started)
        self.ends.note(end)

    def _go_on(self, story: TaskHistory, task: Task, attempt: int) -> None:
        """Let a task wait whose attempt is over, and whose id was sent for other work meanwhile."""
        successor = story.next_sent(attempt)
        if successor is not None and generation_of(successor) > generation_of(attempt):
            story.ended_by = ""
            self.tasks.move(task, self.tasks.kind(task.key_of(successor)), PENDING, story.sent[successor])

    def _place(self, task: Task, event: Event, queue: str | None) -> None:
        """Take name and queue of an attempt from the event that tells of it: it may have gone elsewhere.

        The task is where its newest attempt is; what is said of the others is still booked where they were.
        """
        key = task.room.kind.key
        if key.task_name == OTHER or event.name is None:
            return
        near = None if queue else self._key_before(task.tell(), key, event.retries or 0)
        true = self.keys.of_name(event.name, near) if near else self.keys.of_task(event.name, queue)
        self._assign(task, event, true)

    def _assign(self, task: Task, event: Event, true: LabelSet) -> None:
        """Give the attempt that the event tells of its true key."""
        room, attempt = task.room, event.retries or 0
        key, story = room.kind.key, task.tell()
        if true == key and story.keys is None:
            return
        others = story.attempts() - {attempt}
        if others:
            keys = story.keys or {}
            task.unfold().keys = {other: keys.get(other, key) for other in others} | {attempt: true}
        if attempt > max(others, default=-1) and not story.is_held_before(generation_of(attempt)):
            self.tasks.move(task, self.tasks.kind(true), room.place, task.since)

    def _key_before(self, story: TaskHistory, key: LabelSet, attempt: int) -> LabelSet | None:
        """Return the key of the attempt before one that nobody was heard to send: it is in the same queue.

        A successor does other work, so it may come from anywhere.
        """
        known = story.keys or dict.fromkeys(story.attempts(), key)
        generation = generation_of(attempt)
        nearest = max((each for each in known if generation_of(each) == generation), default=None)
        if nearest is not None:
            return known[nearest]
        if not generation:
            return key
        self.fallbacks["queue_name"] += self.keys.by_queue
        return None

    def _key_at(self, key: LabelSet, worker: str) -> LabelSet:
        """Return the key for what a worker did; one that there was no room for is `other`."""
        if not self.keys.by_worker:
            return key
        return self.keys.at_worker(key, worker if worker in self.workers else OTHER)

    def _opens(self, task: Task, event: Event, now: Timestamp) -> bool:
        """Tell whether a finished task was received anew, or an old event of it came late.

        Anew: later by the clock of the worker that ended it, or later than the reorder window by ours.
        """
        if task.room.place is None:  # it was taken out
            return event.type in {"task-received", "task-started"}
        if event.type != "task-received":
            return False
        later = task.tell().ended_by == event.hostname and event.timestamp > task.since
        return later or now.listened - task.heard > self.limits.reorder_window

    def _evict(self, tasks: Iterable[Task], now: Timestamp) -> None:
        for task in tasks:
            if task.uuid in self.tasks.deferred:  # by which others may be evicted, of the same ones
                self._release(task, now)
            if self.tasks.get(task.uuid) is not task:
                continue
            self.tasks.evicted += task.room.state is not None
            self.tasks.forget(task)

    def _give_up_idle(self, before: float) -> None:
        """Add up, as other, what was counted of tasks of which none is open and none was heard of since."""
        registered = {self.keys.shown(name) for name in self._registered()}
        stays = {OTHER, UNKNOWN, EXCLUDED.task_name, *registered}
        idle = {kind.key for kind in self.tasks.idle(before) if kind.key.task_name not in stays}
        if idle:
            self._give_up({key: rest(key) for key in self.keys.of_tasks(idle)})
            self.tasks.drop(idle)

    # -- which execution: see core/identity.py -------------------------------------------------------------

    def _has_predecessor(self, task: Task, sent: Event) -> bool:
        """Tell whether what waits longest for its `task-sent` is of other work under the id than this one."""
        receipts = (event for event in self.tasks.deferred[task.uuid] if event.type == "task-received")
        first = next(receipts, None)
        if first is None or is_alike(self._shown(first.name), self._shown(sent.name)):
            return False
        shadow = self._is_shadow(first)
        return shadow is False or (shadow is None and first.timestamp < sent.timestamp - SENT_DELAY)

    def _number_sent(self, task: Task, event: Event) -> None:
        """Number the attempt that was sent; one that was sent before begins a successor of the task."""
        retries, name = event.retries or 0, task.room.kind.key.task_name
        if task.story is None and event.name == name and (task.sent is None or retries > task.sent):
            return
        story = task.tell()
        known, shown = generations(story, name), self._shown(event.name)
        attempt = find_sent(known, story, shown, retries, event.timestamp)
        if attempt == known[-1].base > 0 and self._is_older(story, event) and not story.is_received(attempt):
            story.generations, attempt = known[:-1], None  # a receipt that waits was taken for a successor's
        event.retries = self._other_work(task, event) + retries if attempt is None else attempt

    def _is_early(self, task: Task, event: Event) -> bool:
        """Number the attempt that was received; tell whether a `task-sent` may still come that explains it.

        That is so if one of the task was seen, but not of this attempt, or if the attempt was received
        already: then it is delivered again, or its id was used for other work.
        """
        retries = event.retries or 0
        name = task.room.kind.key.task_name
        if task.story is None and event.name == name and (task.worker is None or retries > task.attempt):
            return task.sent is not None and retries != task.sent and retries >= task.attempt
        story, shown, shadow = task.tell(), self._shown(event.name), self._is_shadow(event)
        known = generations(story, name)
        attempts = find_received(known, story, shown, retries)
        unsure = len(attempts) > 1  # a receipt of the other one may be on its way
        attempt = next(iter(attempts), None)
        if attempt is None and shadow is not False:
            attempt = find_shadowed(known, story, retries)
            unsure = shadow is None and attempt is not None
        event.retries = self._other_work(task, event) + retries if attempt is None else attempt
        # One that was given back, or sent to several workers, is expected to be received again.
        is_expected = task.room.state is PENDING or story.copied
        is_again = task.tell().is_received(event.retries) and not is_expected
        return task.is_any_sent() and (unsure or is_again or not task.is_sent(event.retries))

    def _other_work(self, task: Task, event: Event) -> int:
        """Begin a generation of a task for other work under its id; return the base of its attempts."""
        story, shown = task.unfold(), self._shown(event.name)
        known = generations(story, task.room.kind.key.task_name)
        # A worker's clock may be off, so what it says is held against a client's only if there is no doubt.
        is_told = event.type == "task-sent" or task.room.state is PENDING
        is_older = (is_told and self._is_older(story, event)) or self._is_received_before(story, event)
        add = add_predecessor if is_older and len(known) == 1 else add_successor
        return add(story, known, shown)

    def _is_successor(self, story: TaskHistory, task: Task, event: Event) -> bool:
        """Tell whether a receipt is of other work than all before it, and later than the end of that."""
        if event.type != "task-received" or story.received is None:
            return False
        is_later = self._happened_at(event) > task.since - self._skew(story.ended_by)
        return is_later and generation_of(event.retries or 0) > generation_of(story.received)

    def _is_outdated(self, task: Task, event: Event) -> bool:
        """Tell whether what was received is an attempt before the newest one, or work before that."""
        return (event.retries or 0) < (task.tell().received or 0)

    def _is_older(self, story: TaskHistory, event: Event) -> bool:
        """Tell whether an event is older than all that is known of its task.

        The receipts, too: a task that replaces itself is sent by the host that received it, and the clock of
        the client that sent it may be ahead.
        """
        received = (each.received or each.started or 0.0 for each in story.deliveries)
        return event.timestamp < min((*story.sent.values(), *received), default=0.0)

    def _is_received_before(self, story: TaskHistory, event: Event) -> bool:
        """Tell whether a task was received before all else that workers received of it.

        Which of two workers is heard first is chance where they received it within some milliseconds.
        """
        if event.type != "task-received" or not story.deliveries:
            return False
        names = {event.hostname, *(each.worker for each in story.deliveries)}
        if any(name not in self.workers or self.workers[name].clock_skew is None for name in names):
            return False  # clocks may be off
        at = self._happened_at(event)
        return all(at < (each.received or 0.0) - self._skew(each.worker) for each in story.deliveries)

    def _is_of_open_delivery(self, task: Task, event: Event) -> bool:
        """Tell whether an event is of what a worker had before it received what waits for its `task-sent`."""
        held = task.held_in(event.hostname, event.pid)
        waiting = self.tasks.deferred[task.uuid]
        if any(each.type == "task-started" and each.hostname == event.hostname for each in waiting):
            return False  # it would overtake that one
        if event.type == "task-started":
            return any(each.started is None for each in held)
        return any(each.started is not None for each in held)

    def _shown(self, name: str | None) -> str:
        return self.keys.shown(name) if name else UNKNOWN

    def _is_shadow(self, event: Event) -> bool | None:
        """Tell whether a task was received under a name that its worker does not have; None: not known."""
        worker = self.workers.get(event.hostname)
        registered = worker.profile.registered if worker else None
        return None if registered is None else event.name not in registered

    # -- workers and queues ------------------------------------------------------------------------------

    def _worker_event(self, event: Event, now: Timestamp) -> None:
        if event.type == "worker-offline" and event.hostname in self.purged:
            return
        worker = self._worker(event.hostname, now)
        if worker is not None:
            # One that comes online has begun anew, whatever its pid is, or subscribed anew.
            is_online = event.type == "worker-online" and worker.is_profile_current
            if worker.beat(event, now) or is_online:
                self._restarted(worker, now)
            worker.update_liveness(now.listened, self.limits.worker_timeout)

    def _hear_worker(self, event: Event, now: Timestamp) -> None:
        worker = self.workers.get(event.hostname) or self._worker(event.hostname, now)
        if worker is not None:
            worker.heard = now.listened
            event.hostname = worker.name  # one object for all its tasks, where each would have its own
            if event.pid == worker.task_pid:
                event.pid = worker.task_pid
            else:
                if worker.task_pid is not None and not worker.has_process(event.pid):
                    self._restarted(worker, now)
                worker.task_pid = event.pid
            if not worker.events or event.type == "task-started":
                worker.task_event(event)
            worker.up = not worker.left
        elif self.keys.by_worker:
            self.fallbacks["worker"] += 1

    def _worker(self, name: str, now: Timestamp) -> Worker | None:
        worker = self.workers.get(name)
        if worker is None:
            if len(self.workers) >= MAX_WORKERS or clipped(name) != name:
                self.refused["worker"] += 1
                return None
            worker = self.workers[name] = Worker(name, now.listened)
            self.purged.pop(name, None)
            self.unasked[name] = now.listened
        worker.heard = now.listened
        return worker

    def restore_worker(self, worker: Worker, now: Timestamp) -> None:
        """Put back a worker that an earlier process knew. Whether it has restarted since is not known."""
        self.workers[worker.name] = worker
        self._restarted(worker, now)

    def _restarted(self, worker: Worker, now: Timestamp) -> None:
        """Note that another process answered what is known of a worker's queues."""
        if worker.shared:  # its processes are no restarts of one another
            return
        worker.starts += 1
        worker.is_profile_current = False
        self.unasked[worker.name] = now.listened
        if worker.profile.queues is not None:  # one that never answered may never do
            self._unanswered.setdefault(worker.name, now.listened)  # however often it restarts

    def _judge_workers(self, now: Timestamp) -> None:
        """Decide who is up, and forget who was down for so long that nobody waits for him."""
        purge = self.limits.worker_purge
        gone = set()
        for worker in self.workers.values():
            worker.update_liveness(now.listened, self.limits.worker_timeout)
            since = worker.down_since
            if purge is not None and since is not None and now.listened - since > purge:
                gone.add(worker.name)
        for name in gone:
            del self.workers[name]
            self.purged[name] = None
            self._unanswered.pop(name, None)
            self.unasked.pop(name, None)
        while len(self.purged) > MAX_WORKERS:
            del self.purged[next(iter(self.purged))]
        if gone:
            self._give_up(self._left_by(gone))
            self.aggregates.forget_clients({*map(host, gone)} - {*map(host, self.workers)})

    def _give_up(self, moves: Mapping[LabelSet, LabelSet]) -> None:
        for key, into in self.keys.give_up(moves):
            self.aggregates.fold(key, into)

    def _left_by(self, gone: set[str]) -> dict[LabelSet, LabelSet]:
        """Return the keys of what these workers did, and where it is added up from now on.

        Where hosts are shown it stays with the host (as "@host") until its last worker is gone: a sum over
        the workers of a host must not fall.
        """
        hosts = {host(name) for name in self.workers} if self._hosts else set()
        former = {f"@{host(name)}" for name in gone if host(name) not in hosts}
        return {
            key: LabelSet(
                key.task_name, key.queue_name, f"@{at}" if (at := host(key.worker)) in hosts else ""
            )
            for key in self.keys.of_workers(gone | former)
        }

    def _use_queue(self, name: str, now: Timestamp) -> None:
        if self.keys.show_queue(name):  # an excluded one is not measured
            self.refused["queue"] += self.queues.use(name, now.listened)

    def _take_consumed(self, now: Timestamp) -> None:
        consumed = {
            name: name in worker.profile.auto_delete
            for worker in self.workers.values()
            if worker.up
            for name in worker.profile.queues or ()
            if self.keys.show_queue(name)
        }
        self.refused["queue"] += self.queues.consume(consumed, now.listened)

    def _registered(self) -> dict[str, set[str]]:
        """Return the tasks that workers know, and the queues they may come from."""
        queues: dict[str, set[str]] = {}
        for worker in self.workers.values():
            for name in worker.profile.registered or ():
                queues.setdefault(name, set()).update(worker.profile.queues or (UNKNOWN, OTHER))
        return queues

    def _bindings(self) -> Iterator[Binding]:
        """Yield what workers reported; those that consume the same queues share one object for it."""
        reported = {id(worker.profile.bindings): worker.profile.bindings for worker in self.workers.values()}
        for bindings in reported.values():
            yield from bindings

    def _foreseen_keys(self, registered: Mapping[str, set[str]]) -> set[LabelSet]:
        """Return the keys of registered tasks, where a task's workers all consume one and the same queue.

        Otherwise which queue it will come from is not known, and is not made up.
        """
        return {
            self.keys.key(name, next(iter(queues)))
            for name, queues in registered.items()
            if len(queues) == 1 or not self.keys.by_queue
        }


def host(node: str) -> str:
    """Return the host's part of a node name."""
    return node.partition("@")[2] or node


def _is_told(task: Task, event: Event) -> bool:
    """Tell whether a receipt is the first of an attempt whose `task-sent` told all, as nearly all are."""
    key = task.room.kind.key
    is_next = task.worker is None and task.story is None and task.sent == (event.retries or 0)
    return is_next and event.name == key.task_name and key.queue_name != UNKNOWN


def _landing(story: TaskHistory, event: Event, state: State | None) -> State | None:
    """Return where an event of the newest delivery puts a task, one of whose deliveries may be over."""
    if state is RECEIVED:
        story.ended_by = ""
    if state is None or (story.ended_by and state is not STARTED):
        story.ended_by = event.hostname
        return None
    return state
