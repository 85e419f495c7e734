"""One task, or some of them: rates, failures, times, what is in flight."""

from dashboards import promql as q
from dashboards.build import Board, only
from dashboards.panels import MOMENT, PLAIN, RATE, SECONDS, SHARE, Column, heatmap, lines, stat, table


def times(histogram: str) -> dict[str, str]:
    """Return the lines of a histogram of seconds, over all that is chosen."""
    quantiles = {f"p{percent}": q.quantile(percent / 100, histogram) for percent in (50, 95, 99)}
    return {**quantiles, "mean": q.mean(histogram)}


def moment(state: str) -> str:
    """Return the metric of when a task last entered it."""
    return f'celery_task_last_timestamp_seconds{{state="{state}"}}'


def last(state: str) -> str:
    """Return an expression for when each task last entered it, in milliseconds."""
    return f"1000 * {q.most(moment(state), 'task_name')}"


BOARD = Board(
    uid="celery-tasks",
    title="Celery / Tasks",
    description="What happens to a task: choose one above, or several to see their sums.",
    variables=("job", "queue", "task"),
    links={"Overview": "celery-overview", "Workers": "celery-workers"},
    rows={
        "Now": [
            stat(
                "Success rate",
                SHARE,
                "Share of successes among executions that finished.",
                q.SUCCESS_SHARE,
                over=300,
                none="none finished",
                good=0.9,
                width=4,
            ),
            stat(
                "In flight",
                PLAIN,
                "Tasks that were sent and have not finished: pending, received, started or due for a retry.",
                "sum(celery_tasks_in_flight)",
                width=4,
            ),
            stat(
                "Oldest waiting",
                SECONDS,
                "Time since the oldest task that was not started was sent or received.",
                q.OLDEST_WAITING,
                bad=(60, 600),
                width=4,
            ),
            stat(
                "Oldest running",
                SECONDS,
                "Time since the oldest task that runs was started.",
                q.OLDEST_RUNNING,
                width=4,
            ),
            stat(
                "Last success",
                MOMENT,
                "When a task last succeeded, since the exporter knows it.",
                f"1000 * {q.most(moment('SUCCESS'))}",
                none="never",
                width=4,
            ),
            stat(
                "Last failure",
                MOMENT,
                "When a task last failed, since the exporter knows it.",
                f"1000 * {q.most(moment('FAILURE'))}",
                none="never",
                width=4,
            ),
        ],
        "Rates": [
            lines(
                "Rate by state",
                RATE,
                "Tasks that entered each state, a second. PENDING is sent.",
                {"{{state}}": q.rate("celery_tasks_total", "state")},
            ),
            lines(
                "Failures by exception",
                RATE,
                "Failed tasks a second, by the class of the exception.",
                {
                    "{{exception}}": q.rate("celery_task_failures_total", "exception"),
                },
                stacked=True,
            ),
            lines(
                "Failures by task",
                SHARE,
                "Share of failures among executions that finished.",
                {
                    "{{task_name}}": q.share(
                        q.rate('celery_tasks_total{state="FAILURE"}', "task_name"),
                        q.rate('celery_tasks_total{state=~"SUCCESS|FAILURE"}', "task_name"),
                    )
                },
            ),
            lines(
                "Redeliveries",
                RATE,
                "Tasks received again in the same attempt, a second: their worker was lost, they were put "
                "back, or the broker's visibility timeout is shorter than they take.",
                {"{{task_name}}": q.rate("celery_task_redeliveries_total", "task_name")},
            ),
        ],
        "Run time": [
            lines(
                "Run time",
                SECONDS,
                "Run time of executions that ended in SUCCESS, FAILURE or RETRY.",
                times("celery_task_runtime_seconds"),
            ),
            heatmap(
                "Run time, spread",
                "Executions by their run time.",
                "celery_task_runtime_seconds",
            ),
        ],
        "Waiting": [
            lines(
                "Queue wait",
                SECONDS,
                "From sent (or eta) to started. Only of tasks whose client publishes task-sent.",
                times("celery_task_queue_wait_seconds"),
            ),
            heatmap(
                "Queue wait, spread",
                "Executions by how long they waited from sent (or eta) to started.",
                "celery_task_queue_wait_seconds",
            ),
            lines(
                "Prefetch wait",
                SECONDS,
                "From received by a worker (or eta) to started by it: long where workers take more than "
                "they can do.",
                times("celery_task_prefetch_wait_seconds"),
            ),
            heatmap(
                "Prefetch wait, spread",
                "Executions by how long they waited in the worker.",
                "celery_task_prefetch_wait_seconds",
            ),
        ],
        "In flight": [
            lines(
                "In flight by state",
                PLAIN,
                "Tasks that are in each state.",
                {"{{state}}": q.total("celery_tasks_in_flight", "state")},
                stacked=True,
            ),
            lines(
                "Age of the oldest by state",
                SECONDS,
                "Since when the oldest task in each state is in it; 0 while there is none. "
                "A task that only grows older is stuck, or its worker is gone.",
                {
                    "{{state}}": f"{q.since_first('celery_task_oldest_timestamp_seconds', 'state')}"
                    f" or 0 * {q.total('celery_tasks_in_flight', 'state')}"
                },
            ),
            table(
                "Tasks",
                "Each task by name. Last success tells of periodic tasks that stopped.",
                Column("Task", "task_name"),
                [
                    Column("In flight", q.total("celery_tasks_in_flight", "task_name")),
                    Column(
                        "Oldest",
                        q.since_first("celery_task_oldest_timestamp_seconds", "task_name"),
                        SECONDS,
                    ),
                    Column("Last success", last("SUCCESS"), MOMENT),
                    Column("Last failure", last("FAILURE"), MOMENT),
                ],
                link=only("celery-tasks", "task", "Task"),
            ),
        ],
    },
)
