"""Short ways to tell a story to the core: events, moments, and what came out."""

from __future__ import annotations

import json
from collections import Counter

import msgspec

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.cluster import Cluster
from celery_exporter.core.events import Event, decode
from celery_exporter.core.limits import Limits
from celery_exporter.core.snapshot import ExporterState, Snapshot, take_snapshot
from celery_exporter.core.task_names import ShownAs
from celery_exporter.core.types import LabelSet, State, Timestamp

T0 = 1_700_000_000.0


class ClusterDriver:
    """A cluster and a ledger that are told events, through the wire format."""

    def __init__(
        self,
        limits: Limits | None = None,
        labels: tuple[str, ...] = ("queue_name",),
        show: ShownAs = str,
        *,
        show_queue: ShownAs = str,
        clients: bool = False,
        hosts: bool = False,
        ledger: Aggregates | None = None,
    ) -> None:
        self.ledger = ledger or Aggregates((0.1, 1.0, 10.0), (0.1, 1.0, 10.0))
        self.cluster = Cluster(
            limits or Limits(), self.ledger, labels, show, show_queue=show_queue, clients=clients, hosts=hosts
        )
        self.labels = labels
        self.clients = clients
        self.now = 100.0
        self.epoch = T0  # when the listening clock began

    def apply(self, *events: dict) -> None:
        for found in decode(json.dumps(list(events)).encode()):
            assert isinstance(found, Event), found
            self.cluster.apply(found, self.moment())

    def wait(self, seconds: float) -> None:
        """Listen for so long, a quarter of a second at a time, as the monitor does."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 0.25, end)
            self.cluster.expire(self.moment())

    def moment(self) -> Timestamp:
        return Timestamp(self.now, self.epoch + self.now)

    def shown(self, *, prefetched: bool = False, **around) -> Snapshot:
        """Return what is shown now, where these things around the cluster are as given."""
        usual = ExporterState(
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
        around = msgspec.structs.replace(usual, **around)
        return take_snapshot(self.cluster, around, prefetched=prefetched)

    def counts(self) -> dict[tuple[str, str, str], int]:
        """What was counted: (task, queue, state) → transitions, zeros left out."""
        return {
            (key.task_name, key.queue_name, state.name): aggregate.transitions[state]
            for key, aggregate in self.ledger.snapshot().items()
            for state in State
            if aggregate.transitions[state]
        }

    def by_state(self, task: str = "add") -> Counter[str]:
        found: Counter[str] = Counter()
        for (name, _, state), count in self.counts().items():
            if name == task:
                found[state] += count
        return found

    def gauges(self) -> dict[str, int]:
        """How many tasks are in which state now, zeros left out."""
        found: Counter[str] = Counter()
        for group in self.cluster.tasks.in_states():
            found[group.state.name] += group.count
        return {state: count for state, count in found.items() if count}

    def aggregate(self, task: str = "add", queue: str = "q", worker: str = ""):
        return self.ledger.snapshot()[LabelSet(task, queue, worker)]


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
    usual = {"pid": 1, "freq": 2.0, "active": 0, "processed": 0, "loadavg": [0.1, 0.2, 0.3]}
    return {"hostname": host, **usual, **fields, "timestamp": T0 + at, "type": f"worker-{kind}"}
