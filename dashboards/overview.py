"""The dashboard of a cluster: workers, throughput, failures, queues."""

from dashboards import promql as q
from dashboards.build import Board, url_of_value
from dashboards.panels import (
    ONLINE,
    PLAIN,
    RATE,
    RECEIVING_STATES,
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
    description="A Celery cluster: workers, throughput, failures, queues, waiting times.",
    variables=("job", "queue", "task", "worker"),
    links={
        "Tasks": "celery-tasks",
        "Workers": "celery-workers",
        "Exporter": "celery-exporter",
        "Task log": "celery-task-log",
    },
    rows={
        "Now": [
            stat(
                "Active workers",
                PLAIN,
                "Workers that are up, for all queues.",
                "sum(celery_workers_online)",
                good=1,
            ),
            stat(
                "Tasks per second",
                RATE,
                "Tasks that succeeded or failed.",
                q.FINISHED,
                average_seconds=300,
            ),
            stat(
                "Active tasks",
                PLAIN,
                "Tasks that workers report as running.",
                "sum(celery_worker_active_tasks)",
                no_value="no worker",
            ),
            stat(
                "Success rate",
                SHARE,
                "Share of successes among finished tasks. A task that is retried has not finished.",
                q.SUCCESS_SHARE,
                average_seconds=300,
                no_value="none finished",
                good=0.9,
            ),
            stat(
                "Saturation",
                SHARE,
                "Active tasks as a share of the size of all pools. At 100 %, new tasks wait.",
                q.SATURATION,
                no_value="no worker",
                bad=(0.8, 0.95),
            ),
            stat(
                "Messages waiting",
                PLAIN,
                "Messages in all queues whose length is known, with all priorities.",
                "sum(celery_queue_length)",
                no_value="unknown",
            ),
            stat(
                "Oldest waiting",
                SECONDS,
                "Time since the oldest task that has not started was sent or received. "
                "This includes tasks with a countdown or eta. Without task-sent events, only tasks that a "
                "worker has received are known.",
                q.OLDEST_WAITING,
                no_value="unknown",
                bad=(60, 600),
            ),
            stat(
                "Exporter",
                PLAIN,
                q.RECEIVING_DESCRIPTION,
                q.RECEIVING,
                meanings=RECEIVING_STATES,
                no_value="not scraped",
            ),
        ],
        "Tasks": [
            lines(
                "Success and failure rate",
                RATE,
                "Succeeded and failed tasks per second.",
                {"{{state}}": q.rate('celery_tasks_total{state=~"SUCCESS|FAILURE"}', "state")},
            ),
            lines(
                "Tasks by state",
                RATE,
                "Tasks that entered each state, per second. PENDING means sent, and is unknown without "
                "task-sent events.",
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
                "Median and 95th percentile of the run time.",
                {
                    "{{task_name}} p50": q.quantile(0.5, "celery_task_runtime_seconds", "task_name"),
                    "{{task_name}} p95": q.quantile(0.95, "celery_task_runtime_seconds", "task_name"),
                },
            ),
            lines(
                "Queue wait by queue",
                SECONDS,
                "Median and 95th percentile of the time from sent (or eta) to started. "
                "Only for tasks whose client sends task-sent events.",
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
                "Messages waiting in each queue, with all priorities. A queue of unknown length has no line.",
                {"{{queue_name}}": q.total("celery_queue_length", "queue_name")},
                width=8,
            ),
            lines(
                "Queue length by priority",
                PLAIN,
                "Messages waiting in each priority step, of queues with priorities. On Redis only. Messages "
                "of step 0 are taken first.",
                {
                    "{{queue_name}} {{priority}}": q.total(
                        "celery_queue_priority_length", "queue_name", "priority"
                    )
                },
                stacked=True,
                width=8,
                no_value="no priorities in use",
            ),
            lines(
                "Age of the oldest message",
                SECONDS,
                "Time since the message at the head of each queue was sent; 0 if the queue is empty. "
                "The age is known on Redis only.",
                {"{{queue_name}}": q.OLDEST_MESSAGE},
                width=8,
            ),
            table(
                "Queues",
                "Waiting and unacknowledged messages (these on Redis only), consumers, and processes of the "
                "workers of each queue.",
                Column("Queue", "queue_name"),
                [
                    Column("Waiting", q.total("celery_queue_length", "queue_name")),
                    Column("Unacknowledged", q.total("celery_queue_unacked_messages", "queue_name")),
                    Column("Consumers", q.total("celery_queue_consumers", "queue_name")),
                    Column("Processes", q.total("celery_queue_worker_processes", "queue_name")),
                ],
                link=url_of_value("celery-tasks", "queue", "Queue"),
                width=12,
            ),
            table(
                "Worker status",
                "Workers that are up, and workers that are down and not removed yet.",
                Column("Worker", "worker"),
                [
                    Column("Status", q.maximum("celery_worker_up", "worker"), meanings=ONLINE),
                    Column("Active", q.maximum("celery_worker_active_tasks", "worker")),
                    Column("Pool", q.maximum("celery_worker_pool_size", "worker")),
                    Column(
                        "Last seen",
                        q.since_last("celery_worker_last_heartbeat_timestamp_seconds", "worker"),
                        SECONDS,
                    ),
                ],
                link=url_of_value("celery-workers", "worker", "Worker"),
                width=12,
            ),
        ],
    },
)
