"""The thresholds of the alerts, and of the health checks for the same conditions.

This is pure data.

`make alerts` writes them into `alerts/thresholds.libsonnet`, which the mixin imports.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

#: Seconds over which rates, ratios and quantiles of tasks are computed; and those of rare events.
WINDOW, LONG_WINDOW = 300, 900
#: Tasks that retry until a condition holds, as Celery's own does where the result backend cannot count the
#: parts of a chord (celery/app/builtins.py): their retries are no failures.
POLLING_TASKS = frozenset({"celery.chord_unlock"})


class Threshold(Struct, frozen=True):
    """An alert. The rows of problems.py with the name of this alert have the same condition."""

    alert: str
    severity: Literal["warning", "critical", "info"]  # info: no action is needed, so there is no check
    pending: int  # seconds for which the condition has to hold before the alert fires and the log reports it
    setting: str = ""  # of the mixin's _config, which has the limit
    limit: float = 0.0


TABLE = (
    Threshold("CeleryHighFailureRate", "critical", 300, "failureRatio", 0.10),
    Threshold("CeleryHighRetryRate", "warning", 300, "retryRatio", 0.05),
    Threshold("CelerySlowTaskProcessing", "warning", 600, "meanRuntimeSeconds", 60),
    Threshold("CeleryTaskStuck", "warning", 300, "stuckSeconds", 3_600),
    Threshold("CeleryTasksOrphaned", "warning", 900, "orphans", 0.5),
    Threshold("CeleryRedeliveryStorm", "warning", 600, "redeliveryRatio", 0.10),
    # Longer than CeleryBeatDown takes, so that a beat that is down is one notification.
    Threshold("CeleryTaskOverdue", "warning", 300),
    Threshold("CeleryBeatDown", "critical", 180),
    Threshold("CeleryHighQueueDepth", "warning", 600, "queueDepth", 1_000),
    Threshold("CeleryQueueWithoutConsumers", "critical", 300),
    Threshold("CeleryQueueWaitHigh", "warning", 600, "queueWaitSeconds", 300),
    Threshold("CeleryOldestMessageWaiting", "warning", 300, "oldestWaitingSeconds", 900),
    Threshold("CeleryNoWorkersOnline", "critical", 120),
    Threshold("CeleryWorkerDown", "warning", 120),
    Threshold("CeleryWorkerPoolFull", "info", 900),
    Threshold("CeleryTaskEventsDisabled", "warning", 600),
    Threshold("CeleryExporterDown", "critical", 120),
    Threshold("CeleryStandbyDown", "warning", 300),
    Threshold("CeleryExporterBlind", "critical", 120, "silenceSeconds", 120),
    Threshold("CeleryBrokerBlocked", "critical", 120),
    Threshold("CeleryEventsMissed", "warning", 300, "missedRatio", 0.01),
    Threshold("CeleryCollectorFailing", "warning", 300),
    Threshold("CelerySeriesOverflow", "warning", 300),
    Threshold("CelerySinkFailing", "warning", 300, "sinkFailingSeconds", 60),
    Threshold("CelerySinkRecordsLost", "warning", 300),
    Threshold("CeleryHistoryFailing", "warning", 300, "historyFailingSeconds", 60),
)
BY_ALERT = {row.alert: row for row in TABLE}
