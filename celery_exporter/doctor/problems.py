"""The problems that only `doctor` can find: one row for each.

Those of the overview are in status/problems.py.

A new check is a row here and a function; its name is in check_order.py. What a broker answers when it
refuses a connection is in remedies.py. The table of checks in the docs is generated from all of these.
"""

from __future__ import annotations

from celery_exporter.status.finding import Problem
from celery_exporter.status.problems import CORRECT_ADDRESS, CORRECT_HOST, ENABLE_EVENTS, ENABLE_TASK_SENT
from celery_exporter.status.worker_checks import LONGEST_HEARTBEAT_INTERVAL_SECONDS

# -- sinks -----------------------------------------------------------------------------------------------

SINK_UNREACHABLE = Problem(
    "sinks",
    "warning",
    "{sink} would take no records: {error}",
    "check that {address} runs and is reachable from here, and its login; metrics do not depend on it",
)
EVENT_LOG_UNUSABLE = Problem(
    "sinks",
    "warning",
    "{sink} would take no records: {error}",
    "check that the directory of {address} exists, and that the exporter's user can write there, as which "
    "doctor must run; a FIFO needs a reader; metrics do not depend on it",
)
HISTORY_UNUSABLE = Problem(
    "history",
    "warning",
    "the history file cannot be used: {error}",
    "the error says what helps; doctor must run as the exporter's user; metrics do not depend on it",
)

STATE_FILE_REFUSED = Problem(
    "state",
    "critical",
    "the exporter would not start with this state file: {error}",
    "the error says what helps; doctor must run as the exporter's user",
)
STATE_FILE_UNUSED = Problem(
    "state",
    "warning",
    "the state file {path} would be moved aside, and counters would start at 0: {error}",
    "another path in --state-file, or the options of the exporter that wrote it",
)

# -- from the URL to the subscription --------------------------------------------------------------------

UNUSABLE_URL = Problem("url", "critical", "{error}", "--broker-url: {remedy}")

_CORRECT_HOST = f"{CORRECT_HOST}; what this system resolves it to: getent hosts {{quoted_host}}"
LOOKUP_TIMEOUT = Problem(
    "host", "critical", 'DNS lookup for "{host}" timed out after {seconds:.0f} s', _CORRECT_HOST
)
LOOKUP_FAILED = Problem("host", "critical", '"{host}" does not resolve: {error}', _CORRECT_HOST)

CONNECT_TIMED_OUT = Problem(
    "port",
    "critical",
    "no connection to {address} within {seconds:.0f} s",
    "check firewalls, and the host in --broker-url; to try it: nc -vz {quoted_host} {port}",
)
CONNECT_FAILED = Problem(
    "port",
    "critical",
    "{address}: {error}",
    f"{CORRECT_ADDRESS}{{container_hint}}",
)
CONTAINER_HINT = " (in a container, 127.0.0.1 is the container itself)"

TLS_MISSING = Problem(
    "tls", "critical", "{address} speaks TLS, but the URL does not use it", "--broker-url {scheme}://…"
)
TLS_UNSUPPORTED = Problem(
    "tls",
    "critical",
    "the URL uses TLS, but {address} does not speak it",
    "--broker-url {scheme}://…, or the port on which the broker has TLS",
)

# -- the broker ------------------------------------------------------------------------------------------

QUERY_FAILED = Problem(
    "broker-version", "warning", "the broker could not be queried: {error}", "{diagnose_command}"
)
TRANSIENT_QUEUES_DENIED = Problem(
    "transient-queues",
    "warning",
    "RabbitMQ {version} denies the transient queues that Celery before 5.7 declares",
    "Celery 5.7 or later everywhere; or, with 5.6, control_queue_exclusive = True and "
    "event_queue_exclusive = True; or in rabbitmq.conf: "
    "deprecated_features.permit.transient_nonexcl_queues = true",
)
ORPHANED_QUEUES = Problem(
    "orphaned-queues",
    "warning",
    "event and reply queues without consumers: {queues}",
    "unless a relay or an exporter will consume them again: {delete_command}",
)
UNREAD_REPLIES = Problem(
    "orphaned-queues",
    "warning",
    "{number:,} reply queues hold replies of workers that were not read for {seconds} s",
    "{redis_cli} DEL {quoted_keys}",
)
ORPHANED_BINDINGS = Problem(
    "orphaned-queues",
    "warning",
    "{bound:,} reply queues are bound, but only {clients:,} clients are connected: at least {orphans:,} "
    "queues are of processes that inspected workers and were killed; each slows down every reply",
    "{redis_cli} DEL {quoted_key}, then restart the processes that inspect workers (Flower)",
)
EVENT_QUEUE_MISSING = Problem(
    "event-queue",
    "critical",
    "the queue {queue} does not exist on this broker",
    "start the relay, which declares it: celery-exporter relay --shards {shards}; or correct --event-queue",
)
EVENT_QUEUE_DIFFERS = Problem(
    "event-queue",
    "critical",
    "another program declared the queue {queue} with other arguments: {error}",
    "if its messages are not needed: {delete_command}",
)
EVENT_QUEUE_DENIED = Problem(
    "event-queue", "critical", "the exporter must not use the queue {queue}: {error}", "{permit_command}"
)
EVENT_QUEUE_REFUSED = Problem(
    "event-queue",
    "critical",
    "the exporter cannot use the queue {queue}: {error}",
    "--event-queue with a name that the relay printed at its start",
)
EVENT_QUEUE_UNUSED = Problem(
    "event-queue",
    "warning",
    "no exporter consumes the queue {queue}; {messages} waiting",
    "start the exporter with {option}",
)

_NO_EVICTION = "{redis_cli} CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
EVICTS_WHEN_LIMITED = Problem(
    "eviction",
    "warning",
    "maxmemory-policy is {policy}: once maxmemory is set, a full Redis evicts keys",
    _NO_EVICTION,
)
EVICTS_RESULTS = Problem(
    "eviction",
    "warning",
    "maxmemory-policy is {policy}: beyond {limit:,} bytes Redis evicts results, and then rejects tasks",
    _NO_EVICTION,
)
EVICTS_QUEUES = Problem(
    "eviction",
    "critical",
    "maxmemory-policy is {policy}: beyond {limit:,} bytes Redis evicts queues with all their tasks",
    _NO_EVICTION,
)
SMALL_BUFFER = Problem(
    "output-buffer",
    "warning",
    "Redis disconnects a subscriber that lags by {lag}, which then misses events",
    "{redis_cli} CONFIG SET client-output-buffer-limit 'pubsub 33554432 8388608 60', and the same in "
    "redis.conf",
)

# -- events and workers ----------------------------------------------------------------------------------

STOPPED_EARLY = Problem(
    "listening",
    "warning",
    "stopped early, after {seconds:.0f} s; the remaining checks were skipped",
    "run it to the end",
)
NO_EVENT_YET = Problem("first-event", "warning", "no event in {seconds:.0f} s", "listen longer: --seconds 30")
OTHER_EXCHANGE = Problem(
    "first-event",
    "critical",
    "no event in {seconds:.0f} s: workers publish theirs to the exchange {exchange}",
    "--event-exchange {quoted_exchange}",
)
NO_FIRST_EVENT = Problem(
    "first-event",
    "critical",
    "no event in {seconds:.0f} s, though workers replied: {workers}",
    "start workers with -E and without --without-heartbeat; if they have a --heartbeat-interval, listen "
    f"longer: --seconds {LONGEST_HEARTBEAT_INTERVAL_SECONDS + 5}",
)
MIXED_VERSIONS = Problem(
    "worker-versions",
    "warning",
    "versions differ: {versions}",
    "one version everywhere: pip install {quoted_package}",
)
CONTENT_TYPE_REJECTED = Problem(
    "serializer",
    "critical",
    "events arrive as {content_types}, which is not accepted here",
    "event_serializer = 'json' in the workers' configuration{or_accept_content}",
)
TASK_EVENTS_UNKNOWN = Problem(
    "task-events",
    "warning",
    "tasks ran on {workers}, and no event of them has arrived so far",
    f"listen longer: --seconds 30; or to be sure: {ENABLE_EVENTS}",
)
TASK_SENT_EVENTS_OFF = Problem(
    "task-sent-events",
    "warning",
    "no task-received event arrived in {seconds:.0f} s, so it is unknown whether clients publish task-sent; "
    "task_send_sent_event is off in the workers' configuration",
    ENABLE_TASK_SENT,
)

# -- Prometheus ------------------------------------------------------------------------------------------

NO_PROMETHEUS = Problem(
    "prometheus",
    "critical",
    "{url} does not answer as Prometheus does: {error}",
    "correct --prometheus; to try it: curl {quoted_url}",
)
SCRAPE_FAILED = Problem(
    "prometheus",
    "critical",
    "Prometheus cannot scrape {target}: {error}",
    "start the exporter, or correct its address in prometheus.yml; on the host of Prometheus, try: curl "
    "{quoted_target}",
)
NOT_SCRAPED = Problem(
    "prometheus",
    "critical",
    "{url} scrapes no celery-exporter",
    "in prometheus.yml, under scrape_configs: {{job_name: celery, scrape_interval: 15s, static_configs: "
    "[{{targets: ['HOST:9808']}}]}}",
)
EXPORTER_BLIND = Problem(
    "prometheus-agrees",
    "critical",
    "the exporter at {target} receives no events itself",
    "run celery-exporter doctor with the options of the exporter at {target}",
)
WORKERS_DIFFER = Problem(
    "prometheus-agrees",
    "warning",
    "the workers that are up at {target} differ from those here: {difference}",
    "wait for the next scrape, or give that exporter the URL of this broker",
)
NATIVE_HISTOGRAMS_OFF = Problem(
    "prometheus-native",
    "warning",
    "--native-histograms is on, but Prometheus {version} stores no native histogram",
    "{enable}",
)
