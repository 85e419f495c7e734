"""The dashboard of objectives: error budgets and burn rates, from the rules of the mixin."""

from dashboards import promql as q
from dashboards.build import Board
from dashboards.panels import PLAIN, RATE, SHARE, Column, lines, stat, table

LEVEL = "job_objective_sli:celery_objective_"
BY = ("objective", "sli")
NONE = "no objectives"
LEGEND = "{{objective}} {{sli}}"


def burn_rate(window: str) -> str:
    """Return an expression for the burn rate; 1 spends the budget exactly in its period."""
    return q.maximum(f"{LEVEL}errors:ratio_rate{window} / {LEVEL}error_budget:ratio", *BY)


def in_range(tasks: str) -> str:
    """Return the sum of the recorded rates of tasks over the time range."""
    return q.total(f"sum_over_time({LEVEL}{tasks}:rate5m[$__range])", *BY)


BUDGET = q.maximum(f"{LEVEL}error_budget:ratio", *BY)
GOOD_SHARE = q.share(in_range("good_tasks"), in_range("tasks"))
BUDGET_LEFT = f"1 - (1 - {GOOD_SHARE}) / {BUDGET}"

BOARD = Board(
    uid="celery-objectives",
    title="Celery / Objectives",
    description="Service level objectives of tasks and queues. It is empty unless the table of objectives in "
    "the rules has rows.",
    variables=("job",),
    links={"Tasks": "celery-tasks", "Overview": "celery-overview"},
    time_range="now-30d",
    rows={
        "Now": [
            stat(
                "Indicators",
                PLAIN,
                "Indicators with an objective: success, runtime and wait count separately.",
                f"count({BUDGET})",
                no_value=NONE,
                width=6,
            ),
            stat(
                "Least error budget left",
                SHARE,
                "The least share of an error budget that is left in the time range. The budget is that of "
                "the range: 30 days by default.",
                f"min({BUDGET_LEFT})",
                no_value=NONE,
                good=0.0,
                width=6,
            ),
            stat(
                "Highest burn rate, 1 hour",
                PLAIN,
                "The highest burn rate of the last hour. CeleryErrorBudgetBurnFast fires above 14.4.",
                f"max({burn_rate('1h')})",
                no_value=NONE,
                bad=(1, 14.4),
                width=6,
            ),
            stat(
                "Highest burn rate, 6 hours",
                PLAIN,
                "The highest burn rate of the last 6 hours. CeleryErrorBudgetBurnSlow fires above 6.",
                f"max({burn_rate('6h')})",
                no_value=NONE,
                bad=(1, 6),
                width=6,
            ),
        ],
        "Objectives": [
            table(
                "Objectives",
                "Good share and error budget left are of the time range. A burn rate of 1 spends the budget "
                "exactly in 30 days. A negative budget is overspent.",
                Column("Objective", "objective"),
                [
                    Column("Target", f"1 - {BUDGET}", SHARE),
                    Column("Indicator", "sli"),
                    Column("Good share", GOOD_SHARE, SHARE),
                    Column("Error budget left", BUDGET_LEFT, SHARE),
                    Column("Burn rate 1 h", burn_rate("1h")),
                    Column("Burn rate 6 h", burn_rate("6h")),
                    Column("Burn rate 3 d", burn_rate("3d")),
                ],
                no_value=NONE,
            ),
        ],
        "Over time": [
            lines(
                f"Burn rate, {name}",
                PLAIN,
                f"Burn rate over {name}. {alert}",
                {LEGEND: burn_rate(window)},
                no_value=NONE,
            )
            for window, name, alert in (
                ("1h", "1 hour", "CeleryErrorBudgetBurnFast fires above 14.4."),
                ("6h", "6 hours", "CeleryErrorBudgetBurnSlow fires above 6."),
                ("3d", "3 days", "CeleryErrorBudgetBurnSlow fires above 1."),
            )
        ]
        + [
            lines(
                "Good share, 1 hour",
                SHARE,
                "Share of good tasks in the last hour.",
                {LEGEND: f"1 - {q.maximum(f'{LEVEL}errors:ratio_rate1h', *BY)}"},
                no_value=NONE,
            ),
            lines(
                "Counted tasks",
                RATE,
                "Tasks per second that count for an objective. With few tasks, a single one can spend much "
                "of the budget.",
                {LEGEND: q.total(f"{LEVEL}tasks:rate5m", *BY)},
                no_value=NONE,
                width=24,
            ),
        ],
    },
)
