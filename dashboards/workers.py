"""The workers, one by one: up or down, how busy, what they run on."""

from dashboards import promql as q
from dashboards.build import Board, only
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


def each(metric: str) -> str:
    """Return a gauge of each worker."""
    return q.most(metric, "worker")


BOARD = Board(
    uid="celery-workers",
    title="Celery / Workers",
    description="Celery workers: up or down, how busy their pools are, and what they say of themselves.",
    variables=("job", "worker"),
    links={"Overview": "celery-overview", "Tasks": "celery-tasks"},
    rows={
        "Now": [
            stat("Online", PLAIN, "Workers that are up.", "sum(celery_worker_up)", width=4, good=1),
            stat(
                "Offline",
                PLAIN,
                "Workers that went down and are not forgotten yet.",
                "sum(1 - celery_worker_up)",
                width=4,
                bad=(1, 1),
            ),
            stat(
                "Active tasks",
                PLAIN,
                "Tasks that workers execute now, as they say.",
                "sum(celery_worker_active_tasks)",
                width=4,
            ),
            stat(
                "Tasks at once",
                PLAIN,
                "What the pools of all workers can execute at once now; with --autoscale they may grow.",
                "sum(celery_worker_pool_size)",
                width=4,
            ),
            stat(
                "Saturation",
                SHARE,
                "Active tasks as a share of what the pools can execute at once; --autoscale: at their limit.",
                q.SATURATION,
                width=4,
                bad=(0.8, 0.95),
            ),
            stat(
                "Events missed",
                RATE,
                "Tasks that workers started and that no event told of, a second.",
                q.rate("celery_exporter_events_missed_total"),
                width=4,
                over=300,
                bad=(0.01, 1),
            ),
        ],
        "Workers": [
            table(
                "Workers",
                "What each worker says of itself. Active, pool and memory are empty for one that is down, "
                "pool limit without --autoscale, prefetch without a limit. Restarts: in the time shown.",
                Column("Worker", "worker"),
                [
                    Column(
                        "Status",
                        "max by (worker, hostname, software, version, system, pool) (celery_worker_up"
                        " * on (job, instance, worker) group_left (software, version, system, pool)"
                        " celery_worker_info)",
                        meanings=ONLINE,
                    ),
                    Column("Active", each("celery_worker_active_tasks")),
                    Column("Pool size", each("celery_worker_pool_size")),
                    Column("Pool limit", each(q.POOL_LIMIT)),
                    Column("Prefetch", each("celery_worker_prefetch_limit")),
                    Column("Restarts", each("increase(celery_worker_restarts_total[$__range])")),
                    Column("Clock skew", each("celery_worker_clock_skew_seconds"), SECONDS),
                    Column(
                        "Heard", q.since("celery_worker_last_heartbeat_timestamp_seconds", "worker"), SECONDS
                    ),
                    Column("Memory", each("celery_worker_max_resident_memory_bytes"), BYTES),
                    Column("Task events", each("celery_worker_task_events_enabled"), meanings=YES),
                    Column("Host", "hostname"),
                    Column("Pool", "pool"),
                    Column("Software", "software"),
                    Column("Version", "version"),
                    Column("System", "system"),
                ],
                link=only("celery-workers", "worker", "Worker"),
            ),
        ],
        "Work": [
            lines(
                "Active tasks and pool size",
                PLAIN,
                "Tasks that each worker executes, and what it can execute at once: now, and as a limit.",
                {
                    "{{worker}} active": each("celery_worker_active_tasks"),
                    "{{worker}} pool": each("celery_worker_pool_size"),
                    "{{worker}} limit": each(q.POOL_LIMIT),
                },
            ),
            lines(
                "Saturation",
                SHARE,
                "Active tasks as a share of the worker's pool, with --autoscale at its limit.",
                {"{{worker}}": q.share(each("celery_worker_active_tasks"), each(q.POOL_LIMIT))},
            ),
            lines(
                "Processed tasks",
                RATE,
                "Tasks that each worker's pool accepted, a second, as the worker counts them.",
                {"{{worker}}": each("rate(celery_worker_processed_tasks_total[$__rate_interval])")},
            ),
            lines(
                "Restarts",
                PLAIN,
                "Restarts of each worker (its pid changed).",
                {"{{worker}}": each("increase(celery_worker_restarts_total[$__rate_interval])")},
            ),
        ],
        "Machines": [
            lines(
                "Load average",
                PLAIN,
                "Load of each worker's host, over 1, 5 and 15 minutes.",
                {"{{worker}} {{window}}": q.most("celery_worker_load_average", "worker", "window")},
            ),
            lines(
                "Memory",
                BYTES,
                "Largest resident set that each worker's main process has had.",
                {"{{worker}}": each("celery_worker_max_resident_memory_bytes")},
            ),
            lines(
                "Clock skew",
                SECONDS,
                "Each worker's clock minus the exporter's: waiting times are wrong by as much.",
                {"{{worker}}": each("celery_worker_clock_skew_seconds")},
                signed=True,
            ),
            lines(
                "Time since the last heartbeat",
                SECONDS,
                "How long each worker has been silent. A heartbeat comes every 2 s unless told otherwise; "
                "the solo pool is silent while it runs a task.",
                {"{{worker}}": q.since("celery_worker_last_heartbeat_timestamp_seconds", "worker")},
            ),
        ],
    },
)
