"""The dashboard of the exporter: whether the data of the other dashboards are complete."""

from dashboards import promql as q
from dashboards.build import Board
from dashboards.panels import (
    BYTES,
    PLAIN,
    RATE,
    RECEIVING_STATES,
    SECONDS,
    SHARE,
    YES,
    Column,
    lines,
    stat,
    table,
)


def rate(counter: str, by: str) -> dict[str, str]:
    """Return lines with the rate of a counter per second, by this label."""
    return {f"{{{{{by}}}}}": q.rate(counter, by)}


BOARD = Board(
    uid="celery-exporter",
    title="Celery / Exporter",
    description="The exporter: whether it receives all events, its errors, its limits and its resources.",
    variables=("job",),
    links={"Overview": "celery-overview", "Workers": "celery-workers"},
    rows={
        "Now": [
            stat(
                "Exporter",
                PLAIN,
                q.RECEIVING_DESCRIPTION,
                q.RECEIVING,
                meanings=RECEIVING_STATES,
                no_value="not scraped",
            ),
            stat(
                "Subscription",
                PLAIN,
                "Whether the event subscription is open and answers, and whether RabbitMQ blocks publishers.",
                "min(celery_broker_up) + max(celery_broker_blocked) or min(celery_broker_up)",
                meanings={0: ("closed", "red"), 1: ("open", "green"), 2: ("publishers blocked", "red")},
                no_value="not scraped",
            ),
            stat(
                "Since the last event",
                SECONDS,
                "Time since the exporter received an event. With one worker it is below 3 s, because of "
                "heartbeats.",
                q.since_last("celery_exporter_last_event_timestamp_seconds"),
                no_value="none yet",
                bad=(10, 60),
            ),
            stat(
                "Event lag",
                SECONDS,
                "Age of the newest event when it was received, by the clock of its sender.",
                q.maximum("celery_exporter_event_lag_seconds"),
                no_value="none yet",
                bad=(2, 10),
            ),
            stat(
                "Tasks in memory",
                PLAIN,
                "Unfinished tasks in memory. --max-tasks limits them.",
                "sum(celery_exporter_tasks_tracked)",
            ),
            stat(
                "Label sets",
                PLAIN,
                "Label sets of task metrics. --max-series limits them in each family.",
                "sum(celery_exporter_series)",
            ),
            stat(
                "Unacknowledged",
                PLAIN,
                "Messages of all queues that workers hold and have not acknowledged. Only on Redis.",
                "sum(celery_broker_unacked_messages)",
                no_value="unknown",
            ),
            stat(
                "Periodic jobs",
                PLAIN,
                "Whether the last run of every periodic job (queue lengths, worker inspection, state file) "
                "succeeded.",
                "min(celery_exporter_collector_success)",
                meanings={0: ("failing", "red"), 1: ("ok", "green")},
                no_value="no run yet",
            ),
        ],
        "Events": [
            lines(
                "Events",
                RATE,
                "Applied events per second, by type.",
                rate("celery_exporter_events_total", "kind"),
                stacked=True,
            ),
            lines(
                "Event lag",
                SECONDS,
                "Age of the newest event when it was received, and the time since then.",
                {
                    "lag": q.maximum("celery_exporter_event_lag_seconds"),
                    "since the last event": q.since_last("celery_exporter_last_event_timestamp_seconds"),
                },
                signed=True,
            ),
            lines(
                "Malformed and repeated events",
                RATE,
                "Per second: events that could not be used, by reason, repeated events about the end of the "
                "same execution, by type, and messages that a durable queue delivered again.",
                {
                    "{{reason}}": q.rate("celery_exporter_events_malformed_total", "reason"),
                    "{{kind}} repeated": q.rate("celery_exporter_events_repeated_total", "kind"),
                    "duplicate messages": q.rate("celery_exporter_messages_duplicate_total"),
                },
            ),
            lines(
                "Missed events",
                RATE,
                "Tasks per second that a worker counted as started and that the exporter received no event "
                "for.",
                rate("celery_exporter_events_missed_total", "worker"),
            ),
            lines(
                "Connection",
                PLAIN,
                "1 while the event subscription is open, the number of exporters that receive events (a "
                "standby does not), and the number of reconnects.",
                {
                    "open": "min(celery_broker_up)",
                    "active": "sum(celery_exporter_active) or sum(celery_broker_up)",
                    "reconnects": q.increase("celery_exporter_reconnects_total"),
                },
            ),
            lines(
                "Unknown labels and negative waits",
                RATE,
                "Per second: tasks counted without the value of a label (as unknown, or under the only "
                "queue of their worker), and waits that are negative because of clock skew.",
                {
                    "{{label}} unknown": q.rate("celery_exporter_label_fallbacks_total", "label"),
                    "negative waits": q.rate("celery_exporter_negative_waits_total"),
                },
            ),
        ],
        "Limits": [
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
                "Limits reached",
                RATE,
                "Per second: evicted tasks (--max-tasks, --task-ttl), counts under the name other "
                "(--max-series, --series-ttl), rejected workers and queues.",
                {
                    "tasks evicted": q.rate("celery_exporter_tasks_evicted_total"),
                    "series overflow": q.rate("celery_exporter_series_overflow_total"),
                    "{{kind}} rejected": q.rate("celery_exporter_limit_rejections_total", "kind"),
                },
                width=8,
            ),
            lines(
                "Reconciled tasks",
                RATE,
                "Unfinished tasks per second that were ended or requeued without an event, by reason: "
                "their message is gone or expired, no worker runs them, or the worker that had received "
                "them stopped.",
                rate("celery_exporter_tasks_reconciled_total", "reason"),
                width=8,
            ),
        ],
        "Periodic jobs and files": [
            table(
                "Periodic jobs",
                "Background jobs that query the broker and the workers and write files, and their last run.",
                Column("Job", "collector"),
                [
                    Column("Success", "min by (collector) (celery_exporter_collector_success)", meanings=YES),
                    Column(
                        "Duration",
                        q.maximum("celery_exporter_collector_duration_seconds", "collector"),
                        SECONDS,
                    ),
                    Column(
                        "Last success",
                        q.since_last("celery_exporter_collector_last_success_timestamp_seconds", "collector"),
                        SECONDS,
                    ),
                ],
                width=12,
            ),
            lines(
                "Files",
                PLAIN,
                "1 while the exporter uses the current --web.config.file and --config.file (no line without "
                "these options), and errors of --state-file.",
                {
                    "config file valid": "min(celery_exporter_config_last_reload_successful)",
                    "config file reloads": (
                        "sum(changes(celery_exporter_config_last_reload_success_timestamp_seconds[$__rate_interval]))"
                    ),
                    "web config up to date": "min(celery_exporter_web_config_up_to_date)",
                    "state file, {{operation}} errors": q.increase(
                        "celery_exporter_state_file_errors_total", "operation"
                    ),
                },
            ),
        ],
        "Records of tasks": [
            lines(
                "Records",
                RATE,
                "Records of tasks per second that each sink took or lost. The label outcome of the metric "
                "says why they were lost. No line without a sink such as --influx-url or --loki-url.",
                {
                    f"{{{{sink}}}} {name}": q.rate(
                        f"celery_exporter_sink_records_total{{outcome{outcomes}}}", "sink"
                    )
                    for name, outcomes in {
                        "delivered": '="delivered"',
                        "lost": '!~"delivered|incomplete"',
                    }.items()
                },
                width=6,
            ),
            lines(
                "Buffered records",
                PLAIN,
                "Records that wait for their sink. --sink-buffer limits them.",
                {"{{sink}}": q.total("celery_exporter_sink_buffered_records", "sink")},
                width=6,
            ),
            lines(
                "Time since the last success",
                SECONDS,
                "Time since each sink took records.",
                {"{{sink}}": q.since_last("celery_exporter_sink_last_success_timestamp_seconds", "sink")},
                width=6,
            ),
            lines(
                "Requests to sinks",
                SECONDS,
                "Median and 95th percentile of the duration of requests to sinks, or of writes to a file.",
                {
                    f"{{{{sink}}}} p{percent}": q.quantile(
                        percent / 100, "celery_exporter_sink_request_duration_seconds", "sink"
                    )
                    for percent in (50, 95)
                },
                width=6,
            ),
        ],
        "History of tasks": [
            lines(
                "Written tasks",
                RATE,
                "Tasks per second that were written into the history file or lost, and errors per second. A "
                "task that changes is written again. No line without --history-file.",
                {
                    "written": q.rate("celery_exporter_history_written_total"),
                    "lost": q.rate("celery_exporter_history_dropped_total"),
                    "errors": q.rate("celery_exporter_history_errors_total"),
                },
                width=6,
            ),
            lines(
                "Tasks in the file",
                PLAIN,
                "Tasks in the history file. --history-max-tasks limits them.",
                {"tasks": q.total("celery_exporter_history_tasks")},
                width=6,
            ),
            lines(
                "Size of the file",
                BYTES,
                "Bytes of the history file on disk.",
                {"size": q.total("celery_exporter_history_bytes")},
                width=6,
            ),
            lines(
                "Time since the last write",
                SECONDS,
                "Time since the history file was written.",
                {
                    "{{instance}}": q.since_last(
                        "celery_exporter_history_last_success_timestamp_seconds", "instance"
                    )
                },
                width=6,
            ),
        ],
        "Resources": [
            lines(
                "CPU",
                SHARE,
                "CPU usage of the exporter, as a share of one core.",
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
                "Open file descriptors of the exporter. Most are sockets.",
                {"{{instance}}": "max by (instance) (process_open_fds)"},
                width=6,
            ),
            table(
                "Versions",
                "Instances of the exporter that Prometheus scrapes.",
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
