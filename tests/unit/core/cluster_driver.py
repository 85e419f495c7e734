"""Drives a cluster in tests: builders of events, a clock, and short forms of the results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

import msgspec

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.cluster import Cluster
from celery_exporter.core.events import Event, EventWithAncestry, decode
from celery_exporter.core.expected import ExpectedTask
from celery_exporter.core.limits import Limits
from celery_exporter.core.records import RecordBuilder
from celery_exporter.core.snapshot import ExporterState, Snapshot, take_snapshot
from celery_exporter.core.task_names import ShownAs
from celery_exporter.core.types import LabelSet, State, Timestamp
from celery_exporter.core.workers import WorkerInfo

T0 = 1_700_000_000.0


class ClusterDriver:
    """A cluster and its aggregates, with a clock. Events pass through the decoder, as on a broker."""

    def __init__(
        self,
        limits: Limits | None = None,
        labels: tuple[str, ...] = ("queue_name",),
        show: ShownAs = str,
        *,
        show_queue: ShownAs = str,
        clients: bool = False,
        hosts: bool = False,
        aggregates: Aggregates | None = None,
        records: RecordBuilder | None = None,
        kept_tasks: int = 0,
        expected: Iterable[ExpectedTask] = (),
    ) -> None:
        self.aggregates = aggregates or Aggregates((0.1, 1.0, 10.0), (0.1, 1.0, 10.0))
        self.cluster = Cluster(
            limits or Limits(),
            self.aggregates,
            labels,
            show,
            show_queue=show_queue,
            clients=clients,
            hosts=hosts,
            records=records,
            kept_tasks=kept_tasks,
            expected=expected,
        )
        self.labels = labels
        self._schema = Event if records is None else EventWithAncestry
        self.clients = clients
        self.now = 100.0
        self.epoch = T0  # epoch seconds at which the listening clock was 0

    def apply(self, *events: dict) -> None:
        for event in decode(json.dumps(list(events)).encode(), self._schema):
            assert isinstance(event, Event), event
            self.cluster.apply(event, self.timestamp())

    def wait(self, seconds: float) -> None:
        """Let listening time pass, a quarter of a second at a time, as the monitor does."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 0.25, end)
            self.cluster.expire(self.timestamp())

    def timestamp(self) -> Timestamp:
        return Timestamp(self.now, self.epoch + self.now)

    def shown(self, *, prefetched: bool = False, **exporter_state) -> Snapshot:
        """Return a snapshot with these fields of the exporter state."""
        defaults = ExporterState(
            at=self.epoch + self.now,
            started=T0,
            version="0",
            broker_up=True,
            queue_stats={},
            unacked=None,
            workers_known=True,
            jobs=[],
            malformed={},
            event_lag=None,
            last_event=None,
            reconnects=0,
            state_errors={},
            web_config_up_to_date=None,
        )
        exporter = msgspec.structs.replace(defaults, **exporter_state)
        return take_snapshot(self.cluster, exporter, prefetched=prefetched)

    def counts(self) -> dict[tuple[str, str, str], int]:
        """Return the transitions by task name, queue name and state, without zeros."""
        return {
            (label_set.task_name, label_set.queue_name, state.name): aggregate.transitions[state]
            for label_set, aggregate in self.aggregates.snapshot().items()
            for state in State
            if aggregate.transitions[state]
        }

    def by_state(self, task: str = "add") -> Counter[str]:
        """Return the transitions of a task name by state, over all queues."""
        counts: Counter[str] = Counter()
        for (name, _, state), count in self.counts().items():
            if name == task:
                counts[state] += count
        return counts

    def gauges(self) -> dict[str, int]:
        """Return how many tasks are in each state now, without zeros."""
        counts: Counter[str] = Counter()
        for group in self.cluster.tasks.in_states():
            counts[group.state.name] += group.count
        return {state: count for state, count in counts.items() if count}

    def aggregate(self, task: str = "add", queue: str = "q", worker: str = ""):
        return self.aggregates.snapshot()[LabelSet(task, queue, worker)]


def task_event(kind: str, uuid: str = "u1", at: float = 0.0, host: str = "w@h", **fields) -> dict:
    return {"hostname": host, "pid": 1, "uuid": uuid, **fields, "timestamp": T0 + at, "type": f"task-{kind}"}


def sent(uuid: str = "u1", at: float = 0.0, name: str = "add", queue: str = "q", **fields) -> dict:
    return task_event("sent", uuid, at, "client@h", **{"name": name, "queue": queue, "retries": 0, **fields})


def received(uuid: str = "u1", at: float = 0.1, name: str = "add", **fields) -> dict:
    return task_event("received", uuid, at, **{"name": name, "retries": 0, **fields})


def started(uuid: str = "u1", at: float = 0.2, **fields) -> dict:
    return task_event("started", uuid, at, **fields)


def succeeded(uuid: str = "u1", at: float = 0.3, **fields) -> dict:
    return task_event("succeeded", uuid, at, **{"runtime": 0.1, **fields})


def failed(uuid: str = "u1", at: float = 0.3, **fields) -> dict:
    return task_event("failed", uuid, at, **{"exception": "ValueError('x')", **fields})


def retried(uuid: str = "u1", at: float = 0.3, **fields) -> dict:
    return task_event("retried", uuid, at, **{"exception": "ValueError('x')", **fields})


def rejected(uuid: str = "u1", at: float = 0.3, **fields) -> dict:
    return task_event("rejected", uuid, at, **{"requeue": False, **fields})


def heartbeat(host: str = "w@h", at: float = 0.0, kind: str = "heartbeat", **fields) -> dict:
    defaults = {"pid": 1, "freq": 2.0, "active": 0, "processed": 0, "loadavg": [0.1, 0.2, 0.3]}
    return {"hostname": host, **defaults, **fields, "timestamp": T0 + at, "type": f"worker-{kind}"}


def by_name(driver: ClusterDriver) -> dict[tuple[str, str], int]:
    """Return the transitions of all queues by task name and state."""
    counts: Counter[tuple[str, str]] = Counter()
    for (name, _, state), count in driver.counts().items():
        counts[name, state] += count
    return dict(counts)


def driver_after(
    *events: dict, queues: tuple[str, ...] = ("q",), names: tuple[str, ...] = ("add", "mul")
) -> ClusterDriver:
    """Return a driver whose workers have replied, and that received each event at its own time."""
    driver = ClusterDriver()
    for worker in ("w@h", "v@h"):
        driver.apply(heartbeat(worker, at=100))
        driver.cluster.record_inspection(
            {worker: WorkerInfo(queues=queues, registered=names)}, driver.timestamp()
        )
    for event in events:
        driver.wait(max(0.0, event["timestamp"] - driver.epoch - driver.now + 100))
        driver.apply(event)
    driver.wait(5)
    return driver
