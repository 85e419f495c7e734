"""What is concluded from events is added up here, at the finest grain in use.

Sums only grow; folding moves them, losing none.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Collection, Sequence

from msgspec import Struct

from celery_exporter.core.histogram import Histogram
from celery_exporter.core.task_names import clipped
from celery_exporter.core.types import EXCLUDED, OTHER, UNKNOWN, LabelSet, State

#: Distinct exception classes kept per task and queue; code that makes classes at run time has no end of
#: them. The rest is added up as "other".
MAX_EXCEPTIONS = 50
#: Distinct hosts of clients kept per task and queue.
MAX_CLIENTS = 100
#: Failures that are remembered one by one, for people to look into.
MAX_FAILURES = 50


class Aggregate(Struct, gc=False):
    """Everything added up under one key."""

    transitions: list[int]  # by State
    last: dict[State, float]  # state → newest epoch second a task entered it
    exceptions: dict[str, int]
    redeliveries: int
    runtime: dict[State, Histogram]
    queue_wait: Histogram | None
    prefetch_wait: Histogram | None
    clients: dict[str, int] = {}  # host → tasks that it sent, where somebody wants to know
    latency: Histogram | None = None  # where somebody wants to know
    newest_prefetch: float | None = None  # seconds, of the task that was started last
    inherited: bool = False  # some of it was counted under another key before

    @classmethod
    def empty(cls) -> Aggregate:
        """Return a cell in which nothing happened yet."""
        return cls([0] * len(State), {}, {}, 0, {}, None, None)

    def merge(self, other: Aggregate) -> None:
        """Add another cell's sums to these, but for those by exception and client."""
        self.transitions = [
            mine + theirs for mine, theirs in zip(self.transitions, other.transitions, strict=True)
        ]
        for state, at in other.last.items():
            self.last[state] = max(at, self.last.get(state, at))
        self.redeliveries += other.redeliveries
        self.inherited = self.inherited or other.inherited
        for state, histogram in other.runtime.items():
            self.runtime[state] = _merged(self.runtime.get(state), histogram)
        self.queue_wait = _merged(self.queue_wait, other.queue_wait) if other.queue_wait else self.queue_wait
        self.prefetch_wait = (
            _merged(self.prefetch_wait, other.prefetch_wait) if other.prefetch_wait else self.prefetch_wait
        )
        self.latency = _merged(self.latency, other.latency) if other.latency else self.latency
        if self.newest_prefetch is None:
            self.newest_prefetch = other.newest_prefetch

    def copy(self) -> Aggregate:
        """Return a copy that what is booked later does not change."""
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
            self.newest_prefetch,
            self.inherited,
        )


def _merged(mine: Histogram | None, theirs: Histogram) -> Histogram:
    if mine is None:
        return theirs.copy()
    mine.merge(theirs)
    return mine


class _Quota(Struct, gc=False):
    """How many series there may be of a label whose values are not in the key, and how many there are."""

    per_label_set: int
    limit: int
    used: int = 0

    def count(self, sums: dict[str, int], value: str, times: int) -> int:
        """Add to a key's sum for a value; return how much of it went to `other`, for want of room."""
        overflowed = 0
        if value not in sums:
            full = len(sums) >= self.per_label_set or self.used >= self.limit
            if full and value not in (UNKNOWN, OTHER):
                value, overflowed = OTHER, times
            self.used += value not in sums
        sums[value] = sums.get(value, 0) + times
        return overflowed


class Failure(Struct, frozen=True, gc=False):
    """One failure, of some class of exception, at an epoch second of the worker's clock."""

    at: float
    label_set: LabelSet
    worker: str
    exception: str
    uuid: str


class Aggregates:
    """Sums by key, and a door for each thing that is concluded from events.

    `runtime_bounds` and `wait_bounds` are upper bucket bounds in seconds, rising, without +Inf. Exceptions
    and clients are labels whose values are not in the label set; each may have `max_series` series.
    Histograms have native buckets with `native_histograms`, and exemplars with `exemplars`; they observe the
    share `histogram_sample_rate` of the tasks, chosen by uuid, None for all. `latency`: observe the time from
    sent to started, or from received where no task-sent is known.
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
        self._sample_rate = histogram_sample_rate
        self._latency = latency
        self.negative_waits = 0  # that were counted as 0 s
        self.overflowed = 0  # failures and sendings whose exception or client was counted as other
        self.failures: deque[Failure] = deque(maxlen=MAX_FAILURES)  # the newest last
        self._exceptions = _Quota(MAX_EXCEPTIONS, max_series)
        self._clients = _Quota(MAX_CLIENTS, max_series)
        self._aggregates: dict[LabelSet, Aggregate] = {}
        self._unshared: dict[LabelSet, Aggregate] = {}  # those of them that are in no snapshot

    def snapshot(self) -> dict[LabelSet, Aggregate]:
        """Return all sums as they are now. They stay so: what is booked next is booked in copies.

        So it takes as long as a dict of them does, and each scrape costs one copy of what changed since.
        """
        self._unshared.clear()
        return self._aggregates.copy()

    def restore(self, label_set: LabelSet, aggregate: Aggregate) -> None:
        """Add the sums of an earlier process under a key."""
        self._absorb(label_set, aggregate)

    # -- what is booked. Of a time the seconds, below 0 by the skew of two clocks, and the task's uuid ------

    def touch(self, label_set: LabelSet) -> None:
        """Note that a label set exists: its sums start at 0."""
        self._writable(label_set)

    def count_transition(self, label_set: LabelSet, state: State, at: float) -> None:
        """Count a task that entered a state, at an epoch second of the sender's clock."""
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
        """Count a failure by its class of exception, and remember it for a while."""
        exceptions = self._writable(failure.label_set).exceptions
        self.overflowed += self._exceptions.count(exceptions, clipped(failure.exception), 1)
        if failure.label_set is not EXCLUDED:
            self.failures.append(failure)

    def observe_runtime(
        self, label_set: LabelSet, state: State, seconds: float, uuid: str | None = None
    ) -> None:
        """Observe how long an execution took that ended in SUCCESS, FAILURE or RETRY."""
        aggregate = self._unshared.get(label_set) or self._writable(label_set)
        histogram = aggregate.runtime.get(state)
        if histogram is None:
            histogram = aggregate.runtime[state] = self._histogram(self.runtime_bounds)
        self._observe(histogram, self.runtime_bounds, seconds, uuid)

    def observe_start(
        self, label_set: LabelSet, at: float, ready: float | None, received: float | None, uuid: str
    ) -> None:
        """Observe how long a task waited that was started at an epoch second.

        `ready` is when it was sent (or its eta), `received` when a worker received it (or its eta).
        """
        if ready is not None:
            self.observe_queue_wait(label_set, at - ready, uuid)
        if received is not None:
            self.observe_prefetch_wait(label_set, at - received, uuid)
        since = received if ready is None else ready
        if self._latency and since is not None:
            aggregate = self._writable(label_set)
            if aggregate.latency is None:
                aggregate.latency = self._histogram(self.wait_bounds)
            self._observe(aggregate.latency, self.wait_bounds, max(0.0, at - since), uuid)

    def observe_queue_wait(self, label_set: LabelSet, seconds: float, uuid: str | None = None) -> None:
        """Observe the time from sent (or eta) to started."""
        aggregate = self._unshared.get(label_set) or self._writable(label_set)
        if aggregate.queue_wait is None:
            aggregate.queue_wait = self._histogram(self.wait_bounds)
        self._observe(aggregate.queue_wait, self.wait_bounds, seconds, uuid)

    def observe_prefetch_wait(self, label_set: LabelSet, seconds: float, uuid: str | None = None) -> None:
        """Observe the time from received by a worker (or eta) to started by it."""
        aggregate = self._unshared.get(label_set) or self._writable(label_set)
        if aggregate.prefetch_wait is None:
            aggregate.prefetch_wait = self._histogram(self.wait_bounds)
        aggregate.newest_prefetch = seconds
        self._observe(aggregate.prefetch_wait, self.wait_bounds, seconds, uuid)

    def count_redelivery(self, label_set: LabelSet) -> None:
        """Count a task that was received again, in the same attempt."""
        self._writable(label_set).redeliveries += 1

    def merge(self, label_set: LabelSet, into: LabelSet) -> None:
        """Give a label set up: what was counted under it moves to another."""
        if label_set in self._aggregates:
            aggregate = self._writable(label_set)
            del self._aggregates[label_set]
            del self._unshared[label_set]
            self._exceptions.used -= len(aggregate.exceptions)
            self._clients.used -= len(aggregate.clients)
            aggregate.inherited = True
            self._absorb(into, aggregate)

    def remove_clients(self, hosts: Collection[str]) -> None:
        """Drop what clients on these hosts sent from the sums by client; it stays in all others."""
        for label_set in [
            label_set
            for label_set, aggregate in self._aggregates.items()
            if not aggregate.clients.keys().isdisjoint(hosts)
        ]:
            clients = self._writable(label_set).clients
            for client in clients.keys() & hosts:
                del clients[client]
                self._clients.used -= 1

    # -- how -------------------------------------------------------------------------------------------

    def _writable(self, label_set: LabelSet) -> Aggregate:
        """Return the sums of a key, to be changed."""
        aggregate = self._unshared.get(label_set)
        if aggregate is None:
            shared = self._aggregates.get(label_set)
            aggregate = self._unshared[label_set] = self._aggregates[label_set] = (
                Aggregate.empty() if shared is None else shared.copy()
            )
        return aggregate

    def _observe(
        self, histogram: Histogram, bounds: Sequence[float], seconds: float, uuid: str | None
    ) -> None:
        if seconds < 0:
            self.negative_waits += 1
            seconds = 0.0
        if self._sample_rate is None or is_chosen(uuid or "", self._sample_rate):
            histogram.observe(bounds, seconds, uuid)

    def _absorb(self, label_set: LabelSet, other: Aggregate) -> None:
        aggregate = self._writable(label_set)
        aggregate.merge(other)
        for exception, times in other.exceptions.items():
            self.overflowed += self._exceptions.count(aggregate.exceptions, exception, times)
        for client, times in other.clients.items():
            self.overflowed += self._clients.count(aggregate.clients, client, times)

    def _histogram(self, bounds: Sequence[float]) -> Histogram:
        counts, native, exemplars = [0] * (len(bounds) + 1), self.native_histograms, self.exemplars
        return Histogram(counts, 0.0, {} if native else None, {} if exemplars else None)


def is_chosen(uuid: str, share: float) -> bool:
    """Tell whether a task is of the share that histograms observe: all of its observations, or none."""
    return zlib.crc32(uuid.encode()) < share * 2**32
