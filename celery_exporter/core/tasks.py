"""The table of tasks: who is in which state, since when, and under which key.

Invariant: every task is in exactly one room at a time, which says what its name, queue and state are, and
what the gauges show is how many are in a room; so they cannot drift. A room's tasks are an insertion-ordered
dict, so its first entry is its oldest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile

from msgspec import Struct

from celery_exporter.core.events import Event
from celery_exporter.core.types import EXCLUDED, LabelSet, State

#: The states of a task that is not finished, in which a gauge counts it.
OPEN_STATES = (State.PENDING, State.RECEIVED, State.STARTED, State.RETRY)
#: How a task may finish; None where it was taken out without an event.
FINAL_STATES = (State.SUCCESS, State.FAILURE, State.REVOKED, State.REJECTED, None)


#: Attempts of one generation: `retries` is less, which the event schema enforces.
MAX_ATTEMPTS = 2**31
#: Tasks of which something changed that are remembered; that is 60 MB.
MOST_CHANGED = 500_000
#: Tasks that are looked through for the oldest one.
SMALL_ROOM = 500


class Delivery(Struct, gc=False):
    """One handing over of a task to a worker process, from received to ended.

    Events after `task-received` do not say which attempt they belong to, and the next attempt may be
    received, by the same worker even, before the last one's end is told. So they are matched by worker
    process, the oldest delivery first, which is how a worker executes them.
    """

    worker: str
    pid: int | None
    attempt: int
    ready: float | None  # since when it waits to be started: max(sent, eta)
    received: float | None  # max(received, eta)
    started: float | None = None
    # Kept after its end only while its task-sent, and so its wait, is outstanding; and if it was given back.
    ended: bool = False

    def is_given_back(self) -> bool:
        """Tell whether it was taken from its worker before it was started."""
        return self.ended and self.started is None


class Generation(Struct, frozen=True, gc=False):
    """The attempts of one sending of a task's id: they are numbered from `base`. See core/identity.py."""

    base: int
    name: str  # what the task is shown as


class TaskHistory(Struct, gc=False):
    """What a task went through, whatever that is: sent often, delivered twice at a time, told in part."""

    sent: dict[int, float]  # since when each attempt waits whose task-sent was seen: max(sent, eta)
    received: int | None  # the newest attempt that was received
    deliveries: list[Delivery]  # the newest attempt's last
    ended_by: str = ""  # the worker that ended it, or one of its deliveries while others go on
    skipped: set[int] | None = None  # attempts before `received` of which that was not said, or not yet
    keys: dict[int, LabelSet] | None = (
        None  # of its attempts, once one was sent to another queue than the others
    )
    generations: list[Generation] | None = None  # oldest first, once its id was sent for other work; else one
    copied: bool = False  # sent to several queues: each worker that receives it received a copy of its own

    def is_received(self, attempt: int) -> bool:
        """Tell whether an attempt was received, or is over without that."""
        return self.received is not None and attempt <= self.received and attempt not in (self.skipped or ())

    def is_succeeded(self, attempt: int) -> bool:
        """Tell whether the newest delivery is of other work than this attempt was."""
        newest = self.deliveries[-1].attempt if self.deliveries else attempt
        return newest // MAX_ATTEMPTS > attempt // MAX_ATTEMPTS

    def is_held_before(self, generation: int) -> bool:
        """Tell whether a worker has an attempt of an earlier generation."""
        return any(not each.ended and each.attempt // MAX_ATTEMPTS < generation for each in self.deliveries)

    def give_back(self, worker: str) -> None:
        """Take from a worker what it was delivered; remember that the newest delivery was not started."""
        newest = self.deliveries[-1]
        self.deliveries = [each for each in self.deliveries if each.worker != worker]
        if newest.started is None and all(each.ended for each in self.deliveries):
            back = Delivery("", None, newest.attempt, newest.ready, newest.received, ended=True)
            self.deliveries.append(back)

    def attempts(self) -> set[int]:
        """Return the attempts that were sent, or delivered, as far as that is remembered."""
        return {*self.sent, *(each.attempt for each in self.deliveries)}

    def next_sent(self, attempt: int) -> int | None:
        """Return the oldest later attempt that was sent and not received yet."""
        waiting = (each for each in self.sent if each > attempt and not self.is_received(each))
        return min(waiting, default=None)


class Task(Struct, gc=False):
    """What is remembered of one task. Times are epoch seconds of the sender's clock.

    Usually all that is open of a task is that its newest attempt waits, or that a worker has it. The task's
    own fields hold that; while there is more to know, its `story` does. No args, result or traceback;
    strings are shared. It is all that a task in flight costs, and there may be a million of them.
    """

    uuid: str
    heard: float  # listening time of the newest event, for expiry
    room: StateBucket
    since: float = 0.0  # when it came into its room
    story: TaskHistory | None = None  # if there is one, nobody looks at what follows
    attempt: int = 0  # those before it are over
    sent: int | None = None  # the newest attempt whose task-sent was seen, as was that of attempt 0
    ready: float | None = None  # since when it waits: max(sent, eta), of those that are known
    worker: str | None = None  # that received the attempt, and ended it if the task is finished
    pid: int | None = None
    # When it was received (not before its eta), and then when it was started. Without a worker: of the
    # attempt before, which was given back before it was started.
    at: float | None = None

    def tell(self) -> TaskHistory:
        """Return its story; without one, what that would be."""
        if self.story is not None:
            return self.story
        attempt = self.attempt
        # Since when attempts waited that are over is of no use to anybody; that the first one was sent is.
        sent = {} if self.sent is None else dict.fromkeys((0, self.sent), self.ready or 0.0)
        if self.worker is None:
            back = (
                [] if self.at is None else [Delivery("", None, attempt - 1, self.ready, self.at, ended=True)]
            )
            return TaskHistory(sent, attempt - 1 if attempt else None, back)
        ended, deliveries = self.room.state is None, []
        if self.at is not None:
            # When one was received that was started is only known not to be unknown.
            started = None if self.room.state is State.RECEIVED else self.at
            deliveries = [Delivery(self.worker, self.pid, attempt, self.ready, self.at, started, ended)]
        return TaskHistory(sent, attempt, deliveries, self.worker if ended else "")

    def unfold(self) -> TaskHistory:
        """Return its story, which is what counts from now on."""
        self.story = self.tell()
        return self.story

    def fold(self) -> None:
        """Do without the story, if it is over but for what the task's own fields hold."""
        story = self.story
        if story is None or self.room.state is None or story.skipped or story.ended_by:
            return
        if story.generations or story.copied:
            return
        received = -1 if story.received is None else story.received
        sent = max(story.sent, default=None)
        if not story.deliveries or self._is_given_back(story):
            attempt = received + 1
        elif len(story.deliveries) == 1 and self._is_usual(story, story.deliveries[0]):
            attempt = received
        else:
            return
        elsewhere = story.keys is not None and story.keys.get(attempt) != self.room.kind.key
        # While the sending of the first attempt was not seen, it is not taken for that of other work.
        if elsewhere or (sent is not None and (sent > attempt or 0 not in story.sent)):
            return
        self.story, self.attempt, self.sent = None, attempt, sent
        self.ready = None if sent is None else story.sent[sent]
        self.worker = self.pid = self.at = None
        for one in story.deliveries:
            self.ready, self.worker, self.pid = one.ready, one.worker or None, one.pid
            at = one.received if one.started is None else one.started
            # A restart made two objects of one float.
            self.at = next((each for each in (self.since, self.ready) if each == at), at)

    def _is_given_back(self, story: TaskHistory) -> bool:
        """Tell whether all that is known is that the newest attempt was received and nobody started it."""
        one = story.deliveries[-1]
        is_newest = len(story.deliveries) == 1 and one.attempt == story.received and one.received is not None
        return is_newest and one.is_given_back() and self.room.state is State.PENDING

    def _is_usual(self, story: TaskHistory, one: Delivery) -> bool:
        newest = one.attempt == story.received and not one.ended
        known = one.received is not None and (one.ready is not None or one.attempt not in story.sent)
        return newest and known and self.room.state is (State.STARTED if one.started else State.RECEIVED)

    @property
    def waiting_since(self) -> float | None:
        """Return since when the newest attempt that was sent waits."""
        return max(self.tell().sent.values(), default=None)

    def is_next_sent(self) -> bool:
        """Tell whether the sending is known of the attempt that comes after those that were received."""
        story = self.tell()
        return any(story.received is None or attempt > story.received for attempt in story.sent)

    def is_due_after(self, at: float) -> bool:
        """Tell whether it is known not to be due before this epoch second."""
        story = self.tell()
        ready = (each.ready or each.received or 0.0 for each in story.deliveries if not each.ended)
        return max((*story.sent.values(), *ready), default=0.0) > at

    def is_sent(self, attempt: int) -> bool:
        """Tell whether the `task-sent` of this attempt was seen, or is of no use any more."""
        if self.story is None:
            return attempt == self.sent or attempt < self.attempt
        return attempt in self.story.sent

    def is_any_sent(self) -> bool:
        """Tell whether a `task-sent` was seen of it."""
        return self.sent is not None if self.story is None else bool(self.story.sent)

    def ended_by(self) -> str:
        """Return the worker that ended it, or one of its deliveries; empty if none has."""
        return self.tell().ended_by

    def held_in(self, worker: str, pid: int | None) -> list[Delivery]:
        """Return the deliveries to this worker process that are not over."""
        held = (each for each in self.tell().deliveries if each.worker == worker and each.pid == pid)
        return [each for each in held if not each.ended]

    def held_by(self) -> str:
        """Return the worker that has its newest delivery, empty if none has."""
        if self.story is None:
            return self.worker or ""
        return self.story.deliveries[-1].worker if self.story.deliveries else ""

    def key_of(self, attempt: int | None) -> LabelSet:
        """Return the key of an attempt; of one that nobody sent, that of the task."""
        key, keys = self.room.kind.key, self.story.keys if self.story else None
        return key if keys is None or attempt is None else keys.get(attempt, key)


class StateBucket(Struct, gc=False):
    """Tasks of one kind and state, in the order in which they were last heard of: expiry relies on it."""

    kind: TaskGroup
    state: State | None  # None: in limbo, or finished
    tasks: dict[str, Task]
    final: State | None = None  # of finished ones: by which event, if by any

    @property
    def place(self) -> State | None:
        """Return where it stands among the rooms of its kind."""
        return self.final if self.state is None else self.state


class TaskGroup(Struct, gc=False):
    """Tasks of one name and queue: their key, and the rooms they are in."""

    key: LabelSet
    rooms: dict[State | None, StateBucket]  # by OPEN_STATES and FINAL_STATES
    heard: float = 0.0  # listening time of the newest event of any of them


class Hold(Struct, frozen=True, gc=False):
    """A delivery that waits for its `task-sent`, while its task stays in its room."""

    since: float  # listening time
    was_open: bool  # when it came


class InState(Struct, frozen=True, gc=False):
    """How many tasks of one key are in a state now, and since when (epoch seconds) the oldest is."""

    key: LabelSet
    state: State
    count: int
    since: float | None


class TaskTable:
    """Tasks by uuid, bounded by count (`limit` unfinished ones) and by age."""

    def __init__(self, limit: int, tombstone_limit: int) -> None:
        self.limit = limit
        self.evicted = 0
        #: Waiting to be introduced: of no kind yet.
        self.unidentified = StateBucket(TaskGroup(EXCLUDED, {}), None, {})
        self.held: dict[str, Hold] = {}  # of tasks in a room whose next delivery waits to be introduced
        self.deferred: dict[str, list[Event]] = {}  # what those in limbo, and those held, wait with
        self.expires: dict[str, float] = {}  # epoch seconds, of those open tasks that have such a time
        self.finished: dict[str, Task] = {}  # tombstones of every kind, in the order they finished
        #: … of those that were taken out without an event, which may be delivered again much later.
        self.taken_out: dict[str, Task] = {}
        #: The ids of tasks of which something changed since somebody emptied it; None: nobody wants to know.
        self.changed: set[str] | None = None
        self._tombstone_limit = tombstone_limit
        self._tasks: dict[str, Task] = {}
        #: Returns the task with a uuid, or None when it is unheard of or forgotten.
        self.get = self._tasks.get
        self._kinds: dict[LabelSet, TaskGroup] = {}

    def bound_changes(self) -> None:
        """Note no more changes when they are too many: whoever wants to know has not asked for long."""
        if self.changed is not None and len(self.changed) > MOST_CHANGED:
            self.changed = None

    def __len__(self) -> int:
        """Return how many unfinished tasks are remembered."""
        return len(self._tasks) - len(self.finished) - len(self.taken_out)

    def uuids(self) -> list[str]:
        """Return the ids of all tasks, tombstones too."""
        return list(self._tasks)

    def new(self, uuid: str, heard: float, room: StateBucket, since: float = 0.0) -> Task:
        """Remember a new task."""
        task = self._tasks[uuid] = room.tasks[uuid] = Task(uuid, heard, room, since)
        if self.changed is not None:
            self.changed.add(uuid)
        return task

    def kind(self, key: LabelSet) -> TaskGroup:
        """Return the one `TaskGroup` of this key."""
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = TaskGroup(key, {})
            kind.rooms = {state: StateBucket(kind, state, {}) for state in OPEN_STATES}
            kind.rooms |= {state: StateBucket(kind, None, self.finished, state) for state in FINAL_STATES}
            kind.rooms[None] = StateBucket(kind, None, self.taken_out)
        return kind

    def move(self, task: Task, kind: TaskGroup, state: State | None, since: float) -> None:
        """Put the task last in another room."""
        uuid = task.uuid
        del task.room.tasks[uuid]
        room = task.room = kind.rooms[state]
        room.tasks[uuid] = task
        task.since = since
        if self.changed is not None:
            self.changed.add(uuid)

    def finish(self, task: Task, kind: TaskGroup, final: State | None, since: float) -> list[Task]:
        """Turn the task into a tombstone: its late events find it, no gauge counts it.

        Return the oldest tombstones when there are too many.
        """
        self.move(task, kind, final if final in FINAL_STATES else None, since)
        if self.expires:
            self.expires.pop(task.uuid, None)
        tombstones = task.room.tasks
        if len(tombstones) <= self._tombstone_limit:
            return []
        # A hundredth at once: each look passes deleted ones.
        return list(islice(tombstones.values(), 1 + self._tombstone_limit // 100))

    def hear(self, task: Task, heard: float) -> None:
        """Note that it was heard of."""
        if task.heard != heard:
            task.heard = task.room.kind.heard = heard
            task.room.tasks[task.uuid] = task.room.tasks.pop(task.uuid)
        if self.changed is not None:
            self.changed.add(task.uuid)

    def park(self, task: Task, events: list[Event], heard: float, hold: Hold | None = None) -> None:
        """Let events wait, behind those of the task that do already; `hold` if they did before."""
        waiting = self.deferred.setdefault(task.uuid, [])
        if not waiting and task.room is not self.unidentified:
            self.held[task.uuid] = hold or Hold(heard, task.room.state is not None)
        first = events[0]
        if first.retries:  # as its sender said it: which generation it is of is seen when it is applied
            first.retries %= MAX_ATTEMPTS
        waiting += events
        if self.changed is not None:
            self.changed.add(task.uuid)

    def wait_longer(self, task: Task, heard: float) -> None:
        """Let a task that is in limbo, or held, wait as if its events had come only now."""
        hold = self.held.pop(task.uuid, None)
        if hold is None:
            self.hear(task, heard)
        else:
            self.held[task.uuid] = Hold(heard, hold.was_open)
            if self.changed is not None:
                self.changed.add(task.uuid)

    def release(self, task: Task) -> tuple[Hold | None, list[Event]]:
        """Return the events that waited, and what is known of that if they waited for another delivery."""
        if self.changed is not None:
            self.changed.add(task.uuid)
        return self.held.pop(task.uuid, None), self.deferred.pop(task.uuid, [])

    def forget(self, task: Task) -> None:
        """Remove the task, of which nothing waits any more, from its room and from the table."""
        del task.room.tasks[task.uuid]
        del self._tasks[task.uuid]
        if self.changed is not None:
            self.changed.add(task.uuid)
        if self.expires:
            self.expires.pop(task.uuid, None)

    def overdue(self, tasks: dict[str, Task], before: float) -> list[Task]:
        """Return those at the head of a room's tasks that were last heard of before a listening time."""
        found = []
        for task in tasks.values():
            if task.heard >= before:
                break
            found.append(task)
        return found

    def held_before(self, before: float) -> list[Task]:
        """Return the tasks whose next attempt waits since before a listening time."""
        if not self.held:  # usually
            return []
        early = takewhile(lambda each: each[1].since < before, self.held.items())
        return [self._tasks[uuid] for uuid, _ in early]

    def is_full(self) -> bool:
        """Tell whether there are more unfinished tasks than there may be."""
        return len(self._tasks) > self.limit and len(self) > self.limit

    def surplus(self) -> list[Task]:
        """Return the oldest unfinished tasks beyond the limit, and a hundredth more, or a hundred.

        Each look passes the tombstones among them.
        """
        more = max(self.limit // 100, min(self.limit // 10, 100))
        closed = (self.finished, self.taken_out)
        unfinished = (
            task for task in self._tasks.values() if all(task.room.tasks is not each for each in closed)
        )
        return list(islice(unfinished, len(self) - self.limit + more))

    def rooms(self) -> Iterator[StateBucket]:
        """Yield each room of unfinished, introduced tasks."""
        for kind in self._kinds.values():
            for state in OPEN_STATES:
                yield kind.rooms[state]

    def occupied(self, *states: State) -> list[StateBucket]:
        """Return the rooms of unfinished, introduced tasks in these states that have any."""
        kinds = self._kinds.values()
        return [room for kind in kinds for state in states if (room := kind.rooms[state]).tasks]

    def idle(self, before: float) -> list[TaskGroup]:
        """Return the kinds that were last heard of before a listening time and have no unfinished task."""
        idle = (kind for kind in self._kinds.values() if kind.heard < before)
        return [kind for kind in idle if not any(kind.rooms[state].tasks for state in OPEN_STATES)]

    def drop(self, keys: Iterable[LabelSet]) -> None:
        """Forget kinds that have no task any more, no tombstone either."""
        for key in keys:
            self._kinds.pop(key).rooms.clear()  # they know of each other, and nobody collects such circles

    def in_states(self) -> list[InState]:
        """Return the gauges: one for each key and open state."""
        return [
            InState(kind.key, state, len(tasks), _oldest(tasks) if tasks else None)
            for kind in self._kinds.values()
            for state in OPEN_STATES
            for tasks in [kind.rooms[state].tasks]
        ]

    def started(self) -> Counter[str]:
        """Return how many tasks each worker has started and not ended."""
        rooms = self.occupied(State.STARTED)
        return Counter(task.held_by() for room in rooms for task in room.tasks.values())

    def prefetched(self, most: int) -> dict[tuple[LabelSet, str], int] | None:
        """Return how many tasks each worker has received and not started, by key; None if they are more."""
        rooms = [kind.rooms[State.RECEIVED] for kind in self._kinds.values() if kind.key != EXCLUDED]
        if sum(len(room.tasks) for room in rooms) > most:
            return None
        found: Counter[tuple[LabelSet, str]] = Counter()
        for room in rooms:
            found.update((room.kind.key, task.held_by()) for task in room.tasks.values())
        return found


def _oldest(tasks: dict[str, Task]) -> float:
    """Return since when the oldest is there. That is the first, unless one was told of late.

    So the first ones are looked through, as many as take no time.
    """
    return min(task.since for task in islice(tasks.values(), SMALL_ROOM))
