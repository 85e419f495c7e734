"""Takes tasks out of the table that no event will: their message is gone, or no worker runs them.

A purged queue, a task that expires in RabbitMQ or has `send_events = False`, `task.Ignore`, a lost event:
nobody reports any of these. Queue lengths, heartbeats and the answers of workers show them.

Invariant: a task is only taken out on an observation that is younger than its newest event by more than an
event needs to arrive. It leaves a tombstone, and a receipt or a start reopens it; no sum changes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import IntEnum
from itertools import islice
from math import inf

from msgspec import Struct

from celery_exporter.core.cluster import Cluster
from celery_exporter.core.tasks import OPEN_STATES, StateBucket, Task
from celery_exporter.core.types import OTHER, UNKNOWN, State, Timestamp
from celery_exporter.core.workers import Worker

#: Why a task was taken out, or put back; the label values of celery_exporter_tasks_reconciled_total.
MESSAGE_GONE, EXPIRED, NOT_RUNNING, RETURNED = "message_gone", "expired", "not_running", "returned"
REASONS = (MESSAGE_GONE, EXPIRED, NOT_RUNNING, RETURNED)

#: Seconds that an event may need to arrive: a worker sends them once in each turn of its loop.
ARRIVAL_SECONDS = 0.5
#: Seconds between an observation and what follows from it, for events that were on their way.
GRACE_SECONDS = 1.0
#: Seconds for which the last events of tasks may follow their worker's goodbye: those wait in a buffer.
GOODBYE_SECONDS = 5.0
#: Seconds without an event of a task before its worker is asked whether it has it, if its heartbeats say that
#: it cannot have all its tasks; and between two questions to one worker.
SUSPICIOUS_SECONDS = 30.0
#: … and if its heartbeats do not tell. A task that it had then is asked about again when it is twice as old,
#: at most after the second number, and after this share of --task-ttl.
LONG_SECONDS, LONGEST_SECONDS, TTL_SHARE = 300.0, 3_600.0, 0.25
#: Seconds beyond its time after which a message counts as expired: its sender's clock may be ahead of ours.
EXPIRY_GRACE_SECONDS = 5.0
#: Heartbeats without an active task after which a worker runs none; one of them may have been overtaken.
IDLE_HEARTBEATS = 3
#: Measurements that are kept: they come every half second at most.
MAX_MEASUREMENTS = 8
#: The usual interval of heartbeats in seconds, of a worker that does not tell its own.
HEARTBEAT_SECONDS = 2.0
#: Workers that are asked at a time; the others have their turn in later rounds.
MAX_ASKED = 10
#: Tasks that are looked at between two chances for others to take the lock: half a millisecond.
CHUNK = 1_000
#: Tasks that are looked at in a round; the others have their turn in later rounds.
MAX_LOOKED_AT = 5 * CHUNK

#: The states of a task that a worker has.
_WITH_WORKER = (State.STARTED, State.RECEIVED)
#: Queue labels that stand for any queue.
_ANY_QUEUE = frozenset({"", UNKNOWN, OTHER})


class Measurement(Struct, frozen=True):
    """Queue lengths at a listening time, and how many messages workers hold in all (None: unknown).

    `lengths` are those that were read, by the label that task metrics have for the queue; `known` are all
    labels there are.
    """

    at: float
    lengths: Mapping[str, int]
    known: Collection[str]
    unacked: int | None


class Unacked(IntEnum):
    """Which messages workers held, by the broker's count: the higher, the less an empty queue proves."""

    NONE = 0
    UNCOUNTED = 1  # the broker does not count them, but gives back at once what a dead worker held
    KNOWN = 2  # no more than there are tasks that workers have by their events
    OTHERS = 3  # more than those


class Empty(Struct, frozen=True):
    """A measurement that found a queue empty."""

    at: float
    unacked: Unacked


class Asked(Struct, frozen=True):
    """When a worker was asked (listening time), and for how many seconds it is not asked again."""

    at: float
    wait: float = SUSPICIOUS_SECONDS


class _RoundRobin:
    """Takes tasks in turn: each time those that come after the ones of the time before.

    By how many there are before them, for there is no other way into the middle of a dict that changes. Of
    those that come and go meanwhile some have their turn only when it has gone round.
    """

    def __init__(self) -> None:
        self.start = 0

    def take(self, buckets: Iterable[StateBucket], count: int) -> list[Task]:
        """Return so many tasks, or fewer if the last one is among them; then it begins anew."""
        found: list[Task] = []
        start = self.start
        for bucket in buckets:
            found += islice(bucket.tasks.values(), start, start + count - len(found))
            start = max(0, start - len(bucket.tasks))
            if len(found) == count:
                break
        self.start = self.start + count if len(found) == count else 0
        return found

    def step_back(self, count: int) -> None:
        """Take into account that so many of those that had their turn are not there any more."""
        self.start = max(0, self.start - count)


class Reconciler:
    """Compares the tasks of a cluster with what the broker and the workers report.

    `drops_expired`: the broker deletes messages whose time has passed (RabbitMQ does, Redis does not).
    """

    def __init__(self, cluster: Cluster, *, drops_expired: bool) -> None:
        self._cluster = cluster
        self._drops_expired = drops_expired
        #: By queue, the measurements in a row that found it empty, the newest last.
        self._empty: dict[str, deque[Empty]] = {}
        self._turns, self._turns_of_started, self._turns_of_received = (
            _RoundRobin(),
            _RoundRobin(),
            _RoundRobin(),
        )
        #: By worker, when it was asked for its tasks, and how long it is not asked again.
        self._asked: dict[str, Asked] = {}

    def add_measurement(self, measurement: Measurement) -> None:
        """Take in what the queues hold."""
        seen = Empty(measurement.at, self._which_held(measurement.unacked))
        before, self._empty = self._empty, {}
        for queue in measurement.known:
            length = measurement.lengths.get(queue)
            runs = self._empty[queue] = before.get(queue) or deque(maxlen=MAX_MEASUREMENTS)
            if length:
                runs.clear()
            elif length is not None:
                runs.append(seen)

    def _which_held(self, unacked: int | None) -> Unacked:
        """Tell whether tasks that workers have can explain how many messages are not acknowledged.

        On Redis the messages of a dead worker count too, until their visibility timeout; so do its tasks.
        """
        if not unacked:
            return Unacked.UNCOUNTED if unacked is None else Unacked.NONE
        buckets = self._cluster.tasks.occupied(State.RECEIVED, State.STARTED)
        return Unacked.KNOWN if unacked <= sum(len(bucket.tasks) for bucket in buckets) else Unacked.OTHERS

    def reconcile(self, now: Timestamp) -> Iterator[None]:
        """Take out what is gone, of `MAX_LOOKED_AT` tasks; pauses after each `CHUNK`, when others may change
        the cluster.
        """
        tasks = self._turns.take(self._cluster.tasks.occupied(*OPEN_STATES), MAX_LOOKED_AT)
        seen_empty: dict[str, Empty | None] = {}
        for chunk in _chunks(tasks):
            for task in chunk:
                if self._is_open(task):
                    self._look_at(task, seen_empty, now)
            yield
        self._turns.step_back(sum(task.bucket.state is None for task in tasks))
        if self._drops_expired:
            yield from self._take_out_expired(now)

    def _is_open(self, task: Task) -> bool:
        """Tell whether a task is still open, and nothing more is known of it that waits for its task-sent."""
        tasks = self._cluster.tasks
        return (
            task.bucket.state is not None
            and tasks.get(task.uuid) is task
            and task.uuid not in tasks.awaiting_sent
        )

    def _look_at(self, task: Task, seen_empty: dict[str, Empty | None], now: Timestamp) -> None:
        """Take out a task, or put it back, if that follows from what is known; `seen_empty` is by queue."""
        cluster, state = self._cluster, task.bucket.state
        worker = cluster.workers.get(task.current_worker())
        if state is State.STARTED:
            if worker is not None and _is_idle(worker, now):
                cluster.end_silently(task, NOT_RUNNING, now)
            return
        if state is State.RECEIVED and worker is not None:
            if _gave_back(worker, task, now):
                cluster.requeue(task, now)  # the broker delivers it anew
                cluster.reconciled[RETURNED] += 1
            if worker.up or worker.left:
                return
        queue = task.bucket.group.label_set.queue_name
        if queue not in seen_empty:
            seen_empty[queue] = self._seen_empty(queue, now)
        seen = seen_empty[queue]
        if seen is not None and self._is_message_gone(seen, now, task):
            cluster.end_silently(task, MESSAGE_GONE, now)

    # -- messages that are gone ------------------------------------------------------------------------

    def _seen_empty(self, queue: str, now: Timestamp) -> Empty | None:
        """Return the measurement that proves that this queue held no message and no worker had one of it.

        One is enough if workers hold nothing. Otherwise two have to agree, and each live worker of the queue
        has to have sent a heartbeat since the first of them: one that is busy in the solo pool may have a
        message that it has not read.
        """
        settled = [each for each in self._runs(queue) if now.listening - each.at >= GRACE_SECONDS][-2:]
        if settled and settled[-1].unacked is Unacked.NONE:
            return settled[-1]
        if len(settled) < 2 or any(each.unacked is Unacked.OTHERS for each in settled):
            return None
        before = settled[0]
        workers = self._cluster.workers.values()
        consumers = (each for each in workers if each.up and self._consumes(each, queue))
        return before if all(_has_beaten(each, before.at, now) for each in consumers) else None

    def _consumes(self, worker: Worker, label: str) -> bool:
        """Tell whether a worker may consume a queue with this label."""
        queues = worker.info.queues
        if queues is None or label in _ANY_QUEUE:
            return True
        return label in map(self._cluster.label_sets.queue_label, queues)

    def _runs(self, queue: str) -> list[Empty]:
        """Return the measurements in a row that found a queue empty; of an unknown one, all queues."""
        if queue not in _ANY_QUEUE:
            return list(self._empty.get(queue, ()))
        latest = [list(runs)[-2:] for runs in self._empty.values()]
        both = zip(*latest, strict=False)  # none if there is a queue that was not empty
        return [Empty(min(each.at for each in one), max(each.unacked for each in one)) for one in both]

    def _is_message_gone(self, seen: Empty, now: Timestamp, task: Task) -> bool:
        """Tell whether a task whose queue is empty would have been received if there were a message of it."""
        if task.last_seen >= seen.at - ARRIVAL_SECONDS:
            return False
        state = task.bucket.state
        if state is State.RECEIVED and seen.unacked is Unacked.KNOWN:
            return False  # its message may be one of those that a dead worker held
        if state is State.RETRY and not task.is_next_sent() and seen.unacked is not Unacked.NONE:
            return False  # it may wait for its countdown where nobody counts it
        return not task.is_due_after(now.wall - GRACE_SECONDS)

    # -- workers -----------------------------------------------------------------------------------------

    def suspects(self, now: Timestamp) -> dict[str, int]:
        """Return workers to ask now for their tasks, with the number of processes that have to answer.

        They have more tasks by their events than their heartbeats can explain, or have had one for long. Who
        does not answer is asked more and more seldom.
        """
        workers = self._cluster.workers
        started: Counter[str] = Counter()
        waiting: set[str] = set()
        found: set[str] = set()
        for task in self._silent_tasks(now):
            name = task.current_worker()
            worker = workers.get(name)
            if worker is None or not worker.up:
                continue
            is_long = name not in found and self._is_silent_for_long(task, worker, now)
            if task.bucket.state is State.STARTED:
                started[name] += 1
            elif is_long or name not in waiting:  # for this takes longer
                if task.is_due_after(now.wall - SUSPICIOUS_SECONDS):
                    continue
                waiting.add(name)
            if is_long:
                found.add(name)
        found |= {name for name, count in started.items() if count > (workers[name].active or count)}
        found |= {name for name in waiting if _is_idle(workers[name], now)}
        self._asked = {name: asked for name, asked in self._asked.items() if name in workers}
        never = Asked(-inf, 0.0)
        last = {name: self._asked.get(name, never) for name in sorted(found)}
        due = [name for name, asked in last.items() if now.listening >= asked.at + asked.wait]
        due = sorted(due, key=lambda name: last[name].at)[:MAX_ASKED]
        for name in due:
            wait = min(max(2 * last[name].wait, SUSPICIOUS_SECONDS), LONGEST_SECONDS)  # unless it answers
            self._asked[name] = Asked(now.listening, wait)
        return {name: workers[name].count_processes(now.listening) for name in due}

    def _silent_tasks(self, now: Timestamp) -> Iterator[Task]:
        """Yield tasks that a worker has, and of which nothing was heard for some time; of many, some."""
        tasks = self._cluster.tasks
        started = self._turns_of_started.take(tasks.occupied(State.STARTED), MAX_LOOKED_AT // 2)
        received = self._turns_of_received.take(tasks.occupied(State.RECEIVED), MAX_LOOKED_AT // 2)
        for task in (*started, *received):
            if task.last_seen < now.listening - SUSPICIOUS_SECONDS:
                yield task

    def _is_silent_for_long(self, task: Task, worker: Worker, now: Timestamp) -> bool:
        """Tell whether nothing was heard of a task for so long that its worker is asked anyway.

        That is as long as it had been where it is when it was last heard of, which an answer is, too.
        """
        silent = now.listening - task.last_seen
        longest = min(LONGEST_SECONDS, TTL_SHARE * self._cluster.limits.task_ttl)
        if not LONG_SECONDS < silent < longest:
            return silent >= longest
        return silent > now.wall + (worker.clock_skew or 0.0) - task.since - silent

    def compare(self, held: Mapping[str, Collection[str]], asked: float, now: Timestamp) -> Iterator[None]:
        """Take out what workers do not have, which were asked at a listening time; the rest was heard of.

        `held`: by worker, the uuids of all tasks that it has received and not finished.
        """
        self._asked |= {name: Asked(asked) for name in held}
        had: list[Task] = []
        turns = _RoundRobin()
        while tasks := turns.take(self._cluster.tasks.occupied(*_WITH_WORKER), MAX_LOOKED_AT):
            for chunk in _chunks(tasks):
                for task in filter(self._is_with_worker, chunk):
                    uuids = held.get(task.current_worker())
                    if uuids is None or task.last_seen >= asked - ARRIVAL_SECONDS:
                        continue
                    if task.uuid in uuids:
                        had.append(task)
                    else:
                        self._cluster.end_silently(task, NOT_RUNNING, now)
                yield
            if len(tasks) < MAX_LOOKED_AT:
                break
            turns.step_back(sum(task.bucket.state not in _WITH_WORKER for task in tasks))
        for chunk in _chunks(had):  # only now, for it changes their order
            for task in filter(self._is_with_worker, chunk):
                self._cluster.tasks.touch(task, max(task.last_seen, now.listening))
            yield

    def _is_with_worker(self, task: Task) -> bool:
        return task.bucket.state in _WITH_WORKER and self._is_open(task)

    # -- expired ------------------------------------------------------------------------------------------

    def _take_out_expired(self, now: Timestamp) -> Iterator[None]:
        """Take out what waits in a queue and expired there; of many, some in each round."""
        tasks, expires = self._cluster.tasks, self._cluster.tasks.expires
        for uuid in list(islice(expires, CHUNK)):
            at, task = expires.pop(uuid), tasks.get(uuid)
            if task is None:
                continue
            if at < now.wall - EXPIRY_GRACE_SECONDS and task.bucket.state in {State.PENDING, State.RETRY}:
                self._cluster.end_silently(task, EXPIRED, now)
            else:
                expires[uuid] = at  # its next turn comes after all others
        yield


def measurement_of(
    cluster: Cluster, lengths: Mapping[str, int], unacked: int | None, at: float
) -> Measurement:
    """Return what was read of the queues at a listening time, by label.

    Where several queues have one label, its length is known when all of them were read.
    """
    by_label: dict[str, int | None] = {}
    for name in {*cluster.queues.names(), *lengths}:
        label = cluster.label_sets.queue_label(name)
        length, so_far = lengths.get(name), by_label.get(label, 0)
        by_label[label] = None if length is None or so_far is None else so_far + length
    known = {label: length for label, length in by_label.items() if length is not None}
    return Measurement(at, known, by_label.keys(), unacked)


def _chunks(tasks: list[Task]) -> Iterator[list[Task]]:
    for start in range(0, len(tasks), CHUNK):
        yield tasks[start : start + CHUNK]


def _has_beaten(worker: Worker, since: float, now: Timestamp) -> bool:
    """Tell whether a worker sent a heartbeat after a listening time, if it ever sends any."""
    return worker.heartbeat is None or now.listening - (now.wall - worker.heartbeat) > since


def _gave_back(worker: Worker, task: Task, now: Timestamp) -> bool:
    """Tell whether a worker has said goodbye since it received a task, and sends no more events of it."""
    if worker.left:
        return now.listening - worker.last_seen >= GOODBYE_SECONDS
    return worker.up and not worker.shared and task.since < worker.returned


def _is_idle(worker: Worker, now: Timestamp) -> bool:
    """Tell whether a worker reports for several heartbeats that it runs no task."""
    if worker.idle_since is None or not worker.up:
        return False
    return now.listening - worker.idle_since > IDLE_HEARTBEATS * (worker.freq or HEARTBEAT_SECONDS)
