"""Sums by label set: counts of transitions, histograms of times, failures by exception.

Invariant: sums only grow. Merging a label set into another moves its sums, and the total stays the same.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence

from msgspec import Struct, field

from celery_exporter.core.histogram import Histogram
from celery_exporter.core.task_names import clipped
from celery_exporter.core.types import EXCLUDED, OTHER, UNKNOWN, LabelSet, State

#: Exception classes per label set. The others are added up as `other`: code may create classes at run time.
MAX_EXCEPTIONS = 50
#: Hosts of clients per label set. The others are added up as `other`.
MAX_CLIENTS = 100
#: Newest failures that are kept with their details, for the pages.
MAX_FAILURES = 50


class Aggregate(Struct, gc=False):
    """All sums of one label set."""

    transitions: list[int]  # by State
    last: dict[State, float]  # newest epoch second at which a task entered the state
    exceptions: dict[str, int]  # failures by exception class
    redeliveries: int
    runtime: dict[State, Histogram]
    queue_wait: Histogram | None
    prefetch_wait: Histogram | None
    clients: dict[str, int] = {}  # sent tasks by host, if a profile shows them
    latency: Histogram | None = None  # if a profile shows it
    newest_prefetch_wait_seconds: float | None = None  # of the task that was started last
    execution_seconds: float = 0.0  # of all executions that ended, however they did
    retries_exceeded: int = 0  # failures, because max_retries was reached
    inherited: bool = False  # some of it was counted under another label set before

    @classmethod
    def empty(cls) -> Aggregate:
        """Return an aggregate whose sums are all 0."""
        return cls([0] * len(State), {}, {}, 0, {}, None, None)

    @property
    def sent(self) -> int | None:
        """How many tasks were sent. None: no task-sent event was received, so the number is unknown."""
        return self.transitions[State.PENDING] or None

    def merge(self, other: Aggregate) -> None:
        """Add the sums of another aggregate, except those by exception and client: they have a quota."""
        self.transitions = [sum(pair) for pair in zip(self.transitions, other.transitions, strict=True)]
        for state, at in other.last.items():
            self.last[state] = max(at, self.last.get(state, at))
        self.redeliveries += other.redeliveries
        self.execution_seconds += other.execution_seconds
        self.retries_exceeded += other.retries_exceeded
        self.inherited = self.inherited or other.inherited
        for state, histogram in other.runtime.items():
            self.runtime[state] = _merged(self.runtime.get(state), histogram)
        self.queue_wait = _merged(self.queue_wait, other.queue_wait) if other.queue_wait else self.queue_wait
        self.prefetch_wait = (
            _merged(self.prefetch_wait, other.prefetch_wait) if other.prefetch_wait else self.prefetch_wait
        )
        self.latency = _merged(self.latency, other.latency) if other.latency else self.latency
        if self.newest_prefetch_wait_seconds is None:
            self.newest_prefetch_wait_seconds = other.newest_prefetch_wait_seconds

    def copy(self) -> Aggregate:
        """Return a copy that shares no mutable value with this aggregate."""
        return Aggregate(
            self.transitions.copy(),
            self.last.copy(),
            self.exceptions.copy(),
            self.redeliveries,
            {state: histogram.copy() for state, histogram in self.runtime.items()},
            self.queue_wait and self.queue_wait.copy(),
            self.prefetch_wait and self.prefetch_wait.copy(),
            self.clients.copy(),
            self.latency and self.latency.copy(),
            self.newest_prefetch_wait_seconds,
            self.execution_seconds,
            self.retries_exceeded,
            self.inherited,
        )


def _merged(histogram: Histogram | None, other: Histogram) -> Histogram:
    if histogram is None:
        return other.copy()
    histogram.merge(other)
    return histogram


class Runs(Struct, gc=False):
    """How often tasks of one name entered each state, and when last, over several aggregates."""

    counts: Counter[State] = field(default_factory=Counter)
    last: dict[State, float] = {}
    redeliveries: int = 0

    def add(self, aggregate: Aggregate) -> None:
        """Add an aggregate."""
        self.redeliveries += aggregate.redeliveries
        for state, at in aggregate.last.items():
            self.counts[state] += aggregate.transitions[state]
            self.last[state] = max(at, self.newest(state))

    def newest(self, state: State) -> float:
        """Return when a task entered a state last; 0 if none did."""
        return self.last.get(state, 0.0)

    def first_receipts(self, retrying: int) -> int:
        """Return how many receipts were no redelivery, and of no retry, while so many tasks wait for one.

        It is less if a retry was lost, so that only its growth has a meaning.
        """
        received_retries = self.counts[State.RETRY] - retrying
        return self.counts[State.RECEIVED] - self.redeliveries - received_retries


class _SeriesQuota(Struct, gc=False):
    """The number of series, and its limits, of a label whose values are not part of the label set."""

    per_label_set: int
    limit: int
    used: int = 0

    def count(self, sums: dict[str, int], value: str, count: int) -> int:
        """Add `count` to the sum of a label value; return how much was added to `other` instead."""
        overflowed = 0
        if value not in sums:
            full = len(sums) >= self.per_label_set or self.used >= self.limit
            if full and value not in (UNKNOWN, OTHER):
                value, overflowed = OTHER, count
            self.used += value not in sums
        sums[value] = sums.get(value, 0) + count
        return overflowed


class Failure(Struct, frozen=True, gc=False):
    """One failure. `at` is epoch seconds of the worker's clock, `exception` the name of its class."""

    at: float
    label_set: LabelSet
    worker: str
    exception: str
    uuid: str
    retries_exceeded: bool = False  # Task.retry raised it, because max_retries was reached


class Aggregates:
    """Sums by label set, with a method for each kind of count and observation. Not thread-safe.

    `runtime_bounds` and `wait_bounds` are the upper bounds of buckets in seconds, ascending, without +Inf.
    The labels `exception` and `client` are not part of a label set. Each of the two has at most `max_series`
    series. `native_histograms` and `exemplars` say whether histograms have native buckets and exemplars.
    `histogram_sample_rate` is the ratio of tasks that they observe, chosen by uuid; None means all.
    `latency` says whether a profile shows the time from sent (or from received, if no sending is known) to
    started.
    """

    def __init__(  # noqa: PLR0913  what is measured, and how
        self,
        runtime_bounds: Sequence[float],
        wait_bounds: Sequence[float],
        max_series: int = 20_000,
        *,
        native_histograms: bool = False,
        exemplars: bool = False,
        histogram_sample_rate: float | None = None,
        latency: bool = False,
    ) -> None:
        self.runtime_bounds = tuple(runtime_bounds)
        self.wait_bounds = tuple(wait_bounds)
        self.native_histograms = native_histograms
        self.exemplars = exemplars
        #: Returns `Exemplar.root` of a task; None if exemplars have none.
        self.root_of: Callable[[str], str] | None = None
        self._sample_rate = histogram_sample_rate
        self._latency = latency
        self.negative_waits = 0  # observations that were negative, and counted as 0 s
        self.overflowed = 0  # failures and sendings whose exception or client was counted as `other`
        self.failures: deque[Failure] = deque(maxlen=MAX_FAILURES)  # oldest first
        self._exceptions = _SeriesQuota(MAX_EXCEPTIONS, max_series)
        self._clients = _SeriesQuota(MAX_CLIENTS, max_series)
        self._aggregates: dict[LabelSet, Aggregate] = {}
        self._unshared: dict[LabelSet, Aggregate] = {}  # those of them that no snapshot contains
        #: What was observed of the newest transition, in seconds and never negative, for its record.
        self.observed_queue_wait: float | None = None
        self.observed_prefetch_wait: float | None = None
        self.observed_runtime: float | None = None

    def snapshot(self) -> dict[LabelSet, Aggregate]:
        """Return all sums as they are now. Later changes do not affect the returned aggregates.

        This copies only the dict. The first change of an aggregate after a snapshot copies that aggregate.
        """
        self._unshared.clear()
        return self._aggregates.copy()

    def runs(self, names: Collection[str]) -> dict[str, Runs]:
        """Return what is known of tasks with these names over all label sets."""
        runs: dict[str, Runs] = {}
        for label_set, aggregate in self._aggregates.items():
            if label_set.task_name in names:
                of_task = runs.get(label_set.task_name) or runs.setdefault(label_set.task_name, Runs())
                of_task.add(aggregate)
        return runs

    def restore(self, label_set: LabelSet, aggregate: Aggregate) -> None:
        """Add the sums that an earlier process had under a label set."""
        self._absorb(label_set, aggregate)

    # -- counts and observations. Seconds are negative where two clocks differ ---------------------------

    def touch(self, label_set: LabelSet) -> None:
        """Add a label set whose sums are 0, if it is new."""
        self._writable(label_set)

    def count_transition(self, label_set: LabelSet, state: State, at: float) -> None:
        """Count a task that entered a state at an epoch second of the sender's clock."""
        aggregate = self._unshared.get(label_set) or self._writable(label_set)
        aggregate.transitions[state] += 1
        if at > aggregate.last.get(state, 0.0):
            aggregate.last[state] = at

    def count_sender(self, label_set: LabelSet, client: str) -> None:
        """Count a task that a client on this host sent."""
        clients = self._writable(label_set).clients
        if client in clients:
            clients[client] += 1
        else:
            self.overflowed += self._clients.count(clients, client, 1)

    def count_failure(self, failure: Failure) -> None:
        """Count a failure by its exception class, and keep it among the newest ones."""
        aggregate = self._writable(failure.label_set)
        self.overflowed += self._exceptions.count(aggregate.exceptions, clipped(failure.exception), 1)
        aggregate.retries_exceeded += failure.retries_exceeded
        if failure.label_set is not EXCLUDED:
            self.failures.append(failure)

    def observe_runtime(
        self, label_set: LabelSet, state: State, seconds: float, uuid: str | None = None
    ) -> None:
        """Observe the runtime of an execution that ended in SUCCESS, FAILURE or RETRY."""
        aggregate = self._unshared.get(label_set) or self._writable(label_set)
        histogram = aggregate.runtime.get(state)
        if histogram is None:
            histogram = aggregate.runtime[state] = self._histogram(self.runtime_bounds)
        seconds = self.observed_runtime = self._observe(histogram, self.runtime_bounds, seconds, uuid)
        aggregate.execution_seconds += seconds

    def add_execution(self, label_set: LabelSet, seconds: float) -> None:
        """Add the time from start to end of an execution that has no runtime: REVOKED, REJECTED."""
        if seconds > 0:
            self._writable(label_set).execution_seconds += seconds

    def observe_start(
        self, label_set: LabelSet, at: float, ready: float | None, received: float | None, uuid: str
    ) -> None:
        """Observe how long a task waited that was started at the epoch second `at`.

        `ready` is when it was sent, `received` when its worker received it, both not before its eta. None
        means unknown.
        """
        aggregate = self._unshared.get(label_set) or self._writable(label_set)
        if ready is not None:
            queue_wait = aggregate.queue_wait
            if queue_wait is None:
                queue_wait = aggregate.queue_wait = self._histogram(self.wait_bounds)
            self.observed_queue_wait = self._observe(queue_wait, self.wait_bounds, at - ready, uuid)
        if received is not None:
            prefetch_wait = aggregate.prefetch_wait
            if prefetch_wait is None:
                prefetch_wait = aggregate.prefetch_wait = self._histogram(self.wait_bounds)
            seconds = aggregate.newest_prefetch_wait_seconds = at - received
            self.observed_prefetch_wait = self._observe(prefetch_wait, self.wait_bounds, seconds, uuid)
        since = received if ready is None else ready
        if self._latency and since is not None:
            if aggregate.latency is None:
                aggregate.latency = self._histogram(self.wait_bounds)
            self._observe(aggregate.latency, self.wait_bounds, max(0.0, at - since), uuid)

    def observe_queue_wait(self, label_set: LabelSet, seconds: float, uuid: str | None = None) -> None:
        """Observe the time from sent (or eta) to started."""
        aggregate = self._writable(label_set)
        if aggregate.queue_wait is None:
            aggregate.queue_wait = self._histogram(self.wait_bounds)
        self.observed_queue_wait = self._observe(aggregate.queue_wait, self.wait_bounds, seconds, uuid)

    def observe_prefetch_wait(self, label_set: LabelSet, seconds: float, uuid: str | None = None) -> None:
        """Observe the time from received (or eta) to started, on one worker."""
        aggregate = self._writable(label_set)
        if aggregate.prefetch_wait is None:
            aggregate.prefetch_wait = self._histogram(self.wait_bounds)
        aggregate.newest_prefetch_wait_seconds = seconds
        self.observed_prefetch_wait = self._observe(aggregate.prefetch_wait, self.wait_bounds, seconds, uuid)

    def forget_observed(self) -> None:
        """Forget what was observed of a transition: a record has it, or none is made."""
        self.observed_queue_wait = self.observed_prefetch_wait = self.observed_runtime = None

    def count_redelivery(self, label_set: LabelSet) -> None:
        """Count an attempt of a task that was received again."""
        self._writable(label_set).redeliveries += 1

    def merge(self, label_set: LabelSet, into: LabelSet) -> None:
        """Remove a label set; add its sums to another one."""
        if label_set in self._aggregates:
            aggregate = self._writable(label_set)
            del self._aggregates[label_set]
            del self._unshared[label_set]
            self._exceptions.used -= len(aggregate.exceptions)
            self._clients.used -= len(aggregate.clients)
            aggregate.inherited = True
            self._absorb(into, aggregate)

    def remove_clients(self, hosts: Collection[str]) -> None:
        """Remove the sums by client of clients on these hosts; other sums still include what they sent."""
        affected = [
            label_set
            for label_set, aggregate in self._aggregates.items()
            if not aggregate.clients.keys().isdisjoint(hosts)
        ]
        for label_set in affected:
            clients = self._writable(label_set).clients
            for client in clients.keys() & hosts:
                del clients[client]
                self._clients.used -= 1

    # -- internals -------------------------------------------------------------------------------------

    def _writable(self, label_set: LabelSet) -> Aggregate:
        """Return the aggregate of a label set, to be changed; it is new, or a copy if a snapshot has it."""
        aggregate = self._unshared.get(label_set)
        if aggregate is None:
            shared = self._aggregates.get(label_set)
            aggregate = self._unshared[label_set] = self._aggregates[label_set] = (
                Aggregate.empty() if shared is None else shared.copy()
            )
        return aggregate

    def _observe(
        self, histogram: Histogram, bounds: Sequence[float], seconds: float, uuid: str | None
    ) -> float:
        """Observe seconds unless the task is not sampled; return them, 0 if they were negative."""
        if seconds < 0:
            self.negative_waits += 1
            seconds = 0.0
        if self._sample_rate is None or is_sampled(uuid or "", self._sample_rate):
            root = None if self.root_of is None else self.root_of(uuid or "")
            histogram.observe(bounds, seconds, uuid, root)
        return seconds

    def _absorb(self, label_set: LabelSet, other: Aggregate) -> None:
        aggregate = self._writable(label_set)
        aggregate.merge(other)
        for exception, count in other.exceptions.items():
            self.overflowed += self._exceptions.count(aggregate.exceptions, exception, count)
        for client, count in other.clients.items():
            self.overflowed += self._clients.count(aggregate.clients, client, count)

    def _histogram(self, bounds: Sequence[float]) -> Histogram:
        counts, native, exemplars = [0] * (len(bounds) + 1), self.native_histograms, self.exemplars
        return Histogram(counts, 0.0, {} if native else None, {} if exemplars else None)


def is_sampled(uuid: str, sample_rate: float) -> bool:
    """Return whether histograms observe a task; the result is the same for all its observations."""
    return zlib.crc32(uuid.encode()) < sample_rate * 2**32
