"""Ends tasks that no event will end: their message is gone, or no worker runs them.

No event reports a purged queue, a task that expires in RabbitMQ, a task with `send_events = False`,
`task.Ignore`, or a lost event. Queue lengths, heartbeats and the replies of workers show them.

Invariant: a task is ended only by an observation that is newer than its newest event, by more than the time
that an event needs to arrive. A tombstone stays, and a receipt or a start reopens the task. No sum changes.
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

#: Why a task was ended or requeued; the label values of celery_exporter_tasks_reconciled_total.
MESSAGE_GONE, EXPIRED, NOT_RUNNING, RETURNED = "message_gone", "expired", "not_running", "returned"
REASONS = (MESSAGE_GONE, EXPIRED, NOT_RUNNING, RETURNED)

#: Seconds that an event may need to arrive: a worker sends its events once in each turn of its loop.
ARRIVAL_SECONDS = 0.5
#: Seconds between an observation and its consequences, for events that are on their way.
GRACE_SECONDS = 1.0
#: Seconds after worker-offline within which task events of the worker may arrive: they wait in a buffer.
LATE_EVENT_SECONDS = 5.0
#: Seconds without an event of a task after which its worker is inspected, if the worker's heartbeats report
#: fewer active tasks than it has by events. Also the minimum time between two inspections of a worker.
MIN_SILENCE_SECONDS = 30.0
#: Seconds without an event of a task after which its worker is inspected, whatever its heartbeats report. A
#: task that the worker has is checked again after twice the time, at most after MAX_SILENCE_SECONDS, and at
#: most after this ratio of --task-ttl.
LONG_SILENCE_SECONDS, MAX_SILENCE_SECONDS, MAX_SILENCE_TTL_RATIO = 300.0, 3_600.0, 0.25
#: Seconds after its expiry time at which a message counts as expired: its sender's clock may be ahead.
EXPIRY_GRACE_SECONDS = 5.0
#: Heartbeats without an active task after which a worker runs none. A task event may overtake one of them.
IDLE_HEARTBEATS = 3
#: Measurements that are kept by queue. They come every half second at most.
MAX_MEASUREMENTS = 8
#: Heartbeat interval in seconds of a worker that does not report its own.
HEARTBEAT_SECONDS = 2.0
#: Workers that are inspected in a round; later rounds inspect the others.
MAX_INSPECTED_WORKERS = 10
#: Tasks that are checked before other threads may take the lock: half a millisecond.
CHUNK_TASKS = 1_000
#: Tasks that are checked in a round; later rounds check the others.
MAX_ROUND_TASKS = 5 * CHUNK_TASKS

#: The states of a task that a worker has received and not ended.
_WITH_WORKER = (State.STARTED, State.RECEIVED)
#: Queue labels that may stand for any queue.
_ANY_QUEUE = frozenset({"", UNKNOWN, OTHER})


class Measurement(Struct, frozen=True):
    """Queue lengths, and how many messages all workers hold without acknowledgement (None: unknown).

    `at` is a listening time. `lengths` are the lengths that were read, by the label that task metrics have
    for the queue. `labels` are the labels of all queues.
    """

    at: float
    lengths: Mapping[str, int]
    labels: Collection[str]
    unacked: int | None


class Unacked(IntEnum):
    """Messages that workers held during a measurement; the higher, the less an empty queue proves."""

    NONE = 0
    UNCOUNTED = 1  # the broker does not count them, but returns those of a dead worker at once
    EXPLAINED = 2  # at most as many as workers have tasks, by events
    UNEXPLAINED = 3  # more than that


class EmptyMeasurement(Struct, frozen=True):
    """A measurement, at a listening time, in which a queue was empty."""

    at: float
    unacked: Unacked


class Inspection(Struct, frozen=True):
    """The last inspection of a worker: its listening time, and the seconds until the next one."""

    at: float
    wait: float = MIN_SILENCE_SECONDS


class _RoundRobin:
    """Takes tasks in turn: each time those after the previous ones.

    The position is a number of tasks, since a dict that changes has no other way into its middle. Tasks that
    are added or removed meanwhile may have their turn only in the next pass.
    """

    def __init__(self) -> None:
        self.position = 0

    def take(self, buckets: Iterable[StateBucket], count: int) -> list[Task]:
        """Return `count` tasks; fewer at the end of a pass, after which the next pass begins."""
        tasks: list[Task] = []
        position = self.position
        for bucket in buckets:
            tasks += islice(bucket.tasks.values(), position, position + count - len(tasks))
            position = max(0, position - len(bucket.tasks))
            if len(tasks) == count:
                break
        self.position = self.position + count if len(tasks) == count else 0
        return tasks

    def step_back(self, count: int) -> None:
        """Correct the position after `count` of the tasks before it were removed."""
        self.position = max(0, self.position - count)


class Reconciler:
    """Compares the tasks of a cluster with what the broker and the workers report.

    `drops_expired` says whether the broker deletes expired messages. RabbitMQ does, Redis does not.
    """

    def __init__(self, cluster: Cluster, *, drops_expired: bool) -> None:
        self._cluster = cluster
        self._drops_expired = drops_expired
        #: The latest measurements in a row in which a queue was empty, by its label, oldest first.
        self._empty: dict[str, deque[EmptyMeasurement]] = {}
        self._open_turns, self._started_turns, self._received_turns = (_RoundRobin() for _ in range(3))
        #: The last inspection of workers that were inspected for their tasks, by name.
        self._inspections: dict[str, Inspection] = {}

    def add_measurement(self, measurement: Measurement) -> None:
        """Record which queues are empty."""
        empty = EmptyMeasurement(measurement.at, self._classify_unacked(measurement.unacked))
        before, self._empty = self._empty, {}
        for queue in measurement.labels:
            length = measurement.lengths.get(queue)
            measurements = self._empty[queue] = before.get(queue) or deque(maxlen=MAX_MEASUREMENTS)
            if length:
                measurements.clear()
            elif length is not None:
                measurements.append(empty)

    def _classify_unacked(self, unacked: int | None) -> Unacked:
        """Return whether the tasks that workers have explain the number of unacknowledged messages.

        On Redis the messages of a dead worker count until their visibility timeout. So do its tasks.
        """
        if not unacked:
            return Unacked.UNCOUNTED if unacked is None else Unacked.NONE
        buckets = self._cluster.tasks.occupied(*_WITH_WORKER)
        tasks = sum(len(bucket.tasks) for bucket in buckets)
        return Unacked.EXPLAINED if unacked <= tasks else Unacked.UNEXPLAINED

    def reconcile(self, now: Timestamp) -> Iterator[None]:
        """End or requeue tasks by what is known, `MAX_ROUND_TASKS` in a round.

        Yields after each `CHUNK_TASKS`; the caller may release the lock, and the cluster may change.
        """
        tasks = self._open_turns.take(self._cluster.tasks.occupied(*OPEN_STATES), MAX_ROUND_TASKS)
        empty_by_queue: dict[str, EmptyMeasurement | None] = {}
        for chunk in _chunks(tasks):
            for task in chunk:
                if self._is_open(task):
                    self._reconcile_task(task, empty_by_queue, now)
            yield
        self._open_turns.step_back(sum(task.bucket.state is None for task in tasks))
        if self._drops_expired:
            yield from self._end_expired(now)

    def _is_open(self, task: Task) -> bool:
        """Return whether a task is still open, and none of its deliveries is awaiting its task-sent."""
        tasks = self._cluster.tasks
        return (
            task.bucket.state is not None
            and tasks.get(task.uuid) is task
            and task.uuid not in tasks.awaiting_sent
        )

    def _reconcile_task(
        self, task: Task, empty_by_queue: dict[str, EmptyMeasurement | None], now: Timestamp
    ) -> None:
        """End or requeue an open task, if that follows from what is known.

        `empty_by_queue` caches the results of `_proven_empty` for a round.
        """
        cluster, state = self._cluster, task.bucket.state
        worker = cluster.workers.get(task.current_worker())
        if state is State.STARTED:
            if worker is not None and _is_idle(worker, now):
                cluster.end_silently(task, NOT_RUNNING, now)
            return
        if state is State.RECEIVED and worker is not None:
            if _has_given_back(worker, task, now):
                cluster.requeue(task, now)
                cluster.reconciled[RETURNED] += 1
            if worker.up or worker.left:
                return
        queue = task.bucket.group.label_set.queue_name
        if queue not in empty_by_queue:
            empty_by_queue[queue] = self._proven_empty(queue, now)
        empty = empty_by_queue[queue]
        if empty is not None and self._is_message_gone(empty, now, task):
            cluster.end_silently(task, MESSAGE_GONE, now)

    # -- messages that are gone ------------------------------------------------------------------------

    def _proven_empty(self, queue: str, now: Timestamp) -> EmptyMeasurement | None:
        """Return the measurement that proves that no message of a queue is left; None if none does.

        One measurement is enough if workers hold no messages. Otherwise two have to agree, and each worker
        of the queue that is up has to have sent a heartbeat after the first of them. A busy worker with the
        solo pool may hold a message that it has not read.
        """
        measurements = self._empty_measurements(queue)
        settled = [empty for empty in measurements if now.listening - empty.at >= GRACE_SECONDS][-2:]
        if settled and settled[-1].unacked is Unacked.NONE:
            return settled[-1]
        if len(settled) < 2 or any(empty.unacked is Unacked.UNEXPLAINED for empty in settled):
            return None
        first = settled[0]
        workers = self._cluster.workers.values()
        consumers = (worker for worker in workers if worker.up and self._consumes(worker, queue))
        return first if all(_has_heartbeat_since(worker, first.at, now) for worker in consumers) else None

    def _consumes(self, worker: Worker, label: str) -> bool:
        """Return whether a worker may consume a queue with this label."""
        queues = worker.info.queues
        if queues is None or label in _ANY_QUEUE:
            return True
        return label in map(self._cluster.label_sets.queue_label, queues)

    def _empty_measurements(self, queue: str) -> list[EmptyMeasurement]:
        """Return the latest measurements in which a queue was empty; for an unknown one, all queues."""
        if queue not in _ANY_QUEUE:
            return list(self._empty.get(queue, ()))
        latest = [list(measurements)[-2:] for measurements in self._empty.values()]
        rounds = zip(*latest, strict=False)  # nothing if any queue was not empty
        return [
            EmptyMeasurement(min(empty.at for empty in empties), max(empty.unacked for empty in empties))
            for empties in rounds
        ]

    def _is_message_gone(self, empty: EmptyMeasurement, now: Timestamp, task: Task) -> bool:
        """Return whether an empty queue proves that the message of a task is gone."""
        if task.last_seen >= empty.at - ARRIVAL_SECONDS:
            return False
        state = task.bucket.state
        if state is State.RECEIVED and empty.unacked is Unacked.EXPLAINED:
            return False  # its message may be one of those that a dead worker held
        if state is State.RETRY and not task.is_next_sent() and empty.unacked is not Unacked.NONE:
            return False  # its message may wait for its countdown, where the broker does not count it
        return not task.is_due_after(now.wall - GRACE_SECONDS)

    # -- workers -----------------------------------------------------------------------------------------

    def workers_to_inspect(self, now: Timestamp) -> dict[str, int]:
        """Return the workers to inspect now, with the number of processes that have to reply.

        By events, these have more tasks than their heartbeats report, or have had one for long. The time
        between two inspections doubles for a worker that does not reply.
        """
        suspects = self._suspects(now)
        workers = self._cluster.workers
        self._inspections = {name: last for name, last in self._inspections.items() if name in workers}
        never = Inspection(-inf, 0.0)
        inspections = {name: self._inspections.get(name, never) for name in sorted(suspects)}
        due = [name for name, last in inspections.items() if now.listening >= last.at + last.wait]
        due = sorted(due, key=lambda name: inspections[name].at)[:MAX_INSPECTED_WORKERS]
        for name in due:
            wait = min(max(2 * inspections[name].wait, MIN_SILENCE_SECONDS), MAX_SILENCE_SECONDS)
            self._inspections[name] = Inspection(now.listening, wait)  # `compare` resets it after a reply
        return {name: workers[name].count_processes(now.listening) for name in due}

    def _suspects(self, now: Timestamp) -> set[str]:
        """Return the workers that may have fewer tasks than they have by events."""
        workers = self._cluster.workers
        started: Counter[str] = Counter()
        waiting: set[str] = set()
        suspects: set[str] = set()
        for task in self._silent_tasks(now):
            name = task.current_worker()
            worker = workers.get(name)
            if worker is None or not worker.up:
                continue
            is_long = name not in suspects and self._is_silent_for_long(task, worker, now)
            if task.bucket.state is State.STARTED:
                started[name] += 1
            elif is_long or name not in waiting:  # skips the slow check if it decides nothing
                if task.is_due_after(now.wall - MIN_SILENCE_SECONDS):
                    continue
                waiting.add(name)
            if is_long:
                suspects.add(name)
        suspects |= {name for name, count in started.items() if count > (workers[name].active or count)}
        return suspects | {name for name in waiting if _is_idle(workers[name], now)}

    def _silent_tasks(self, now: Timestamp) -> Iterator[Task]:
        """Yield tasks that a worker has and that had no event for some time; if there are many, some."""
        tasks = self._cluster.tasks
        started = self._started_turns.take(tasks.occupied(State.STARTED), MAX_ROUND_TASKS // 2)
        received = self._received_turns.take(tasks.occupied(State.RECEIVED), MAX_ROUND_TASKS // 2)
        for task in (*started, *received):
            if task.last_seen < now.listening - MIN_SILENCE_SECONDS:
                yield task

    def _is_silent_for_long(self, task: Task, worker: Worker, now: Timestamp) -> bool:
        """Return whether a task had no event for so long that its worker is inspected in any case.

        The time is as long as the task had been in its state when it was last seen. A reply of the worker
        counts as seen.
        """
        silent = now.listening - task.last_seen
        longest = min(MAX_SILENCE_SECONDS, MAX_SILENCE_TTL_RATIO * self._cluster.limits.task_ttl)
        if not LONG_SILENCE_SECONDS < silent < longest:
            return silent >= longest
        return silent > now.wall + (worker.clock_skew or 0.0) - task.since - silent

    def compare(
        self, uuids_by_worker: Mapping[str, Collection[str]], inspected_at: float, now: Timestamp
    ) -> Iterator[None]:
        """End the tasks that their inspected workers do not have; touch the tasks that they have.

        `uuids_by_worker` has the uuids of all tasks that a worker has received and not ended, by its name.
        `inspected_at` is a listening time. Yields as `reconcile` does.
        """
        self._inspections |= {name: Inspection(inspected_at) for name in uuids_by_worker}
        confirmed: list[Task] = []
        turns = _RoundRobin()
        while tasks := turns.take(self._cluster.tasks.occupied(*_WITH_WORKER), MAX_ROUND_TASKS):
            for chunk in _chunks(tasks):
                for task in filter(self._is_with_worker, chunk):
                    uuids = uuids_by_worker.get(task.current_worker())
                    if uuids is None or task.last_seen >= inspected_at - ARRIVAL_SECONDS:
                        continue
                    if task.uuid in uuids:
                        confirmed.append(task)
                    else:
                        self._cluster.end_silently(task, NOT_RUNNING, now)
                yield
            if len(tasks) < MAX_ROUND_TASKS:
                break
            turns.step_back(sum(task.bucket.state not in _WITH_WORKER for task in tasks))
        for chunk in _chunks(confirmed):  # at the end, because it changes the order of tasks
            for task in filter(self._is_with_worker, chunk):
                self._cluster.tasks.touch(task, max(task.last_seen, now.listening))
            yield

    def _is_with_worker(self, task: Task) -> bool:
        return task.bucket.state in _WITH_WORKER and self._is_open(task)

    # -- expired ------------------------------------------------------------------------------------------

    def _end_expired(self, now: Timestamp) -> Iterator[None]:
        """End tasks that expired while they waited in a queue; if there are many, some in each round."""
        tasks, expires = self._cluster.tasks, self._cluster.tasks.expires
        for uuid in list(islice(expires, CHUNK_TASKS)):
            at, task = expires.pop(uuid), tasks.get(uuid)
            if task is None:
                continue
            if at < now.wall - EXPIRY_GRACE_SECONDS and task.bucket.state in {State.PENDING, State.RETRY}:
                self._cluster.end_silently(task, EXPIRED, now)
            else:
                expires[uuid] = at  # at the end: its next turn comes after all others
        yield


def measurement_of(
    cluster: Cluster, lengths: Mapping[str, int], unacked: int | None, at: float
) -> Measurement:
    """Return the queue lengths that were read at a listening time, by label.

    If several queues have one label, its length is known only if all of them were read.
    """
    by_label: dict[str, int | None] = {}
    for name in {*cluster.queues.names(), *lengths}:
        label = cluster.label_sets.queue_label(name)
        length, total = lengths.get(name), by_label.get(label, 0)
        by_label[label] = None if length is None or total is None else total + length
    complete = {label: length for label, length in by_label.items() if length is not None}
    return Measurement(at, complete, by_label.keys(), unacked)


def _chunks(tasks: list[Task]) -> Iterator[list[Task]]:
    for start in range(0, len(tasks), CHUNK_TASKS):
        yield tasks[start : start + CHUNK_TASKS]


def _has_heartbeat_since(worker: Worker, since: float, now: Timestamp) -> bool:
    """Return whether a worker sent a heartbeat after a listening time, or never sends any."""
    return worker.heartbeat is None or now.listening - (now.wall - worker.heartbeat) > since


def _has_given_back(worker: Worker, task: Task, now: Timestamp) -> bool:
    """Return whether a worker went offline after it received a task, so that the broker has it again.

    Late events of the task have had time to arrive.
    """
    if worker.left:
        return now.listening - worker.last_seen >= LATE_EVENT_SECONDS
    return worker.up and not worker.shared and task.since < worker.returned


def _is_idle(worker: Worker, now: Timestamp) -> bool:
    """Return whether the last heartbeats of a worker reported no active task."""
    if worker.idle_since is None or not worker.up:
        return False
    return now.listening - worker.idle_since > IDLE_HEARTBEATS * (worker.freq or HEARTBEAT_SECONDS)
