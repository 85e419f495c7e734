"""The table of tasks: who is in which state, since when, and under which key.

Law: every task is in exactly one room at a time, and what the gauges show is the length of rooms; so
they cannot drift. A room is an insertion-ordered dict, so its first entry is its oldest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from msgspec import Struct

from celery_exporter.core.events import Event
from celery_exporter.core.facts import Key, State

#: The states of a task that is not finished, in which a gauge counts it.
OPEN_STATES = (State.PENDING, State.RECEIVED, State.STARTED, State.RETRY)


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
    ended: bool = False  # kept after its end only while its task-sent, and so its wait, is outstanding


class Task(Struct, gc=False):
    """What is remembered of one task. Times are epoch seconds of the sender's clock.

    No args, result or traceback; strings are shared. It is all that in-flight tasks cost.
    """

    uuid: str
    heard: float  # listening time of the newest event, for expiry
    room: dict[str, Task]
    kind: Kind | None = None  # None: not introduced yet
    state: State | None = None  # None: not introduced yet, or finished
    since: float = 0.0
    ready: float | None = None  # since when the first attempt waits: max(sent, eta)
    resent: dict[int, float] | None = None  # … and further ones, by attempt
    keys: dict[int, Key] | None = (
        None  # of its attempts, once one was sent to another queue than those before
    )
    received: int | None = None  # the newest attempt that was received
    skipped: set[int] | None = None  # attempts before it of which that was not said, or not yet
    deliveries: list[Delivery] | None = None  # the newest attempt's last
    ended_by: str = ""
    parked: list[Event] | None = None  # events that came before the introduction, of the task or a retry

    @property
    def waiting_since(self) -> float | None:
        """Return since when the newest attempt that was sent waits."""
        return max((self.resent or {}).values(), default=self.ready)

    def ready_at(self, attempt: int) -> float | None:
        """Return since when an attempt waits to be started, if its task-sent was seen."""
        return (self.resent or {}).get(attempt) if attempt else self.ready

    def sent_attempts(self) -> list[int]:
        """Return the attempts whose `task-sent` was seen."""
        return [*([] if self.ready is None else [0]), *(self.resent or ())]

    def key_of(self, attempt: int | None) -> Key:
        """Return the key of an attempt; of one that nobody sent, that of the task."""
        assert self.kind is not None  # noqa: S101  nobody asks for that of a task that was not introduced
        return (
            self.kind.key if self.keys is None or attempt is None else self.keys.get(attempt, self.kind.key)
        )


class Kind(Struct, gc=False):
    """Tasks of one name and queue: their key and, by state, the rooms they are in."""

    key: Key
    rooms: dict[State, dict[str, Task]]
    heard: float = 0.0  # listening time of the newest event of any of them


class InState(Struct, frozen=True, gc=False):
    """How many tasks of one key are in a state now, and since when (epoch seconds) the oldest is."""

    key: Key
    state: State
    count: int
    since: float | None


class TaskTable:
    """Tasks by uuid, bounded by count (`limit` unfinished ones) and by age."""

    def __init__(self, limit: int, tombstone_limit: int) -> None:
        self.limit = limit
        self.evicted = 0
        self.limbo: dict[str, Task] = {}  # waiting to be introduced, in the order they were first heard of
        self.held: dict[str, Task] = {}  # whose next attempt waits to be introduced; they are in a room, too
        self.finished: dict[str, Task] = {}  # tombstones, in the order they finished
        self._tombstone_limit = tombstone_limit
        self._tasks: dict[str, Task] = {}
        #: Returns the task with a uuid, or None when it is unheard of or forgotten.
        self.get = self._tasks.get
        self._kinds: dict[Key, Kind] = {}

    def __len__(self) -> int:
        """Return how many unfinished tasks are remembered."""
        return len(self._tasks) - len(self.finished)

    def uuids(self) -> list[str]:
        """Return the ids of all tasks, tombstones too."""
        return list(self._tasks)

    def new(self, uuid: str, heard: float) -> Task:
        """Remember a new task, waiting in limbo."""
        task = self._tasks[uuid] = self.limbo[uuid] = Task(uuid, heard, self.limbo)
        return task

    def kind(self, key: Key) -> Kind:
        """Return the one `Kind` of this key."""
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind(key, {state: {} for state in OPEN_STATES})
        return kind

    def move(self, task: Task, kind: Kind, state: State, since: float) -> None:
        """Put the task last in the room of its new state."""
        del task.room[task.uuid]
        task.kind, task.state, task.since, task.room = kind, state, since, kind.rooms[state]
        task.room[task.uuid] = task

    def rename(self, task: Task, kind: Kind) -> None:
        """Give the task another key; it stays in its state."""
        if task.state is None:
            task.kind = kind
        else:
            self.move(task, kind, task.state, task.since)

    def finish(self, task: Task) -> list[Task]:
        """Turn the task into a tombstone: its late events find it, no gauge counts it.

        Return the oldest tombstones when there are too many.
        """
        del task.room[task.uuid]
        task.state, task.room, task.deliveries = None, self.finished, task.deliveries or None
        self.finished[task.uuid] = task
        if len(self.finished) <= self._tombstone_limit:
            return []
        # A hundredth at once: each look passes deleted ones.
        return list(islice(self.finished.values(), 1 + self._tombstone_limit // 100))

    def hear(self, task: Task, heard: float) -> None:
        """Note that it was heard of. A room is in the order in which its tasks were: expiry relies on it."""
        task.heard = heard
        task.room[task.uuid] = task.room.pop(task.uuid)

    def hold(self, task: Task, heard: float) -> None:
        """Let the task's events wait from now on."""
        self.hear(task, heard)
        self.held[task.uuid] = task

    def release(self, task: Task) -> list[Event]:
        """Return the events that waited."""
        self.held.pop(task.uuid, None)
        events, task.parked = task.parked, None
        return events or []

    def forget(self, task: Task) -> None:
        """Remove the task, of which nothing waits any more, from its room and from the table."""
        del task.room[task.uuid]
        del self._tasks[task.uuid]

    def overdue(self, room: dict[str, Task], before: float) -> list[Task]:
        """Return the tasks at the head of a room that were last heard of before a listening time."""
        found = []
        for task in room.values():
            if task.heard >= before:
                break
            found.append(task)
        return found

    def is_full(self) -> bool:
        """Tell whether there are more unfinished tasks than there may be."""
        return len(self._tasks) - len(self.finished) > self.limit

    def surplus(self) -> list[Task]:
        """Return the oldest unfinished tasks beyond the limit, and a hundredth more, or a hundred.

        Each look passes the tombstones among them.
        """
        more = max(self.limit // 100, min(self.limit // 10, 100))
        unfinished = (task for task in self._tasks.values() if task.room is not self.finished)
        return list(islice(unfinished, len(self) - self.limit + more))

    def rooms(self) -> Iterator[dict[str, Task]]:
        """Yield each room of unfinished, introduced tasks."""
        for kind in self._kinds.values():
            yield from kind.rooms.values()

    def idle(self, before: float) -> list[Kind]:
        """Return the kinds that were last heard of before a listening time and have no unfinished task."""
        return [kind for kind in self._kinds.values() if kind.heard < before and not any(kind.rooms.values())]

    def drop(self, keys: Iterable[Key]) -> None:
        """Forget kinds that have no task any more, no tombstone either."""
        for key in keys:
            del self._kinds[key]

    def in_states(self) -> list[InState]:
        """Return the gauges: one for each key and open state."""
        return [
            InState(kind.key, state, len(room), _oldest(room) if room else None)
            for kind in self._kinds.values()
            for state, room in kind.rooms.items()
        ]


def _oldest(room: dict[str, Task]) -> float:
    """Return since when the oldest is there. That is the first, unless one was told of late.

    So the first ones are looked through, as many as take no time.
    """
    return min(task.since for task in islice(room.values(), SMALL_ROOM))
