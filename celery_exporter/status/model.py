"""The answer of /api/v1/status: what the status page and `top` show.

Within a version fields are added, and none is renamed, removed or given another meaning. Times are epoch
seconds of this exporter's clock, durations are seconds, rates are per second; null is what is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from celery_exporter.status.finding import Finding

VERSION = 1


class BrokerStatus(Struct, frozen=True):
    """The event path: whether it is open, and how it does."""

    url: str  # without secrets
    up: bool  # the event subscription is open
    reconnects: int  # since this exporter started
    last_event: float | None  # when the newest event was read
    event_lag: float | None  # by how much it was late, by its sender's clock
    events_per_second: float | None  # over the window
    unacked: int | None  # messages that workers hold and did not acknowledge; Redis only
    blocked: bool | None = None  # the broker blocks publishers, so no event can be sent; RabbitMQ only


class WorkerStatus(Struct, frozen=True):
    """One worker; what it does now is not known of one that is down."""

    name: str
    up: bool  # it did not say goodbye, and was heard within --worker-timeout
    active: int | None  # tasks that it executes now
    pool_size: int | None  # tasks that it can execute at once, as its pool is now
    processed: int  # tasks that its pool accepted, over restarts that were seen
    load: float | None  # of its host, over a minute
    clock_skew: float | None  # its clock minus this exporter's
    task_events: bool | None  # whether it sends them (-E)
    heartbeat: float | None  # when it was last heard
    version: str  # of its Celery; empty where it did not say
    pool_max: int | None = None  # tasks that it can execute at once when --autoscale has grown its pool


class QueueStatus(Struct, frozen=True):
    """One queue."""

    name: str
    length: int | None  # messages that wait in it
    oldest: float | None  # when its oldest message was sent
    consumers: int | None  # workers that take from it
    processes: int | None  # tasks that these can execute at once
    lengths: Sequence[tuple[float, int | None]]  # [when, length] of the last 15 minutes, up to now


class TaskStatus(Struct, frozen=True):
    """One task name: what happened in the last `window` seconds, and what is open now."""

    name: str
    rates: Mapping[str, float]  # tasks that entered a state of celery.states; empty right after a start
    failure_share: float | None  # of those that ended in SUCCESS or FAILURE
    runtime_p50: float | None  # half of the executions took less
    runtime_p95: float | None  # 95 % took less
    wait_p50: float | None  # from sent (or eta) to started: half waited less
    wait_p95: float | None  # 95 % waited less
    open: Mapping[str, int]  # unfinished tasks, by the state they are in
    oldest: float | None  # since when the one is in its state that is longest in it


class FailureStatus(Struct, frozen=True):
    """One failure of late. Arguments, the exception's text and the traceback are not kept."""

    at: float  # by the worker's clock
    task: str
    worker: str
    exception: str  # its class
    uuid: str  # of the task


class Status(Struct, frozen=True):
    """All of it. Rates and quantiles are over `window` seconds."""

    version: int  # of what is described here
    exporter_version: str  # as --version has it
    at: float  # when this was made; it is given to all who ask for 2 s, longer where it is large
    started: float  # when this exporter was
    window: float  # 300 to 375, or less after a start
    broker: BrokerStatus  # the event path
    findings: Sequence[Finding]  # also of what is well
    workers: Sequence[WorkerStatus]  # by name, as the next two are
    queues: Sequence[QueueStatus]
    tasks: Sequence[TaskStatus]
    failures: Sequence[FailureStatus]  # the newest first, 50 at most
