"""The answer of /api/v1/status, which the pages and `top` show.

The descriptions are those of its JSON Schema, docs/reference/status-api.schema.json. Within a version fields
are added; none is renamed, removed or given another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from msgspec import Meta, Struct

from celery_exporter.status.finding import Finding

VERSION = 1


class BrokerStatus(Struct, frozen=True):
    """The broker, and the event subscription on it."""

    url: Annotated[str, Meta(description="Broker URL without passwords.")]
    up: Annotated[bool, Meta(description="Whether the event subscription is open.")]
    reconnects: Annotated[int, Meta(description="Reconnects since the start of the exporter.")]
    last_event: Annotated[float | None, Meta(description="When the last event was received.")]
    event_lag: Annotated[float | None, Meta(description="Seconds from its timestamp until it was received.")]
    events_per_second: Annotated[
        float | None,
        Meta(description="Events received in `window`, a second. Null while no event can be received."),
    ]
    unacked: Annotated[
        int | None, Meta(description="Messages that workers received and did not acknowledge. Redis only.")
    ]
    blocked: Annotated[
        bool | None, Meta(description="Whether the broker blocks publishers. RabbitMQ only.")
    ] = None
    down_since: Annotated[
        float | None,
        Meta(description="When it showed the last sign of life. Null while the subscription is open."),
    ] = None
    error: Annotated[
        str | None, Meta(description="Its own error since then, without passwords. Null before any.")
    ] = None
    active: Annotated[
        bool | None,
        Meta(
            description="Whether the broker sends events to this exporter, and not to another one on its "
            "durable queue. Null without such a queue."
        ),
    ] = None


class WorkerStatus(Struct, frozen=True):
    """One worker. What it executes is null if it is down."""

    name: Annotated[str, Meta(description="Node name.")]
    up: Annotated[bool, Meta(description="Not offline, and an event came within --worker-timeout.")]
    active: Annotated[int | None, Meta(description="Tasks that it executes.")]
    pool_size: Annotated[int | None, Meta(description="Tasks that it can execute at once.")]
    processed: Annotated[
        int, Meta(description="Tasks accepted by its pool, including those before a restart.")
    ]
    load: Annotated[float | None, Meta(description="Load average of its host over one minute.")]
    clock_skew: Annotated[float | None, Meta(description="Its clock minus that of the exporter, in seconds.")]
    task_events: Annotated[bool | None, Meta(description="Whether it sends task events (-E).")]
    heartbeat: Annotated[float | None, Meta(description="When the last heartbeat was received.")]
    version: Annotated[str, Meta(description="Version of its Celery. Empty if unknown.")]
    pool_max: Annotated[int | None, Meta(description="The `pool_size` up to which --autoscale grows.")] = None
    pool: Annotated[str | None, Meta(description="Kind of its pool, such as prefork.")] = None
    prefetch: Annotated[int | None, Meta(description="Tasks that it takes from the broker at once.")] = None
    restarts: Annotated[int, Meta(description="Restarts since the exporter knows it.")] = 0
    max_resident_bytes: Annotated[
        int | None, Meta(description="Largest memory that its main process has used.")
    ] = None
    queues: Annotated[
        Sequence[str] | None, Meta(description="Queues that it consumes, as shown by --queue-name-rule.")
    ] = None


class QueueStatus(Struct, frozen=True):
    """One queue."""

    name: Annotated[str, Meta(description="Name, as shown by --queue-name-rule.")]
    length: Annotated[int | None, Meta(description="Messages ready for delivery.")]
    oldest: Annotated[float | None, Meta(description="When its oldest message was sent.")]
    consumers: Annotated[int | None, Meta(description="Workers that consume it.")]
    processes: Annotated[int | None, Meta(description="Tasks that these workers can execute at once.")]
    lengths: Annotated[
        Sequence[tuple[float, int | None]], Meta(description="Time and length, over the last 15 minutes.")
    ]


class TaskStatus(Struct, frozen=True):
    """One task name: what happened in `window` (null while unknown), and unfinished tasks."""

    name: Annotated[str, Meta(description="Name of the task.")]
    rates: Annotated[
        Mapping[str, float | None],
        Meta(
            description="Tasks a second that entered each Celery state. PENDING (sent) is null if no "
            "task-sent event of the task was received."
        ),
    ]
    failure_share: Annotated[float | None, Meta(description="FAILURE / (SUCCESS + FAILURE).")]
    runtime_p50: Annotated[float | None, Meta(description="Median run time in seconds.")]
    runtime_p95: Annotated[float | None, Meta(description="95th percentile of the run time in seconds.")]
    wait_p50: Annotated[float | None, Meta(description="Median seconds from sent (or eta) to started.")]
    wait_p95: Annotated[float | None, Meta(description="95th percentile of the same.")]
    open: Annotated[Mapping[str, int], Meta(description="Unfinished tasks by state.")]
    oldest: Annotated[
        float | None, Meta(description="When the task that is longest in its state entered it.")
    ]


class FailureStatus(Struct, frozen=True):
    """One recent failure. The exporter stores no arguments, exception texts or tracebacks."""

    at: Annotated[float, Meta(description="When the task failed, by the worker's clock.")]
    task: Annotated[str, Meta(description="Name of the task.")]
    worker: Annotated[str, Meta(description="Node name of the worker.")]
    exception: Annotated[str, Meta(description="Class of the exception.")]
    uuid: Annotated[str, Meta(description="Id of the task.")]


class FailureGroup(Struct, frozen=True):
    """The failures with one exception in tasks of one name."""

    exception: Annotated[str, Meta(description="Class of the exception.")]
    task: Annotated[str, Meta(description="Name of the task.")]
    total: Annotated[int, Meta(description="Failures since the counters began.")]
    recent: Annotated[int, Meta(description="Of these, those among the newest 50 of all failures.")]
    last: Annotated[float | None, Meta(description="When the newest of `recent` was, by the worker's clock.")]
    worker: Annotated[str, Meta(description="Node name of the worker of that one.")]
    uuid: Annotated[str, Meta(description="Id of the task of that one.")]


class Status(Struct, frozen=True):
    """The whole answer. Times are Unix times in seconds, by the exporter's clock. Null means unknown."""

    version: Annotated[int, Meta(description="Version of this format.")]
    exporter_version: Annotated[str, Meta(description="Version of the exporter.")]
    at: Annotated[float, Meta(description="When this answer was computed. It is reused for at least 2 s.")]
    started: Annotated[float, Meta(description="When the exporter started.")]
    window: Annotated[
        float, Meta(description="Seconds of rates and quantiles: 300 to 375, less right after the start.")
    ]
    broker: Annotated[BrokerStatus, Meta(description="The broker, and the event subscription on it.")]
    findings: Annotated[
        Sequence[Finding], Meta(description="Results of all health checks, also of those that are ok.")
    ]
    workers: Annotated[Sequence[WorkerStatus], Meta(description="Workers by name.")]
    queues: Annotated[Sequence[QueueStatus], Meta(description="Queues by name.")]
    tasks: Annotated[Sequence[TaskStatus], Meta(description="Task names in alphabetical order.")]
    failures: Annotated[
        Sequence[FailureStatus], Meta(description="At most 50 recent failures, the newest first.")
    ]
    failure_groups: Annotated[
        Sequence[FailureGroup], Meta(description="By exception and task, those with new failures first.")
    ] = ()
