"""The dashboard of the points in InfluxDB: rates, times, and single tasks."""

from dashboards import influxql as q
from dashboards.build import Board, task_log_url, trace_url
from dashboards.panels import PLAIN, RATE, SECONDS, influxql_line, lines, rows, value_of_points
from dashboards.sources import INFLUXDB, TEMPO

#: Tags that are fields, too.
STATUS, ERROR_CODE = '"status"::field', '"error_code"::field'
NEWEST = 100  # rows of a table
IDS = {
    "Task id": {
        "Task log": task_log_url("${__value.raw}"),
        "Trace": trace_url("${__value.raw}"),
    }
}


def percentiles(field: str, measurement: str, *conditions: str) -> dict[str, str]:
    """Return lines with percentiles of a field, over all selected tasks."""
    return {f"p{percent}": q.percentile(percent, field, measurement, *conditions) for percent in (50, 95, 99)}


BOARD = Board(
    uid="celery-points",
    title="Celery / Points",
    description="Points of tasks and of HTTP requests, from InfluxDB 1 or 2 (--influx-url).",
    sources=(INFLUXDB, TEMPO),
    variables=(
        q.tag_variable("service", "Service", "service", "subtask_final"),
        q.tag_variable("task", "Task", "task_type", "subtask_final", q.SERVICE),
    ),
    links={"Tasks": "celery-tasks", "Task log": "celery-task-log"},
    rows={
        "In the time range": [
            value_of_points(
                "Finished",
                PLAIN,
                "Tasks that ended, in any state.",
                q.select(f"count({STATUS})", "subtask_final", q.TASK),
                no_value="none",
            ),
            value_of_points(
                "Failed",
                PLAIN,
                "Tasks that failed.",
                q.select(f"count({ERROR_CODE})", "subtask_errors", q.TASK),
                no_value="none",
                bad=(1, 100),
            ),
            value_of_points(
                "Mean run time",
                SECONDS,
                "Mean run time of the last attempt of tasks that ended.",
                q.select('mean("execution_time")', "subtask_final", q.TASK),
                no_value="none finished",
            ),
            value_of_points(
                "Mean transport time",
                SECONDS,
                "Mean time from sent to received by a worker. Only for tasks whose client sends task-sent "
                "events.",
                q.select('mean("transport_time")', "worker_requests", q.TASK),
                no_value="unknown",
            ),
            value_of_points(
                "Mean time in the worker",
                SECONDS,
                "Mean time from received by a worker to started.",
                q.select('mean("transport_time")', "worker_queue", q.TASK),
                no_value="none started",
            ),
            value_of_points(
                "HTTP errors",
                PLAIN,
                "HTTP requests to the exporter that failed.",
                q.select('count("request_id")', "errors"),
                no_value="none",
                bad=(1, 100),
            ),
        ],
        "Tasks": [
            lines(
                "Ends by state",
                RATE,
                "Tasks that ended per second, by their final state (subtask_final).",
                {"$tag_status": q.rate(STATUS, "subtask_final", q.TASK, by=("status",))},
                line=influxql_line,
                no_value="none finished",
                stacked=True,
            ),
            lines(
                "Failures by exception",
                RATE,
                "Failed tasks per second, by the class of the exception (subtask_errors).",
                {"$tag_error_code": q.rate(ERROR_CODE, "subtask_errors", q.TASK, by=("error_code",))},
                line=influxql_line,
                no_value="no failures",
                stacked=True,
            ),
            lines(
                "Run time by task",
                SECONDS,
                "95th percentile of the run time (subtask_final).",
                {
                    "$tag_task_type": q.percentile(
                        95, "execution_time", "subtask_final", q.TASK, by=("task_type",)
                    )
                },
                line=influxql_line,
                no_value="none finished",
            ),
            lines(
                "Measured by the application",
                PLAIN,
                "Mean of each number that tasks measured themselves (subtask_execution). Its name and unit "
                "are those of the application.",
                {"$col": q.over_time("mean(*)", "subtask_execution", q.TASK)},
                line=influxql_line,
                no_value="no measurements",
                signed=True,
            ),
        ],
        "Waiting": [
            lines(
                "Transport time",
                SECONDS,
                "Time from sent to received by a worker (worker_requests).",
                percentiles("transport_time", "worker_requests", q.TASK),
                line=influxql_line,
                no_value="no transport times",
            ),
            lines(
                "Time in the worker",
                SECONDS,
                "Time from received by a worker to started (worker_queue).",
                percentiles("transport_time", "worker_queue", q.TASK),
                line=influxql_line,
                no_value="none started",
            ),
        ],
        "Single tasks": [
            rows(
                "Latest failures",
                f"The newest {NEWEST} failures. The id of a task links to its log and its trace.",
                q.select(
                    f'"task_type" AS "Task", {ERROR_CODE} AS "Exception", "subtask_id" AS "Task id"',
                    "subtask_errors",
                    q.TASK,
                )
                + f" ORDER BY time DESC LIMIT {NEWEST}",
                units={},
                links=IDS,
                no_value="no failures",
            ),
            rows(
                "Longest run times",
                "The tasks with the longest run times in the time range. The id of a task links to its log "
                "and its trace.",
                q.select(
                    f'top("execution_time", {NEWEST}) AS "Run time", "task_type" AS "Task", '
                    f'{STATUS} AS "State", "subtask_id" AS "Task id"',
                    "subtask_final",
                    q.TASK,
                ),
                units={"Run time": SECONDS},
                highest="Run time",
                links=IDS,
                no_value="no finished tasks",
            ),
        ],
        "Exporter": [
            lines(
                "HTTP requests",
                RATE,
                "HTTP requests to the exporter per second, by route (requests).",
                {"$tag_route": q.rate('"request_id"', "requests", by=("route",))},
                line=influxql_line,
                no_value="no requests",
                width=8,
            ),
            lines(
                "Duration of HTTP requests",
                SECONDS,
                "95th percentile of the duration of HTTP requests to the exporter, by route (requests).",
                {"$tag_route": q.percentile(95, "execution_time", "requests", by=("route",))},
                line=influxql_line,
                no_value="no requests",
                width=8,
            ),
            lines(
                "Failed HTTP requests",
                RATE,
                "Failed HTTP requests to the exporter per second, by route and status (errors).",
                {
                    "$tag_route $tag_status_code": q.rate(
                        '"request_id"', "errors", by=("route", "status_code")
                    )
                },
                line=influxql_line,
                no_value="no failed requests",
                width=8,
            ),
        ],
    },
)
