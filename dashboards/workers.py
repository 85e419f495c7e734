"""The dashboard of workers: liveness, load of their pools, hosts."""

from dashboards import promql as q
from dashboards.build import Board, url_of_value
from dashboards.panels import (
    BYTES,
    ONLINE,
    PLAIN,
    RATE,
    SECONDS,
    SHARE,
    YES,
    Column,
    lines,
    stat,
    table,
)


def by_worker(metric: str) -> str:
    """Return a gauge by worker."""
    return q.maximum(metric, "worker")


BOARD = Board(
    uid="celery-workers",
    title="Celery / Workers",
    description="Celery workers: up or down, the load of their pools, and the values that they report.",
    variables=("job", "worker"),
    links={"Overview": "celery-overview", "Tasks": "celery-tasks", "Task log": "celery-task-log"},
    rows={
        "Now": [
            stat("Online", PLAIN, "Workers that are up.", "sum(celery_worker_up)", width=4, good=1),
            stat(
                "Offline",
                PLAIN,
                "Workers that are down and not removed yet.",
                "sum(1 - celery_worker_up)",
                width=4,
                bad=(1, 1),
            ),
            stat(
                "Active tasks",
                PLAIN,
                "Tasks that workers report as running.",
                "sum(celery_worker_active_tasks)",
                width=4,
            ),
            stat(
                "Pool size",
                PLAIN,
                "Tasks that the pools of all workers can run at once. With --autoscale, pools can grow.",
                "sum(celery_worker_pool_size)",
                width=4,
            ),
            stat(
                "Saturation",
                SHARE,
                "Active tasks as a share of the pool size; with --autoscale, of its maximum.",
                q.SATURATION,
                width=4,
                bad=(0.8, 0.95),
            ),
            stat(
                "Events missed",
                RATE,
                "Tasks per second that workers counted as started and that the exporter received no event "
                "for.",
                q.rate("celery_exporter_events_missed_total"),
                width=4,
                average_seconds=300,
                bad=(0.01, 1),
            ),
        ],
        "Workers": [
            table(
                "Workers",
                "Values that workers report. Active, pool size, age and memory are empty for a worker that "
                "is down, and prefetch without a limit. Restarts are those in the time range of the "
                "dashboard.",
                Column("Worker", "worker"),
                [
                    Column(
                        "Status",
                        "max by (worker, hostname, software, version, system, pool) (celery_worker_up"
                        " * on (job, instance, worker) group_left (software, version, system, pool)"
                        " celery_worker_info)",
                        meanings=ONLINE,
                    ),
                    Column("Active", by_worker("celery_worker_active_tasks")),
                    Column("Pool size", by_worker("celery_worker_pool_size")),
                    Column("Pool limit", by_worker(q.POOL_LIMIT)),
                    Column("Prefetch", by_worker("celery_worker_prefetch_limit")),
                    Column("Restarts", by_worker("increase(celery_worker_restarts_total[$__range])")),
                    Column("Age", q.since_last("celery_worker_start_timestamp_seconds", "worker"), SECONDS),
                    Column("Clock skew", by_worker("celery_worker_clock_skew_seconds"), SECONDS),
                    Column(
                        "Last seen",
                        q.since_last("celery_worker_last_heartbeat_timestamp_seconds", "worker"),
                        SECONDS,
                    ),
                    Column("Memory", by_worker("celery_worker_max_resident_memory_bytes"), BYTES),
                    Column("Task events", by_worker("celery_worker_task_events_enabled"), meanings=YES),
                    Column("Host", "hostname"),
                    Column("Pool", "pool"),
                    Column("Software", "software"),
                    Column("Version", "version"),
                    Column("System", "system"),
                ],
                link=url_of_value("celery-workers", "worker", "Worker"),
            ),
        ],
        "Work": [
            lines(
                "Active tasks and pool size",
                PLAIN,
                "Running tasks of each worker, the size of its pool, and the maximum of that size.",
                {
                    "{{worker}} active": by_worker("celery_worker_active_tasks"),
                    "{{worker}} pool": by_worker("celery_worker_pool_size"),
                    "{{worker}} limit": by_worker(q.POOL_LIMIT),
                },
            ),
            lines(
                "Saturation",
                SHARE,
                "Active tasks as a share of the worker's pool size; with --autoscale, of its maximum.",
                {"{{worker}}": q.share(by_worker("celery_worker_active_tasks"), by_worker(q.POOL_LIMIT))},
            ),
            lines(
                "Inspected tasks",
                PLAIN,
                "Tasks of each worker as celery inspect shows them: scheduled (eta not reached), reserved "
                "(not started) and active.",
                {"{{worker}} {{command}}": q.maximum("celery_worker_inspected_tasks", "worker", "command")},
                width=8,
            ),
            lines(
                "Processed tasks",
                RATE,
                "Tasks per second that the pool of each worker accepted, as counted by the worker.",
                {"{{worker}}": by_worker("rate(celery_worker_processed_tasks_total[$__rate_interval])")},
                width=8,
            ),
            lines(
                "Restarts",
                PLAIN,
                "Restarts of each worker: changes of its process id.",
                {"{{worker}}": by_worker("increase(celery_worker_restarts_total[$__rate_interval])")},
                width=8,
            ),
        ],
        "Hosts": [
            lines(
                "Load average",
                PLAIN,
                "Load of the host of each worker, over 1, 5 and 15 minutes.",
                {"{{worker}} {{window}}": q.maximum("celery_worker_load_average", "worker", "window")},
            ),
            lines(
                "Memory",
                BYTES,
                "Maximum resident memory of the main process of each worker.",
                {"{{worker}}": by_worker("celery_worker_max_resident_memory_bytes")},
            ),
            lines(
                "Clock skew",
                SECONDS,
                "Clock of each worker minus the clock of the exporter. Waiting times are wrong by "
                "this amount.",
                {"{{worker}}": by_worker("celery_worker_clock_skew_seconds")},
                signed=True,
            ),
            lines(
                "Time since the last heartbeat",
                SECONDS,
                "Time since the last event of each worker. By default, workers send a heartbeat every 2 s. "
                "The solo pool sends none while it runs a task.",
                {"{{worker}}": q.since_last("celery_worker_last_heartbeat_timestamp_seconds", "worker")},
            ),
        ],
    },
)
