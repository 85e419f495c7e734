"""The dashboard of single tasks: the log of their transitions in Loki."""

from dashboards import logql as q
from dashboards.build import Board, trace_link
from dashboards.panels import RATE, lines, log, logql_line
from dashboards.sources import LOKI, PROMETHEUS, TEMPO

FAILURES = q.selected('state="FAILURE"')
DETAILS = ("retries", "worker", "exception", *q.DURATIONS)

BOARD = Board(
    uid="celery-task-log",
    title="Celery / Task log",
    description="Single tasks: each transition that the exporter recorded, from Loki (--loki-url). The "
    "choices of queue, task and worker are those of the metrics of the job.",
    sources=(PROMETHEUS, LOKI, TEMPO),
    variables=(
        "job",
        q.label_variable("service", "Service", q.ANY_STATE),
        q.label_variable("state", "State", q.SERVICE),
        "queue",
        "task",
        "worker",
        q.text_variable("uuid", "UUID", "The id of a task, or its beginning."),
    ),
    links={"Tasks": "celery-tasks", "Points": "celery-points"},
    rows={
        "Rates": [
            lines(
                "Rate by state",
                RATE,
                "Recorded transitions per second, by the state that the task entered. PENDING means sent. "
                "With --histogram-sample-rate, only the sampled tasks are recorded.",
                {"{{state}}": q.rate(q.selected(), "state")},
                line=logql_line,
                no_value="no transitions",
                stacked=True,
            ),
            lines(
                "Failures by exception",
                RATE,
                "Recorded failures per second, by the class of the exception, whichever states are selected.",
                {"{{exception}}": q.rate(FAILURES, "exception")},
                line=logql_line,
                no_value="no failures",
                stacked=True,
            ),
        ],
        "Log": [
            log(
                "Log",
                "Recorded transitions, the newest first. The details of a line have its fields, and links "
                "to the task and its trace.",
                q.with_line(q.selected(), ("state", "task", "uuid"), DETAILS),
                no_value="no transitions",
            ),
        ],
        "One task": [
            log(
                "Task",
                "Each transition of the task whose complete id is in UUID, the oldest first.",
                q.with_line(q.of_task("uuid"), ("state",), DETAILS),
                no_value="no transitions; enter the id of a task in UUID",
                oldest_first=True,
                width=12,
                links=[trace_link("Trace", "${uuid}")],
            ),
            log(
                "Workflow",
                "Each transition of the tasks of the workflow that this task began, the oldest first.",
                q.with_line(q.of_task("root"), ("state", "task", "uuid"), DETAILS),
                no_value="no transitions; enter the id of the first task of a workflow in UUID",
                oldest_first=True,
                width=12,
                links=[trace_link("Trace", "${uuid}")],
            ),
        ],
    },
)
