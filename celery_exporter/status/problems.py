"""The problems that health checks can find: one row for each.

A new check is a row here and a function.

The functions fill the fields in `{}`: see broker_checks.py, worker_checks.py, queue_checks.py and
threshold_checks.py. What only `doctor` can find is in doctor/problems.py. The table of checks in the docs is
generated from both.
"""

from __future__ import annotations

from celery_exporter.status.finding import Problem

#: The remedy depends on the broker, which `doctor` examines.
ASK_DOCTOR = "run celery-exporter doctor with the same options: it prints the remedy"
#: For a host that refuses connections, and for a name without an address. `doctor` has them as well.
CORRECT_ADDRESS = "start the broker, or correct host and port in --broker-url"
CORRECT_HOST = "correct the host in --broker-url"
ENABLE_EVENTS = "celery -A yourapp control enable_events"
ENABLE_TASK_SENT = "task_send_sent_event = True in the configuration of the clients that send tasks"

_MORE_WORKERS = (
    "add workers for these queues, or processes to each (-c); or find what sends so many messages, or what "
    "makes the tasks slow"
)

# -- the broker ------------------------------------------------------------------------------------------

NO_EVENTS = Problem(
    "transport",
    "critical",
    "{no_fanout}",
    "use Redis or RabbitMQ as the broker to see workers and tasks; on this broker, -Q NAMES shows the "
    "lengths of queues",
)
PUBLISHERS_BLOCKED = Problem(
    "publishers",
    "critical",
    "RabbitMQ blocks all publishers ({reason}): no task, event or heartbeat can be sent, and no worker is "
    "marked as down meanwhile",
    "on the broker's host: rabbitmq-diagnostics alarms; {alarm_remedies}",
    "CeleryBrokerBlocked",
)
NOT_SUBSCRIBED = Problem(
    "subscription",
    "critical",
    "no event subscription on the broker for {duration}: {error}",
    f"{{address_remedy}}{ASK_DOCTOR}",
    "CeleryExporterBlind",
)
NOT_SUBSCRIBED_YET = Problem(
    "subscription",
    "warning",
    "the exporter is starting, and the event subscription is not open yet: {error}",
    f"{{address_remedy}}{ASK_DOCTOR}",
)
SILENCE = Problem(
    "event-stream",
    "critical",
    "no event received for {silence}, though workers are up",
    ASK_DOCTOR,
    "CeleryExporterBlind",
)
EVENTS_REJECTED = Problem(
    "serializer",
    "critical",
    "events arrive in a serializer that is not accepted here",
    "event_serializer = 'json' in the workers' configuration, or --accept-content json,msgpack,yaml here "
    "(pickle only if all who can publish may run code)",
)
STATE_NOT_SAVED = Problem(
    "state",
    "warning",
    "the state cannot be saved: a restart loses what was counted since the last save",
    "the exporter's log has the reason: no space left, no permission to write into the folder, or another "
    "kind of file at the path of --state-file",
    "CeleryCollectorFailing",
)

# -- sinks and the history file --------------------------------------------------------------------------

SINK_FAILING = Problem(
    "sinks",
    "warning",
    "no record was delivered for {seconds} to {sinks}",
    "check that the receiver runs and takes the login: celery-exporter doctor with the same options asks it; "
    "--sink-buffer limits how many records wait for it",
    "CelerySinkFailing",
)
RECORDS_LOST = Problem(
    "sink-records",
    "warning",
    "records that could not be delivered in {window}: {by_sink}",
    "celery_exporter_sink_records_total has the outcome: buffer_full needs a receiver that keeps up, or a "
    "larger --sink-buffer; for others the exporter's log has the receiver's answer",
    "CelerySinkRecordsLost",
)

HISTORY_FAILING = Problem(
    "history",
    "warning",
    "the history file has not been written for {seconds}: {error}",
    "the error says what helps; as soon as the file can be used, it is, without a restart; metrics do not "
    "depend on it",
    "CeleryHistoryFailing",
)
HISTORY_INCOMPLETE = Problem(
    "history",
    "warning",
    "the history file lacks the last change of {tasks} in {window}",
    "celery_exporter_history_dropped_total has the reason: buffer_full needs a faster disk, or a file that "
    "can be used; for fault, the exporter's log has more",
    "CeleryHistoryFailing",
)

# -- workers ---------------------------------------------------------------------------------------------

WORKERS_DOWN = Problem(
    "workers",
    "critical",
    "all workers are down: {workers}",
    "start them: celery -A yourapp worker -E",
    "CeleryNoWorkersOnline",
)
NO_WORKERS = Problem(
    "workers",
    "critical",
    "no worker found in {seconds:.0f} s",
    "start one: celery -A yourapp worker -E; if workers run, use their broker_url (host, virtual host or "
    "database), broker_transport_options and event_exchange here",
    "CeleryNoWorkersOnline",
)
NO_HEARTBEATS = Problem(
    "heartbeats",
    "critical",
    "no heartbeat from {workers}",
    "start workers with -E and without --without-heartbeat, and use their event_exchange here "
    "(--event-exchange); if they have a --heartbeat-interval, wait for {seconds} s",
)
INSPECTION_FAILED = Problem(
    "remote-control",
    "warning",
    "workers could not be inspected: {error}",
    ASK_DOCTOR,
    "CeleryCollectorFailing",
)
REPLIES_REJECTED = Problem(
    "remote-control",
    "warning",
    "workers reply in {serializers}, which is not accepted here, so their pools and queues are unknown",
    "task_serializer = 'json' in the workers' configuration, or add that serializer to --accept-content "
    "here (pickle only if all who can publish may run code)",
)
NO_REPLIES = Problem(
    "remote-control",
    "warning",
    "no reply from {workers}, so their pools and queues are unknown",
    "worker_enable_remote_control = True in the workers' configuration; if it has a control_exchange, "
    "--control-exchange with its name here; if its accept_content lacks json, --accept-content with its "
    "content here; a busy worker with the solo pool replies later",
)
NO_TASK_EVENTS = Problem(
    "task-events",
    "critical",
    "no task events from {workers}",
    f"start workers with -E, or now: {ENABLE_EVENTS}",
    "CeleryTaskEventsDisabled",
)
NO_TASK_SENT_EVENTS = Problem(
    "task-sent-events",
    "warning",
    "workers received {tasks}; no client publishes task-sent: waiting times are unknown, and so are the "
    "queues of tasks on workers that consume several",
    ENABLE_TASK_SENT,
)
NO_TASK_SENT_EVENTS_YET = Problem(
    "task-sent-events",
    "warning",
    "workers received {tasks}, and no task-sent event arrived in {duration}; messages wait, so all of these "
    "may have been sent before, and it is unknown whether clients publish task-sent",
    ENABLE_TASK_SENT,
)
CLOCK_SKEW = Problem(
    "clock-skew",
    "warning",
    "worker clocks differ from the clock here: {skews}",
    "set the clock of {host}: timedatectl set-ntp true",
)
SAME_HOST = Problem(
    "worker-names",
    "warning",
    "names that differ only in how the host is written: {workers}",
    "if it is one worker, give it one fixed name: celery -A yourapp worker -E -n NAME@HOST",
)
CHANGING_HOSTS = Problem(
    "worker-names",
    "warning",
    "{number} names that differ only in the host, {down} of them down: {workers}",
    "host names that survive a restart (docker run --hostname, a StatefulSet), or "
    "--purge-offline-worker-metrics 60 here",
)
SHARED_NAMES = Problem(
    "duplicate-node-names",
    "critical",
    "several workers use the node name {names}, so their values are mixed",
    "give each worker its own node name: celery -A yourapp worker -E -n NAME@%h, with a hostname for each "
    "container",
)

BEAT_DOWN = Problem(
    "beat",
    "critical",
    "no beat replies, so no periodic task is sent: {beats}",
    "start it: celery -A yourapp beat; if it runs, its log says whether its scheduler ticks, and whether it "
    "reaches the broker; beat_enable_remote_control = True lets it reply",
    "CeleryBeatDown",
)

OVERDUE = Problem(
    "expected-tasks",
    "warning",
    "expected tasks are overdue: {tasks}{beats}",
    "not sent: start beat, or if it is up, add the task to its schedule; no success: check whether the task "
    "fails, waits in a queue, or needs a longer grace; compare with the section `expected` of --config.file",
    "CeleryTaskOverdue",
)

# -- queues ----------------------------------------------------------------------------------------------

LENGTHS_FAILED = Problem(
    "queue-lengths",
    "warning",
    "queue lengths could not be read: {error}",
    ASK_DOCTOR,
    "CeleryCollectorFailing",
)
LENGTHS_UNKNOWN = Problem(
    "queue-lengths",
    "warning",
    "workers consume {queues}, but the broker does not report the length",
    ASK_DOCTOR,
)
TOO_MANY_QUEUES = Problem(
    "queue-names",
    "warning",
    "{number:,} queue names are known, and at most {limit:,} are measured: a new one replaces the one that "
    "was used longest ago",
    "--queue-exclude REGEX for queues whose length does not matter, such as those created at run time; -Q "
    "NAMES for queues that are always measured",
)
IDLE_QUEUES = Problem(
    "queues-without-consumers",
    "warning",
    "empty queues without consumers: {queues}",
    "if they need one: {start_worker}",
)
UNCONSUMED = Problem(
    "unconsumed-messages",
    "critical",
    "messages wait in queues without consumers: {queues}",
    "{start_worker}",
    "CeleryQueueWithoutConsumers",
)

# -- thresholds: the severity is a warning, since the condition may not last -----------------------------

FAILURES = Problem(
    "failures",
    "warning",
    "{failed:,} of {tasks} that ended in {window} failed ({share:.1%}): {by_task}",
    "celery_task_failures_total and the page /failures have the exceptions; usual causes: a release, an API "
    "or a database that the tasks need, a time limit, a worker that ran out of memory",
    "CeleryHighFailureRate",
)
RETRIES = Problem(
    "retries",
    "warning",
    "{retried:,} of {tasks} started in {window} ended in a retry ({share:.1%}): {by_task}",
    "check what autoretry_for of these tasks waits for (an API, a lock, a mail server), and whether "
    "retry_backoff is too short for it",
    "CeleryHighRetryRate",
)
REDELIVERIES = Problem(
    "redeliveries",
    "warning",
    "redelivered, as a share of the tasks received in {window}: {by_task}",
    "on Redis, a visibility_timeout (broker_transport_options) above the longest task and countdown; for "
    "workers that are killed during a task, more memory and more time to stop",
    "CeleryRedeliveryStorm",
)
SLOW_TASKS = Problem(
    "slow-tasks",
    "warning",
    "mean run time in {window}: {by_task}",
    "celery -A yourapp inspect active shows where they run: check what they wait for, and the load of "
    "these hosts",
    "CelerySlowTaskProcessing",
)
STUCK_TASKS = Problem(
    "stuck-tasks",
    "warning",
    "started, and not ended since: {by_task}",
    "celery -A yourapp inspect active shows the worker; task_time_limit ends a task that hangs; if no "
    "worker has the task, its worker was lost",
    "CeleryTaskStuck",
)
ORPHANED_TASKS = Problem(
    "orphaned-tasks",
    "warning",
    "{tasks:,.1f} tasks, on average, were started, have not ended, and are with no worker",
    "find out which workers went down, and why (kubectl describe, dmesg: out of memory); with "
    "task_acks_late = True such tasks are redelivered",
    "CeleryTasksOrphaned",
)
LONG_QUEUES = Problem(
    "queue-depth", "warning", "messages wait: {by_queue}", _MORE_WORKERS, "CeleryHighQueueDepth"
)
LONG_EVENT_QUEUES = Problem(
    "queue-depth",
    "warning",
    "messages wait: {by_queue}",
    "for queues of events (celeryev.…): start the relay, shard or exporter that consumes them, or give it "
    "more CPU",
    "CeleryHighQueueDepth",
)
LONG_WAITS = Problem(
    "queue-waits",
    "warning",
    "5 % of the tasks started in {window} had waited longer than: {by_queue}",
    _MORE_WORKERS,
    "CeleryQueueWaitHigh",
)
OLD_MESSAGES = Problem(
    "oldest-messages",
    "warning",
    "the oldest message has waited for: {by_queue}",
    _MORE_WORKERS,
    "CeleryOldestMessageWaiting",
)
WORKERS_LOST = Problem(
    "silent-workers",
    "warning",
    "down without a worker-offline event: {workers}",
    "check whether they run, and why not (kubectl describe, journalctl, dmesg: out of memory); the tasks "
    "that they executed may be lost, or be redelivered",
    "CeleryWorkerDown",
)
EVENTS_MISSED = Problem(
    "missed-events",
    "warning",
    "no events for {missed:,} of {tasks} processed in {window}: {workers}",
    "keep the exporter running (with --event-queue-durable RabbitMQ keeps events while it is down), give "
    "it more CPU, and give Redis a larger client-output-buffer-limit for pubsub: the check output-buffer "
    "of celery-exporter doctor has the command",
    "CeleryEventsMissed",
)
SERIES_OVERFLOW = Problem(
    "series",
    "warning",
    "a task or an exception was counted as other {times:,} times in {window}",
    "a larger --max-series if so many names are intended; --task-name-rule or --task-exclude for names "
    "that are created at run time",
    "CelerySeriesOverflow",
)
