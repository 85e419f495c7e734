"""Records of single tasks: what `celery_tasks_total` counts, one `Record` for each transition.

A record is made where a transition is counted, so under its final label values and after the reorder window.
Invariant: below --histogram-sample-rate 1 only the tasks that histograms observe have records; otherwise the
records of a state, name and queue are as many as the counter says, and the waits and runtimes in them add up
to the sums of the histograms. (Two deliveries of an attempt that both wait for a late task-sent have one
record with the wait of one.) Tasks that --task-exclude excludes have none.

Nothing is recorded while no sink is on: then `Cluster` has no `RecordBuilder`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice, takewhile

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.core.aggregates import Aggregates, is_sampled
from celery_exporter.core.events import Event, EventWithAncestry, EventWithArguments
from celery_exporter.core.measurements import PendingMeasurements, Value
from celery_exporter.core.task_details import FORGOTTEN, AttemptEnd, TaskDetails
from celery_exporter.core.task_exceptions import exception_class
from celery_exporter.core.task_history import MAX_ATTEMPTS
from celery_exporter.core.tasks import Task
from celery_exporter.core.types import EXCLUDED, OTHER, UNKNOWN, LabelSet, State

# Looking up a member of an enum is slow.
PENDING, RECEIVED, STARTED, REJECTED = State.PENDING, State.RECEIVED, State.STARTED, State.REJECTED
#: Listening seconds for which the last record of a task waits for late measurements. On RabbitMQ some of a
#: hundred tasks that end right after they measure are late, by 0.06 s at most; on Redis none is.
LATE_SECONDS = 0.5
#: Such records at a time: 20,000 tasks a second. Beyond it the oldest does not wait any longer.
MAX_HELD = 10_000
#: Changed tasks that wait to be taken: 10,000 a second for ten seconds, or 60 MB.
MAX_CHANGED = 100_000
#: Names of clients that tasks share.
MAX_CLIENTS = 1_000
#: Task names (label values) that are known to measure something.
MAX_MEASURING_NAMES = 1_000


class Arguments(Struct, frozen=True, gc=False):
    """What a task was called with and what it returned, as Celery writes it into events (--record-arguments).

    Each is the repr that the sender made, None if no event had it.
    """

    args: str | None = None
    kwargs: str | None = None
    result: str | None = None


NO_ARGUMENTS = Arguments()


class Measurements(Struct, frozen=True, gc=False):
    """What a task measured itself and sent as `task-measured` events (celery_exporter.instrumentation)."""

    tags: Mapping[str, str] = {}
    fields: Mapping[str, Value] = {}


NO_MEASUREMENTS = Measurements()


class MeasuredRecord(Struct, frozen=True, gc=False):
    """One `task-measured` event. `timestamp` is epoch seconds of the worker's clock; None: unknown."""

    uuid: str
    root: str | None
    name: str
    worker: str
    timestamp: float
    measurements: Measurements


class Record(Struct, frozen=True, gc=False):
    """One transition of a task, with what is known of its attempt by then. None: unknown.

    Times are epoch seconds of the sender's clock, durations are seconds and never negative. `name` and
    `queue` are label values. The record that ends an attempt (`ATTEMPT_ENDS`) has all of its times.
    """

    uuid: str
    root: str | None  # root_id: the task that began the workflow
    parent: str | None  # parent_id: the task that sent this one; None for a first task
    name: str
    queue: str | None
    worker: str | None  # node name; None for PENDING, which a client reports
    client: str | None  # node name of the client that sent the task
    attempt: int | None  # `retries` of the task message
    generation: int  # 0; 1 for the work that Task.replace() sent under the same uuid, and so on
    state: State
    timestamp: float  # when the task entered the state
    exception: str | None = None  # class name
    first_sent: float | None = None  # of attempt 0
    sent: float | None = None
    eta: float | None = None
    received: float | None = None
    started: float | None = None
    queue_wait: float | None = None  # from sent, or eta, to started
    prefetch_wait: float | None = None  # from received, or eta, to started
    runtime: float | None = None
    is_final: bool = False  # the task is finished, as far as is known
    arguments: Arguments = NO_ARGUMENTS
    measurements: Measurements = NO_MEASUREMENTS  # of all attempts so far; only if the task ends


_UNENDED = AttemptEnd(None)
#: States that end an attempt; all but RETRY end the task, too.
ATTEMPT_ENDS = frozenset({State.SUCCESS, State.FAILURE, State.RETRY, State.REVOKED, State.REJECTED})
TASK_ENDS = ATTEMPT_ENDS - {State.RETRY}


class _Held(Struct, gc=False):
    record: Record
    since: float  # listening time


class LastRecords:
    """The records that end tasks, with what these measured. Not thread-safe.

    A task has another connection to the broker than its worker, which reports the end. So measurements may
    come before anything else of their task, and after its end. The last record of a task waits for them for
    `LATE_SECONDS`, if tasks of its name measure anything.
    """

    def __init__(self) -> None:
        self._pending = PendingMeasurements()
        self._held: dict[str, _Held] = {}  # by uuid, the oldest first
        self.measuring: set[str] = set()  # label values of task names
        self._listening = 0.0

    def add_measured(self, event: Event, name: str, *, is_over: bool) -> None:
        """Keep what a task measured for its last record, unless that was made: the task `is_over`."""
        if len(self.measuring) < MAX_MEASURING_NAMES:
            self.measuring.add(name)
        uuid = event.uuid or ""
        if not is_over or uuid in self._held:
            self._pending.add(uuid, event.tags or {}, event.fields or {}, self._listening)

    def add(self, record: Record) -> list[Record]:
        """Add the last record of a task; return the records that wait no longer."""
        uuid = record.uuid
        if record.name not in self.measuring:
            return [self._with_measurements(record)]
        earlier = [uuid] if uuid in self._held else []  # it was delivered twice
        if len(self._held) >= MAX_HELD:
            earlier += islice(self._held, 1 + MAX_HELD // 100)
        ready = self._release(dict.fromkeys(earlier))
        self._held[uuid] = _Held(record, self._listening)
        return ready

    def expire(self, listening: float, task_ttl: float) -> list[Record]:
        """Let time pass; return the records that wait no longer.

        What tasks measured that never ended is removed after `task_ttl` seconds, as the tasks are.
        """
        self._listening = listening
        self._pending.expire(listening - task_ttl)
        if not self._held:
            return []
        before = listening - LATE_SECONDS
        return self._release([*takewhile(lambda uuid: self._held[uuid].since <= before, self._held)])

    def release(self) -> list[Record]:
        """Return all records that wait."""
        return self._release([*self._held])

    def _release(self, uuids: Iterable[str]) -> list[Record]:
        return [self._with_measurements(self._held.pop(uuid).record) for uuid in uuids]

    def _with_measurements(self, record: Record) -> Record:
        if record.uuid not in self._pending:
            return record
        return replace(record, measurements=Measurements(*self._pending.take(record.uuid)))


class RecordBuilder:
    """Keeps the details of tasks, and makes records. Not thread-safe: the caller holds the lock.

    `sample_rate` is that of histograms; None means all tasks. `arguments` says whether events have the type
    `EventWithArguments`, and keeps their arguments.
    """

    def __init__(
        self, aggregates: Aggregates, sample_rate: float | None = None, *, arguments: bool = False
    ) -> None:
        #: Tasks that changed since they were taken, by uuid; None: changes are not noted.
        self.changed: dict[str, Task] | None = None
        self._surplus = 0  # changed tasks that were left out, since there were too many
        self._is_wanted = [True] * len(State)
        self._clients: dict[str, str] = {}  # names of clients: one object for all tasks of each
        self._is_any_wanted = True
        self._passes_on = True  # whether more than the details is wanted
        self._aggregates = aggregates
        self._sample_rate = sample_rate
        self._arguments = arguments
        self._last = LastRecords()
        self._records: list[Record | MeasuredRecord] = []

    def restrict(self, states: Collection[State]) -> None:
        """Make records only of transitions to these states."""
        self._is_wanted = [state in states for state in State]
        self._is_any_wanted = any(self._is_wanted)
        self._passes_on = self._is_any_wanted or self._arguments

    def take(self, *, last: bool = False) -> list[Record | MeasuredRecord]:
        """Return the records since the last call, in the order of the transitions and measurements.

        Those that wait for late measurements follow later, or now if this is the `last` call.
        """
        if last:
            self._records += self._last.release()
        records, self._records = self._records, []
        return records

    def add_sent(self, task: Task, event: Event, label_set: LabelSet) -> None:
        """Do the same as `add` for the sending of a task, which usually begins what is known of it."""
        is_usual = task.details is None and label_set is not EXCLUDED and self._sample_rate is None
        if not (is_usual and event.eta is None and isinstance(event, EventWithAncestry)):
            self.add(task, event, label_set, PENDING, event.retries or 0)
            return
        uuid, root, parent, at = task.uuid, event.root_id, event.parent_id, event.timestamp
        details = task.details = TaskDetails(
            event.retries or 0,
            uuid if root == uuid else root,
            None if parent == uuid else parent,
            self._clients.get(event.hostname) or self._add_client(event.hostname),
            at,
            at,
        )
        if self._passes_on:
            self._pass_on(task, details, event, label_set, PENDING)
        if self.changed is not None:
            self.changed[uuid] = task

    def add_usual(self, task: Task, event: Event, label_set: LabelSet, state: State) -> None:
        """Do the same as `add` for what a worker did to a task without an expanded history."""
        details = task.details
        if details is None or details.attempt != task.attempt or details.end is not None:
            self.add(task, event, label_set, state, task.attempt)
            return
        if state is STARTED:
            details.started = event.timestamp
        elif state is RECEIVED:
            details.received, details.started = event.timestamp, None
            if details.root is None or event.eta is not None:
                details.add_origin(task.uuid, event)
        else:
            exception = None if event.exception is None else _exception(event)
            details.end = AttemptEnd(
                event.timestamp, state, None, event.runtime, exception, event.hostname, label_set
            )
        if self._passes_on:
            self._pass_on(task, details, event, label_set, state)
        if self.changed is not None:
            self.changed[task.uuid] = task

    def add(  # noqa: C901, PLR0912  the hot path: calls are as few as they can be
        self, task: Task, event: Event, label_set: LabelSet, state: State, attempt: int | None
    ) -> None:
        """Note a transition that was just counted under this label set, and make its record."""
        details, is_current = task.details, False
        if details is None:
            sample_rate = self._sample_rate
            if label_set is EXCLUDED or not (sample_rate is None or is_sampled(task.uuid, sample_rate)):
                self._aggregates.forget_observed()
                return
            details = task.details = TaskDetails(attempt)
        elif attempt is None:
            is_current = details.is_of_current(event.hostname, state)
            if not is_current and details.attempt is not None:
                details.switch(None)
        elif details.attempt != attempt:
            details.switch(attempt)
        if state is PENDING:
            if details.first_sent is None or (attempt == 0 and not details.is_first_known()):
                details.first_sent = event.timestamp
                details.client = self._clients.get(event.hostname) or self._add_client(event.hostname)
            details.sent = event.timestamp
            if details.root is None or event.eta is not None:
                details.add_origin(task.uuid, event)
        else:
            if details.end is not None and not is_current:
                details.close()
            if state is STARTED:
                details.started = event.timestamp
            elif state is RECEIVED:
                details.received = event.timestamp
                if details.started is not None and details.started < event.timestamp:
                    details.started = None  # it is another delivery
                if details.root is None or event.eta is not None:
                    details.add_origin(task.uuid, event)
            elif not (event.requeue and state is REJECTED):  # that one goes back to its queue
                if details.end is None:
                    details.end = _end(event, label_set, state)
                elif event.exception is not None:  # a worker reported it as rejected before
                    details.end = replace(details.end, exception=_exception(event))
        if self._passes_on:
            self._pass_on(task, details, event, label_set, state)
        if self.changed is not None:
            self.changed[task.uuid] = task

    def _pass_on(
        self, task: Task, details: TaskDetails, event: Event, label_set: LabelSet, state: State
    ) -> None:
        """Make what sinks and the history file want of a transition."""
        # The hot path: calls are as few as they can be.
        if self._arguments and isinstance(event, EventWithArguments):
            details.add_arguments(event)
        if not self._is_any_wanted:
            return
        aggregates = self._aggregates
        if self._is_wanted[state] and label_set is not EXCLUDED:
            end, attempt, generation = details.end, details.attempt, 0
            if attempt is not None and not 0 <= attempt < MAX_ATTEMPTS:  # a predecessor has a negative one
                generation, attempt = divmod(attempt, MAX_ATTEMPTS)
            record = Record(
                task.uuid,  # one object for all records of the task
                details.root,
                details.parent,
                label_set.task_name,
                label_set.queue_name or None,
                None if state is PENDING else event.hostname,
                details.client,
                attempt,
                generation,
                state,
                event.timestamp,
                None if state is PENDING or end is None else end.exception,
                details.first_sent,
                details.sent,
                details.eta,
                details.received,
                details.started,
                aggregates.observed_queue_wait,
                aggregates.observed_prefetch_wait,
                aggregates.observed_runtime,
                state in TASK_ENDS and not (event.requeue and state is REJECTED),
                Arguments(*details.arguments()) if self._arguments else NO_ARGUMENTS,
            )
            if record.is_final and self._last.measuring:
                self._records += self._last.add(record)
            else:
                self._records.append(record)
        # What `Aggregates.forget_observed` does.
        aggregates.observed_queue_wait = aggregates.observed_prefetch_wait = None
        aggregates.observed_runtime = None

    def note_end(self, task: Task, reason: str, at: float) -> None:
        """Note that a task counts as over without an event, why, and since which epoch second."""
        details = task.details = task.details or self._new_details(task)
        if details is not None and (details.end is None or details.end.ended is None):
            worker, label_set = task.current_worker() or None, task.bucket.group.label_set
            details.end = AttemptEnd(at, reason=reason, worker=worker, label_set=label_set)
        self.note_change(task)

    def note_forgotten(self, task: Task) -> None:
        """Note that an open task is removed, by --max-tasks or --task-ttl."""
        details = task.details = task.details or self._new_details(task)
        if details is not None:
            details.end = replace(details.end or _UNENDED, reason=FORGOTTEN)
        self.note_change(task)

    def note_change(self, task: Task) -> None:
        """Note that a task changed otherwise."""
        if self.changed is not None and task.details is not None:
            self.changed[task.uuid] = task

    def _new_details(self, task: Task) -> TaskDetails | None:
        """Return details of a task that had no event since a restart; None if nothing is recorded of it."""
        is_excluded = task.bucket.group.label_set is EXCLUDED
        return None if is_excluded or not self._is_sampled(task.uuid) else TaskDetails(None)

    def add_measured(self, task: Task | None, event: Event, name: str) -> None:
        """Add the record of a `task-measured` event; `name` is the label value of its task.

        What it has becomes part of the last record of the task, too, unless that was made already.
        """
        uuid = event.uuid or ""
        if not self._is_sampled(uuid):
            return
        root = event.root_id if isinstance(event, EventWithAncestry) else None
        root = root or (task.details.root if task and task.details else None)
        measurements = Measurements(event.tags or {}, event.fields or {})
        if name not in self._last.measuring and len(self._last.measuring) >= MAX_MEASURING_NAMES:
            name = OTHER
        self._records.append(MeasuredRecord(uuid, root, name, event.hostname, event.timestamp, measurements))
        is_over = task is not None and task.bucket.final is not None
        self._last.add_measured(event, name, is_over=is_over)

    def note_changes(self) -> None:
        """Note from now on which tasks change, for `take_changed`."""
        if self.changed is None:
            self.changed = {}

    def take_changed(self, limit: int) -> tuple[list[Task], int]:
        """Return up to so many tasks that changed, the first ones first, and how many were left out."""
        changed = self.changed or {}
        uuids = [*islice(changed, limit)]
        surplus, self._surplus = self._surplus, 0
        return [changed.pop(uuid) for uuid in uuids], surplus

    def expire(self, listening: float, task_ttl: float) -> None:
        """Let time pass: add records that wait no longer, and remove measurements of tasks that are gone."""
        self._records += self._last.expire(listening, task_ttl)
        if self.changed is not None and len(self.changed) > MAX_CHANGED:
            surplus = [*islice(self.changed, len(self.changed) - MAX_CHANGED)]
            for uuid in surplus:
                del self.changed[uuid]
            self._surplus += len(surplus)

    def _add_client(self, name: str) -> str:
        if len(self._clients) >= MAX_CLIENTS:
            self._clients.clear()
        self._clients[name] = name
        return name

    def _is_sampled(self, uuid: str) -> bool:
        return self._sample_rate is None or is_sampled(uuid, self._sample_rate)


def _end(event: Event, label_set: LabelSet, state: State) -> AttemptEnd:
    """Return the end of an attempt that an event reports."""
    exception = None if event.exception is None else _exception(event)
    return AttemptEnd(event.timestamp, state, None, event.runtime, exception, event.hostname, label_set)


def _exception(event: Event) -> str:
    return exception_class(event.exception) or UNKNOWN
