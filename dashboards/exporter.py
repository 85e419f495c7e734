"""The exporter itself: whether to believe the other dashboards."""

from dashboards import promql as q
from dashboards.build import Board
from dashboards.panels import BYTES, HEARS, PLAIN, RATE, SECONDS, SHARE, YES, Column, lines, stat, table


def rate(counter: str, by: str) -> dict[str, str]:
    """Return the lines of a counter's growth a second, by this label."""
    return {f"{{{{{by}}}}}": q.rate(counter, by)}


BOARD = Board(
    uid="celery-exporter",
    title="Celery / Exporter",
    description="The exporter itself: whether it hears everything, what it could not use, what it costs.",
    variables=("job",),
    links={"Overview": "celery-overview", "Workers": "celery-workers"},
    rows={
        "Now": [
            stat(
                "Exporter",
                PLAIN,
                q.HEARING_MEANS,
                q.HEARING,
                meanings=HEARS,
                none="not scraped",
            ),
            stat(
                "Subscription",
                PLAIN,
                "Whether the event subscription is open and answers, and whether RabbitMQ blocks publishers.",
                "min(celery_broker_up) + max(celery_broker_blocked) or min(celery_broker_up)",
                meanings={0: ("closed", "red"), 1: ("open", "green"), 2: ("publishers blocked", "red")},
                none="not scraped",
            ),
            stat(
                "Since the last event",
                SECONDS,
                "Time since an event was read. Heartbeats are events: with one worker it is below 3 s.",
                q.since("celery_exporter_last_event_timestamp_seconds"),
                none="none yet",
                bad=(10, 60),
            ),
            stat(
                "Event lag",
                SECONDS,
                "Age of the newest event when it was read, by its sender's clock.",
                q.most("celery_exporter_event_lag_seconds"),
                none="none yet",
                bad=(2, 10),
            ),
            stat(
                "Tasks in memory",
                PLAIN,
                "Unfinished tasks in memory; --max-tasks bounds them.",
                "sum(celery_exporter_tasks_tracked)",
            ),
            stat(
                "Label sets",
                PLAIN,
                "Label sets of task metrics; --max-series bounds them in each family.",
                "sum(celery_exporter_series)",
            ),
            stat(
                "Unacknowledged",
                PLAIN,
                "Messages that workers hold and have not acknowledged, of all queues. Only Redis tells.",
                "sum(celery_broker_unacked_messages)",
                none="not known",
            ),
            stat(
                "Collectors",
                PLAIN,
                "Whether the last run of each collector (queues, roster, state file) succeeded.",
                "min(celery_exporter_collector_success)",
                meanings={0: ("one fails", "red"), 1: ("fine", "green")},
                none="none ran",
            ),
        ],
        "Events": [
            lines(
                "Events",
                RATE,
                "Events applied, a second, by their type.",
                rate("celery_exporter_events_total", "kind"),
                stacked=True,
            ),
            lines(
                "Lag and silence",
                SECONDS,
                "How old the newest event was when it was read, and how long ago that was.",
                {
                    "lag": q.most("celery_exporter_event_lag_seconds"),
                    "since the last event": q.since("celery_exporter_last_event_timestamp_seconds"),
                },
                signed=True,
            ),
            lines(
                "Malformed and repeated events",
                RATE,
                "A second: events that could not be used, by reason, and events that reported the end of one "
                "execution again, by type.",
                {
                    "{{reason}}": q.rate("celery_exporter_events_malformed_total", "reason"),
                    "{{kind}} repeated": q.rate("celery_exporter_events_repeated_total", "kind"),
                },
            ),
            lines(
                "Missed events",
                RATE,
                "Tasks that a worker started, by its own count, and that no event told of, a second.",
                rate("celery_exporter_events_missed_total", "worker"),
            ),
            lines(
                "Connection",
                PLAIN,
                "1 while the event subscription is open; how often it was opened again.",
                {
                    "open": "min(celery_broker_up)",
                    "reconnects": q.growth("celery_exporter_reconnects_total"),
                },
            ),
            lines(
                "Stand-ins and clocks",
                RATE,
                "Tasks booked under unknown or their worker's only queue, a second, and waits that two "
                "clocks made negative.",
                {
                    "{{label}} not known": q.rate("celery_exporter_label_fallbacks_total", "label"),
                    "negative waits": q.rate("celery_exporter_negative_waits_total"),
                },
            ),
        ],
        "Bounds": [
            lines(
                "In memory",
                PLAIN,
                "Unfinished tasks, and label sets of task metrics.",
                {
                    "tasks": "sum(celery_exporter_tasks_tracked)",
                    "label sets": "sum(celery_exporter_series)",
                },
                width=8,
            ),
            lines(
                "Beyond the bounds",
                RATE,
                "A second: tasks forgotten (--max-tasks, --task-ttl), names counted as other (--max-series, "
                "--series-ttl), workers and queues not taken in.",
                {
                    "tasks evicted": q.rate("celery_exporter_tasks_evicted_total"),
                    "series folded": q.rate("celery_exporter_series_overflow_total"),
                    "{{kind}} refused": q.rate("celery_exporter_limit_rejections_total", "kind"),
                },
                width=8,
            ),
            lines(
                "Reconciled tasks",
                RATE,
                "Unfinished tasks taken out or put back without an event, a second, by reason: their message "
                "is gone or expired, no worker runs them, or the worker that had received them left.",
                rate("celery_exporter_tasks_reconciled_total", "reason"),
                width=8,
            ),
        ],
        "Collectors and files": [
            table(
                "Collectors",
                "What runs in the background, asking brokers and workers and writing files, and how it went.",
                Column("Collector", "collector"),
                [
                    Column("Fine", "min by (collector) (celery_exporter_collector_success)", meanings=YES),
                    Column(
                        "Took", q.most("celery_exporter_collector_duration_seconds", "collector"), SECONDS
                    ),
                    Column(
                        "Last success",
                        q.since("celery_exporter_collector_last_success_timestamp_seconds", "collector"),
                        SECONDS,
                    ),
                ],
                width=12,
            ),
            lines(
                "Files",
                PLAIN,
                "1 while --web.config.file is in force as it stands (no line without one); "
                "errors with --state-file.",
                {
                    "web config in force": "min(celery_exporter_web_config_up_to_date)",
                    "state file, {{operation}} errors": q.growth(
                        "celery_exporter_state_file_errors_total", "operation"
                    ),
                },
            ),
        ],
        "Cost": [
            lines(
                "CPU",
                SHARE,
                "CPU time of the exporter, as a share of one core.",
                {"{{instance}}": q.rate("process_cpu_seconds_total", "instance")},
                width=6,
            ),
            lines(
                "Memory",
                BYTES,
                "Resident memory of the exporter.",
                {"{{instance}}": "max by (instance) (process_resident_memory_bytes)"},
                width=6,
            ),
            lines(
                "Open files",
                PLAIN,
                "File descriptors of the exporter: sockets, mostly.",
                {"{{instance}}": "max by (instance) (process_open_fds)"},
                width=6,
            ),
            table(
                "Versions",
                "The exporters that are scraped.",
                Column("Instance", "instance"),
                [
                    Column("Exporters", "count by (instance, version) (celery_exporter_build_info)"),
                    Column("Version", "version"),
                ],
                width=6,
            ),
        ],
    },
)
