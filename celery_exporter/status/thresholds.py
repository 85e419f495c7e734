"""What is too much: one table for the alerts and for the checks of the status page, the log and doctor.

`make alerts` writes it into `alerts/thresholds.libsonnet`, from where the mixin has it. Pure data.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

#: Seconds over which rates, ratios and quantiles of tasks are taken; and those of what is rare.
WINDOW, LONG_WINDOW = 300, 900
#: Tasks that retry until something else has happened, as Celery's own does where the result backend cannot
#: count the parts of a chord (celery/app/builtins.py): their retries are no failures.
POLLING_TASKS = frozenset({"celery.chord_unlock"})


class Threshold(Struct, frozen=True):
    """An alert, and the check that looks for the same."""

    alert: str
    severity: Literal["warning", "critical", "info"]  # info: nothing has to be done, so there is no check
    pending: int  # seconds that it has to last before the alert fires and the log says it
    check: str = ""  # empty where only Prometheus can tell, or nothing has to be done
    setting: str = ""  # of the mixin's _config, which has the limit
    limit: float = 0.0


TABLE = (
    Threshold("CeleryHighFailureRate", "critical", 300, "failures", "failureRatio", 0.10),
    Threshold("CeleryHighRetryRate", "warning", 300, "retries", "retryRatio", 0.05),
    Threshold("CelerySlowTaskProcessing", "warning", 600, "slow-tasks", "meanRuntimeSeconds", 60),
    Threshold("CeleryTaskStuck", "warning", 300, "stuck-tasks", "stuckSeconds", 3_600),
    Threshold("CeleryTasksOrphaned", "warning", 900, "orphaned-tasks", "orphans", 0.5),
    Threshold("CeleryRedeliveryStorm", "warning", 600, "redeliveries", "redeliveryRatio", 0.10),
    Threshold("CeleryPeriodicTaskAbsent", "warning", 300),
    Threshold("CeleryHighQueueDepth", "warning", 600, "queue-depth", "queueDepth", 1_000),
    Threshold("CeleryQueueWithoutConsumers", "critical", 300, "unconsumed-messages"),
    Threshold("CeleryQueueWaitHigh", "warning", 600, "queue-waits", "queueWaitSeconds", 300),
    Threshold("CeleryOldestMessageWaiting", "warning", 300, "oldest-messages", "oldestWaitingSeconds", 900),
    Threshold("CeleryNoWorkersOnline", "critical", 120, "workers"),
    Threshold("CeleryWorkerDown", "warning", 120, "silent-workers"),
    Threshold("CeleryWorkerPoolFull", "info", 900),
    Threshold("CeleryTaskEventsDisabled", "warning", 600, "task-events"),
    Threshold("CeleryExporterDown", "critical", 120),
    Threshold("CeleryExporterBlind", "critical", 120, "event-stream", "silenceSeconds", 120),
    Threshold("CeleryBrokerBlocked", "critical", 120, "publishers"),
    Threshold("CeleryEventsMissed", "warning", 300, "missed-events", "missedRatio", 0.01),
    Threshold("CelerySeriesOverflow", "warning", 300, "series"),
)
BY_CHECK = {row.check: row for row in TABLE if row.check}
