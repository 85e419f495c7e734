"""The dashboard of tasks: rates, failures, run times, waits, tasks in flight."""

from dashboards import promql as q
from dashboards.build import Board, url_of_value
from dashboards.panels import (
    AGO,
    ONLINE,
    OVERDUE,
    PLAIN,
    RATE,
    SECONDS,
    SHARE,
    Column,
    heatmap,
    lines,
    stat,
    table,
    with_exemplars,
)


def quantiles_and_mean(histogram: str) -> dict[str, str]:
    """Return lines with the quantiles and the mean of a histogram, over all selected tasks."""
    quantiles = {f"p{percent}": q.quantile(percent / 100, histogram) for percent in (50, 95, 99)}
    return {**quantiles, "mean": q.mean(histogram)}


def last_milliseconds(state: str, *by: str) -> str:
    """Return an expression for the time at which a task last entered a state."""
    timestamp = f'celery_task_last_timestamp_seconds{{state="{state}"}}'
    return f"1000 * {q.maximum(timestamp, *by)}"


def overdue(state: str) -> str:
    """Return an expression for whether a task is overdue: 1 if it is in all shards and replicas."""
    return q.minimum(f'celery_task_overdue{{state="{state}"}}', "task_name")


def next_milliseconds(state: str) -> str:
    """Return an expression for the time at which an expected task is due after its last run."""
    timestamp = f'celery_task_next_expected_timestamp_seconds{{state="{state}"}}'
    return f"1000 * {q.maximum(timestamp, 'task_name')}"


BOARD = Board(
    uid="celery-tasks",
    title="Celery / Tasks",
    description="Tasks by name. With several selected tasks, the panels show their sums.",
    variables=("job", "queue", "task"),
    links={
        "Overview": "celery-overview",
        "Workers": "celery-workers",
        "Task log": "celery-task-log",
        "Points": "celery-points",
    },
    rows={
        "Now": [
            stat(
                "Success rate",
                SHARE,
                "Share of successes among finished tasks.",
                q.SUCCESS_SHARE,
                average_seconds=300,
                no_value="none finished",
                good=0.9,
                width=4,
            ),
            stat(
                "In flight",
                PLAIN,
                "Tasks that have not finished: pending, received, started, or waiting for a retry. Without "
                "task-sent events, pending ones are unknown.",
                "sum(celery_tasks_in_flight)",
                width=4,
            ),
            stat(
                "Oldest waiting",
                SECONDS,
                "Time since the oldest task that has not started was sent or received. Without task-sent "
                "events, only tasks that a worker has received are known.",
                q.OLDEST_WAITING,
                no_value="unknown",
                bad=(60, 600),
                width=4,
            ),
            stat(
                "Oldest running",
                SECONDS,
                "Time since the start of the oldest running task.",
                q.OLDEST_RUNNING,
                width=4,
            ),
            stat(
                "Last success",
                AGO,
                "Time of the last success that the exporter has recorded.",
                last_milliseconds("SUCCESS"),
                no_value="never",
                width=4,
            ),
            stat(
                "Last failure",
                AGO,
                "Time of the last failure that the exporter has recorded.",
                last_milliseconds("FAILURE"),
                no_value="never",
                width=4,
            ),
        ],
        "Rates": [
            lines(
                "Rate by state",
                RATE,
                "Tasks that entered each state, per second. PENDING means sent, and is unknown without "
                "task-sent events.",
                {"{{state}}": q.rate("celery_tasks_total", "state")},
            ),
            lines(
                "Failures by exception",
                RATE,
                "Failed tasks per second, by the class of the exception.",
                {
                    "{{exception}}": q.rate("celery_task_failures_total", "exception"),
                },
                stacked=True,
            ),
            lines(
                "Failures by task",
                SHARE,
                "Share of failures among finished tasks.",
                {
                    "{{task_name}}": q.share(
                        q.rate('celery_tasks_total{state="FAILURE"}', "task_name"),
                        q.rate('celery_tasks_total{state=~"SUCCESS|FAILURE"}', "task_name"),
                    )
                },
                width=8,
            ),
            lines(
                "Retries exceeded",
                RATE,
                "Tasks per second that failed because all of their retries failed (max_retries).",
                {"{{task_name}}": q.rate("celery_task_retries_exceeded_total", "task_name")},
                width=8,
            ),
            lines(
                "Redeliveries",
                RATE,
                "Tasks per second that were received again in the same attempt: their worker was lost, "
                "they were requeued, or the visibility timeout of the broker is shorter than their run "
                "time.",
                {"{{task_name}}": q.rate("celery_task_redeliveries_total", "task_name")},
                width=8,
            ),
        ],
        "Run time": [
            lines(
                "Run time",
                SECONDS,
                "Run time of executions that ended in SUCCESS, FAILURE or RETRY. A dot is one of them "
                "(--exemplars).",
                quantiles_and_mean("celery_task_runtime_seconds"),
                line=with_exemplars,
            ),
            heatmap(
                "Run time, distribution",
                "Executions by run time.",
                "celery_task_runtime_seconds",
            ),
            lines(
                "Busy slots",
                PLAIN,
                "Seconds of execution per second, by task: as many slots of workers does the task keep busy. "
                "An execution counts when it ends.",
                {"{{task_name}}": q.rate("celery_task_execution_seconds_total", "task_name")},
                stacked=True,
                width=24,
            ),
        ],
        "Waiting": [
            lines(
                "Queue wait",
                SECONDS,
                "Time from sent (or eta) to started. Only for tasks whose client sends task-sent events.",
                quantiles_and_mean("celery_task_queue_wait_seconds"),
                line=with_exemplars,
            ),
            heatmap(
                "Queue wait, distribution",
                "Executions by the time from sent (or eta) to started.",
                "celery_task_queue_wait_seconds",
            ),
            lines(
                "Prefetch wait",
                SECONDS,
                "Time from received by a worker (or eta) to started. It is long if workers prefetch more "
                "tasks than they can run.",
                quantiles_and_mean("celery_task_prefetch_wait_seconds"),
                line=with_exemplars,
            ),
            heatmap(
                "Prefetch wait, distribution",
                "Executions by the time that they waited in the worker.",
                "celery_task_prefetch_wait_seconds",
            ),
        ],
        "Measured by tasks": [
            lines(
                "Mean of each field",
                PLAIN,
                "Mean of the numbers that tasks measured themselves (celery_exporter.instrumentation).",
                {"{{task_name}} {{field}}": q.mean("celery_task_measurement", "task_name", "field")},
            ),
            lines(
                "Sum of each field",
                RATE,
                "Sum per second of the numbers that tasks measured themselves.",
                {"{{task_name}} {{field}}": q.rate("celery_task_measurement_sum", "task_name", "field")},
            ),
        ],
        "In flight": [
            lines(
                "In flight by state",
                PLAIN,
                "Unfinished tasks by state.",
                {"{{state}}": q.total("celery_tasks_in_flight", "state")},
                stacked=True,
            ),
            lines(
                "Age of the oldest by state",
                SECONDS,
                "Time since the oldest task in each state entered it; 0 if there is none. "
                "If it grows without end, the task is stuck or its worker is gone.",
                {
                    "{{state}}": f"{q.since_first('celery_task_oldest_timestamp_seconds', 'state')}"
                    f" or 0 * {q.total('celery_tasks_in_flight', 'state')}"
                },
            ),
            table(
                "Tasks",
                "Tasks by name. An old last success can be a periodic task that no longer runs.",
                Column("Task", "task_name"),
                [
                    Column("In flight", q.total("celery_tasks_in_flight", "task_name")),
                    Column(
                        "Oldest",
                        q.since_first("celery_task_oldest_timestamp_seconds", "task_name"),
                        SECONDS,
                    ),
                    Column("Last success", last_milliseconds("SUCCESS", "task_name"), AGO),
                    Column("Last failure", last_milliseconds("FAILURE", "task_name"), AGO),
                ],
                link=url_of_value("celery-tasks", "task", "Task"),
            ),
        ],
        "Beat": [
            table(
                "Beat",
                "Each beat that has replied, by its node name. Without a beat that is online, no periodic "
                "task is sent. Empty for beats that do not reply (beat_enable_remote_control, Celery 5.7).",
                Column("Beat", "worker"),
                [
                    Column("Status", q.maximum("celery_beat_up", "worker"), meanings=ONLINE),
                    Column(
                        "Last reply",
                        q.since_last("celery_beat_last_reply_timestamp_seconds", "worker"),
                        SECONDS,
                    ),
                ],
            ),
            table(
                "Expected tasks",
                "Tasks that have to run by a schedule, and whether they were sent and succeeded in time. A "
                "due time in the past has no run yet. Empty if the configuration file expects no task.",
                Column("Task", "task_name"),
                [
                    Column("Sent", overdue("PENDING"), meanings=OVERDUE),
                    Column("Success", overdue("SUCCESS"), meanings=OVERDUE),
                    Column("Sending due", next_milliseconds("PENDING"), AGO),
                    Column("Success due", next_milliseconds("SUCCESS"), AGO),
                ],
                link=url_of_value("celery-tasks", "task", "Task"),
                no_value="no task is expected",
            ),
        ],
    },
)
