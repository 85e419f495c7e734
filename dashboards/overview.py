"""How the cluster is doing: what to look at first."""

from dashboards import promql as q
from dashboards.build import Board, only
from dashboards.panels import (
    HEARS,
    ONLINE,
    PLAIN,
    RATE,
    SECONDS,
    SHARE,
    Column,
    lines,
    stat,
    table,
)

BOARD = Board(
    uid="celery-overview",
    title="Celery / Overview",
    description="How a Celery cluster is doing: workers, throughput, failures, queues, waiting times.",
    variables=("job", "queue", "task", "worker"),
    links={"Tasks": "celery-tasks", "Workers": "celery-workers", "Exporter": "celery-exporter"},
    rows={
        "Now": [
            stat(
                "Active workers",
                PLAIN,
                "Workers that are up, on all queues.",
                "sum(celery_workers_online)",
                good=1,
            ),
            stat(
                "Tasks a second",
                RATE,
                "Tasks that succeeded or failed.",
                q.FINISHED,
                over=300,
            ),
            stat(
                "Active tasks",
                PLAIN,
                "Tasks that workers execute now, as they say.",
                "sum(celery_worker_active_tasks)",
                none="no worker",
            ),
            stat(
                "Success rate",
                SHARE,
                "Share of successes among tasks that finished. Retries have not finished.",
                q.SUCCESS_SHARE,
                over=300,
                none="none finished",
                good=0.9,
            ),
            stat(
                "Saturation",
                SHARE,
                "Active tasks as a share of what all pools can execute at once. At 100 % new tasks wait.",
                q.SATURATION,
                none="no worker",
                bad=(0.8, 0.95),
            ),
            stat(
                "Messages waiting",
                PLAIN,
                "Messages in the queues that could be read, all priorities.",
                "sum(celery_queue_length)",
                none="not read",
            ),
            stat(
                "Oldest waiting",
                SECONDS,
                "Time since the oldest task that was not started was sent or received; "
                "tasks with a countdown or eta are among them.",
                q.OLDEST_WAITING,
                bad=(60, 600),
            ),
            stat(
                "Exporter",
                PLAIN,
                q.HEARING_MEANS,
                q.HEARING,
                meanings=HEARS,
                none="not scraped",
            ),
        ],
        "Tasks": [
            lines(
                "Success and failure rate",
                RATE,
                "Tasks that succeeded and tasks that failed, a second.",
                {"{{state}}": q.rate('celery_tasks_total{state=~"SUCCESS|FAILURE"}', "state")},
            ),
            lines(
                "Tasks by state",
                RATE,
                "Tasks that entered each state, a second. PENDING is sent.",
                {
                    "{{state}}": q.rate(
                        'celery_tasks_total{state=~"PENDING|STARTED|SUCCESS|FAILURE|RETRY"}', "state"
                    )
                },
                stacked=True,
            ),
            lines(
                "Execution time by task",
                SECONDS,
                "Run time of executions, median and 95th percentile.",
                {
                    "{{task_name}} p50": q.quantile(0.5, "celery_task_runtime_seconds", "task_name"),
                    "{{task_name}} p95": q.quantile(0.95, "celery_task_runtime_seconds", "task_name"),
                },
            ),
            lines(
                "Queue wait by queue",
                SECONDS,
                "From sent (or eta) to started, median and 95th percentile. "
                "Only of tasks whose client publishes task-sent.",
                {
                    "{{queue_name}} p50": q.quantile(0.5, "celery_task_queue_wait_seconds", "queue_name"),
                    "{{queue_name}} p95": q.quantile(0.95, "celery_task_queue_wait_seconds", "queue_name"),
                },
            ),
        ],
        "Queues": [
            lines(
                "Queue length",
                PLAIN,
                "Messages waiting in each queue, all priorities. A queue that cannot be read has no line.",
                {"{{queue_name}}": q.total("celery_queue_length", "queue_name")},
            ),
            lines(
                "Age of the oldest message",
                SECONDS,
                "Time since the message at the head of each queue was sent, 0 when it is empty. "
                "No line where the broker cannot tell.",
                {"{{queue_name}}": q.OLDEST_MESSAGE},
            ),
            table(
                "Queues",
                "What waits in each queue, and who takes it.",
                Column("Queue", "queue_name"),
                [
                    Column("Waiting", q.total("celery_queue_length", "queue_name")),
                    Column("Consumers", q.total("celery_queue_consumers", "queue_name")),
                    Column("Tasks at once", q.total("celery_queue_worker_processes", "queue_name")),
                ],
                link=only("celery-tasks", "queue", "Queue"),
                width=12,
            ),
            table(
                "Worker status",
                "Workers that are up, and those that went down and are not forgotten yet.",
                Column("Worker", "worker"),
                [
                    Column("Status", q.most("celery_worker_up", "worker"), meanings=ONLINE),
                    Column("Active", q.most("celery_worker_active_tasks", "worker")),
                    Column("Pool", q.most("celery_worker_pool_size", "worker")),
                    Column(
                        "Heard",
                        q.since("celery_worker_last_heartbeat_timestamp_seconds", "worker"),
                        SECONDS,
                    ),
                ],
                link=only("celery-workers", "worker", "Worker"),
                width=12,
            ),
        ],
    },
)
