"""The option table: names, groups, help texts, parsers, defaults.

The command line, its help and completion, and docs/reference/options.md are generated from it; `loader.load`
reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from celery_exporter.config import parsers
from celery_exporter.config.otel_variables import ENDPOINT, TRACES_ENDPOINT
from celery_exporter.core.task_lifecycle import TOMBSTONE_SECONDS
from celery_exporter.core.task_names import QUEUE_NAME_RULES
from celery_exporter.core.types import UNKNOWN
from celery_exporter.metrics.model import TASK_LABELS
from celery_exporter.metrics.profiles import native
from celery_exporter.metrics.registry import PROFILES

ENV_PREFIXES = ("CELERY_EXPORTER_", "CE_")

RETRY_INTERVAL = 5.0
#: By then the last late events of a finished task have met its tombstone.
MIN_SERIES_TTL_SECONDS = 2 * TOMBSTONE_SECONDS

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("logfmt", "json")
EVENT_CONSUMERS = ("auto", "kombu")
#: Groups of options about one kind of sink.
SINK_GROUPS = ("InfluxDB", "Loki", "Traces")
INFLUX_LAYOUTS = ("fields", "luna")
CONTENT_TYPES = ("json", "msgpack", "yaml", "pickle")
#: Levels of other exporters → the level here that shows the same.
_LEVELS = {"trace": "debug", "success": "warning"}
_MEDIA_TYPES = {
    "application/json": "json",
    "application/x-msgpack": "msgpack",
    "application/x-yaml": "yaml",
    "application/x-python-serialize": "pickle",
}


class Option(Struct, frozen=True, kw_only=True):
    """One option: its names, what it expects, and how a text becomes a value.

    `parse` takes one text, or a tuple of them if `multiple`, and raises ValueError for an invalid one.
    """

    name: str
    group: str
    help: str
    expects: str
    metavar: str = "NAME"  # placeholder in --help; shells complete PATH to files
    parse: Callable[[Any], Any] = str
    default: Any = None
    display_default: Any = None  # shown as the default in help and docs, where it differs from `default`
    short: str | None = None
    multiple: bool = False
    is_flag: bool = False
    secret: bool = False
    allow_empty: bool = False  # an empty variable is a value; elsewhere it counts as not set
    choices: tuple[str, ...] = ()  # for shell completion
    env: tuple[str, ...] = ()  # further environment variables, besides those with a prefix
    old_name: str = ""  # still accepted, not documented

    @property
    def key(self) -> str:
        """Return the name as an identifier."""
        return re.sub(r"[-.]", "_", self.name)

    @property
    def variables(self) -> tuple[str, ...]:
        """Return its environment variables; the first one that is set wins."""
        names = [self.key.upper(), *([self.old_name.upper()] if self.old_name else [])]
        return (*(prefix + name for name in names for prefix in ENV_PREFIXES), *self.env)


def _retry_interval(text: str) -> float:
    return parsers.number(0, 86_400)(text) or RETRY_INTERVAL  # 0 is the default of other exporters


def _worker_timeout(text: str) -> float:
    return parsers.number(1, 1e9)(text) if parsers.number(0)(text) else math.inf


def _content(text: str) -> tuple[str, ...]:
    parts = (part.strip().lower() for part in text.split(","))
    return parsers.list_of(CONTENT_TYPES)(",".join(_MEDIA_TYPES.get(part, part) for part in parts))


def _log_level(text: str) -> str:
    return parsers.one_of(LOG_LEVELS)(_LEVELS.get(text.lower(), text))


def _series_ttl(text: str) -> float | None:
    seconds = parsers.seconds_or_off(text)
    return None if seconds is None else parsers.number(MIN_SERIES_TTL_SECONDS)(text)


def _labels(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = parsers.pairs(texts)
    for name in pairs:
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name.startswith("__"):
            raise ValueError(name)
        pairs[name].encode()  # a UnicodeEncodeError, which is a ValueError, if it was not UTF-8
    return pairs


OPTIONS = (
    Option(
        name="config.file",
        group="Configuration",
        help="A YAML file with options, and with several brokers; options and variables take precedence.",
        expects="the path of a readable file",
        metavar="PATH",
        parse=parsers.path,
    ),
    Option(
        name="broker-url",
        group="Broker",
        help="The broker of Celery; several URLs for failover are separated by `;`.",
        expects="a URL such as redis://host:6379/0 or amqp://user:password@host/vhost",
        metavar="URL",
        parse=parsers.url,
        secret=True,
        env=("CELERY_BROKER_URL",),
    ),
    Option(
        name="broker-url-file",
        group="Broker",
        help="A file with the broker URL, which hides it from the process list; reread when it changes.",
        expects="the path of a readable file",
        metavar="PATH",
        parse=parsers.path,
    ),
    Option(
        name="broker-transport-option",
        group="Broker",
        help="A kombu transport option, as in Celery's broker_transport_options. Repeatable.",
        expects="name=value, the value JSON or plain text",
        metavar="NAME=VALUE",
        parse=parsers.json_pairs,
        default={},
        multiple=True,
        secret=True,
    ),
    Option(
        name="broker-ssl-option",
        group="Broker",
        help="A TLS option, as in Celery's broker_use_ssl. Repeatable.",
        expects="name=value, such as ssl_ca_certs=/etc/ssl/ca.pem or cert_reqs=none",
        metavar="NAME=VALUE",
        parse=parsers.json_pairs,
        default={},
        multiple=True,
        secret=True,
    ),
    Option(
        name="accept-content",
        group="Broker",
        help="Accepted serializers of events. Pickle lets a sender run any code here.",
        expects=f"a comma-separated list of {', '.join(CONTENT_TYPES)}",
        metavar="NAMES",
        parse=_content,
        default=("json",),
        choices=CONTENT_TYPES,
    ),
    Option(
        name="retry-interval",
        group="Broker",
        help="Longest wait between two connection attempts, in seconds; retries indefinitely.",
        expects="seconds up to 86400; 0 means the default",
        metavar="SECONDS",
        parse=_retry_interval,
        default=RETRY_INTERVAL,
    ),
    Option(
        name="event-exchange",
        group="Events",
        help="Exchange of events, if Celery's event_exchange is not the default.",
        expects="a name",
        parse=parsers.name,
        default="celeryev",
    ),
    Option(
        name="control-exchange",
        group="Events",
        help="Exchange of remote control commands, if Celery's control_exchange is not the default.",
        expects="a name",
        parse=parsers.name,
        default="celery",
    ),
    Option(
        name="event-consumer",
        group="Events",
        help="Event consumer: auto is the fastest one for the broker, kombu works with every broker.",
        expects="auto or kombu",
        parse=parsers.one_of(EVENT_CONSUMERS),
        default="auto",
        choices=EVENT_CONSUMERS,
        old_name="reader",
    ),
    Option(
        name="event-queue-durable",
        group="Events",
        help="RabbitMQ: use a durable queue, which keeps events while no exporter runs.",
        expects="true or false",
        parse=parsers.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="event-queue",
        group="Events",
        help="RabbitMQ: consume this durable queue, which `celery-exporter relay` has declared.",
        expects="the name of a queue",
        metavar="NAME",
        parse=parsers.name,
    ),
    Option(
        name="enable-events",
        group="Events",
        help="Enable task events in workers that send none, at every update interval.",
        expects="true or false",
        parse=parsers.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="update-interval",
        group="Queues and workers",
        help="Interval between two readings of queue lengths and two inspections of workers, in seconds.",
        expects="seconds, 0.5 or more",
        metavar="SECONDS",
        parse=parsers.number(0.5, 86_400),
        default=15.0,
        env=("METRICS_UPDATE_INTERVAL",),
    ),
    Option(
        name="queues",
        group="Queues and workers",
        short="Q",
        help="Queues to monitor besides those that workers and events name. Comma-separated, repeatable.",
        expects="queue names",
        metavar="NAMES",
        parse=parsers.names,
        default=(),
        multiple=True,
    ),
    Option(
        name="queue-include",
        group="Queues and workers",
        help="Monitor only queues whose full name matches this regular expression.",
        expects="a regular expression",
        metavar="REGEX",
        parse=parsers.pattern,
    ),
    Option(
        name="queue-exclude",
        group="Queues and workers",
        help='Exclude queues whose full name matches; their tasks count as queue_name="other".',
        expects="a regular expression",
        metavar="REGEX",
        parse=parsers.pattern,
    ),
    Option(
        name="queue-name-rule",
        group="Queues and workers",
        help="Rename queues whose full name matches, and add up equal names. Repeatable. Built-in rules for "
        "uuids and the like follow, unless one rule is empty.",
        expects="regex=replacement, such as 'customer-[0-9]+=customer-*', or empty for no built-in rules",
        metavar="REGEX=NAME",
        parse=parsers.queue_name_rules,
        default=QUEUE_NAME_RULES,
        display_default="",
        multiple=True,
        allow_empty=True,
    ),
    Option(
        name="worker-timeout",
        group="Queues and workers",
        help="Silence after which a worker is down, in seconds, at least three heartbeats; 0: never.",
        expects="seconds, 1 or more; 0 is off",
        metavar="SECONDS",
        parse=_worker_timeout,
        default=60.0,
    ),
    Option(
        name="purge-offline-worker-metrics",
        group="Queues and workers",
        help="Time after which a worker that is down is removed, in seconds; 0: never.",
        expects="seconds, 0 or more",
        metavar="SECONDS",
        parse=parsers.seconds_or_off,
        default=600.0,
    ),
    Option(
        name="max-tasks",
        group="Tasks",
        help="Limit of unfinished tasks in memory, 550 bytes each; the oldest are dropped.",
        expects="a whole number, 1000 or more",
        metavar="NUMBER",
        parse=parsers.whole(1000, 10**9),
        default=300_000,
    ),
    Option(
        name="max-series",
        group="Tasks",
        help='Limit of label sets in each family of task metrics; further ones count as task_name="other".',
        expects="a whole number, 100 or more",
        metavar="NUMBER",
        parse=parsers.whole(100, 10**7),
        default=20_000,
    ),
    Option(
        name="series-ttl",
        group="Tasks",
        help='Time without events after which a label set counts as task_name="other", in seconds; 0: never.',
        expects="seconds, 120 or more; 0 (the default) is off",
        metavar="SECONDS",
        parse=_series_ttl,
    ),
    Option(
        name="task-include",
        group="Tasks",
        help="Monitor only tasks whose full name matches this regular expression.",
        expects="a regular expression",
        metavar="REGEX",
        parse=parsers.pattern,
    ),
    Option(
        name="task-exclude",
        group="Tasks",
        help="Exclude tasks whose full name matches this regular expression.",
        expects="a regular expression",
        metavar="REGEX",
        parse=parsers.pattern,
    ),
    Option(
        name="task-name-rule",
        group="Tasks",
        help="Rename tasks whose full name matches, for names generated at run time. Repeatable.",
        expects="regex=replacement, such as 'job-[0-9]+=job' or '(\\w+)\\.[0-9a-f]{8}=\\1'",
        metavar="REGEX=NAME",
        parse=parsers.name_rules,
        default=(),
        multiple=True,
    ),
    Option(
        name="task-ttl",
        group="Tasks",
        help="Time after which an unfinished task without events is dropped, in seconds.",
        expects="seconds, 1 or more",
        metavar="SECONDS",
        parse=parsers.number(1, 1e9),
        default=86_400.0,
    ),
    Option(
        name="reorder-window",
        group="Tasks",
        help="How long events of a task wait for its task-sent, which has the queue name, in seconds.",
        expects="seconds, 0 to 60",
        metavar="SECONDS",
        parse=parsers.number(0, 60),
        default=2.0,
    ),
    Option(
        name="shard",
        group="Shards",
        help="Keep only a part of the tasks: shard I of N, from 0. Run one exporter for each shard.",
        expects="I/N, such as 0/4",
        metavar="I/N",
        parse=parsers.shard,
    ),
    Option(
        name="state-file",
        group="State",
        help="A file that keeps counters and unfinished tasks over a restart. For one exporter.",
        expects="a path in a writable directory",
        metavar="PATH",
        parse=parsers.path,
    ),
    Option(
        name="history-file",
        group="History",
        help="A file that keeps single tasks for days, for /tasks and find. For one exporter.",
        expects="a path in a writable directory",
        metavar="PATH",
        parse=parsers.path,
    ),
    Option(
        name="history-memory",
        group="History",
        help="Finished tasks that are kept in memory, besides those of the last minute.",
        expects="a number from 0 to 1000000",
        metavar="NUMBER",
        parse=parsers.whole(0, 1_000_000),
        default=10_000,
    ),
    Option(
        name="history-max-tasks",
        group="History",
        help="Tasks in --history-file; beyond it the oldest are removed.",
        expects="a number from 1000 to 100000000",
        metavar="NUMBER",
        parse=parsers.whole(1_000, 100_000_000),
        default=1_000_000,
    ),
    Option(
        name="history-retention",
        group="History",
        help="Time after which a task is removed from --history-file, in seconds.",
        expects="seconds, 60 or more",
        metavar="SECONDS",
        parse=parsers.number(60, 1e9),
        default=259_200.0,
    ),
    Option(
        name="no-history",
        group="History",
        help="Keep no single tasks: no /tasks, no find.",
        expects="true or false",
        parse=parsers.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="host",
        group="HTTP",
        help="Address to listen on.",
        expects="an address of this machine",
        metavar="ADDRESS",
        default="0.0.0.0",  # noqa: S104  as every exporter: Prometheus is on another host
    ),
    Option(
        name="port",
        group="HTTP",
        help="Port to listen on.",
        expects="a port, 0 (any free one) to 65535",
        metavar="NUMBER",
        parse=parsers.whole(0, 65_535),
        default=9808,
        env=("PROMETHEUS_PORT",),
    ),
    Option(
        name="web.config.file",
        group="HTTP",
        help="Web configuration file, as of other Prometheus exporters: TLS, users and headers.",
        expects="the path of a readable file",
        metavar="PATH",
        parse=parsers.path,
        allow_empty=True,  # an empty variable must not disable authentication
    ),
    Option(
        name="web.enable-lifecycle",
        group="HTTP",
        help="Let POST /-/reload read --config.file again, as SIGHUP does.",
        expects="true or false",
        parse=parsers.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="no-status-page",
        group="HTTP",
        help="Serve a short page at / instead of the pages, and no /api/v1/status.",
        expects="true or false",
        parse=parsers.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="grafana-url",
        group="HTTP",
        help="Grafana with the dashboards of this project, for links from the pages.",
        expects="a URL such as https://grafana.example.com, without a login",
        metavar="URL",
        parse=parsers.http_url,
    ),
    Option(
        name="profile",
        group="Metrics and labels",
        help="Metric names to serve; `celery-exporter profiles` lists them.",
        expects=f"a comma-separated list of {', '.join(PROFILES)}",
        metavar="NAMES",
        parse=parsers.list_of(tuple(PROFILES)),
        default=("native",),
        choices=tuple(PROFILES),
    ),
    Option(
        name="task-labels",
        group="Metrics and labels",
        help="Labels of task metrics besides task_name and state; empty for none.",
        expects=f"a comma-separated list of {', '.join(TASK_LABELS)}",
        metavar="NAMES",
        parse=parsers.list_of(TASK_LABELS, least=0),
        allow_empty=True,
        default=("queue_name",),
        choices=TASK_LABELS,
    ),
    Option(
        name="default-queue-name",
        group="Metrics and labels",
        help="Profile danihodovic: queue_name of an unknown queue.",
        expects="a name",
        parse=parsers.name,
        default=UNKNOWN,
    ),
    Option(
        name="generic-hostname-task-sent-metric",
        group="Metrics and labels",
        help="Profile danihodovic: use `generic` as the host of clients, for fewer series.",
        expects="true or false",
        parse=parsers.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="generic-hostname-worker-task-metric",
        group="Metrics and labels",
        help="Profile danihodovic: use `generic` as the host of workers in task metrics, for fewer series.",
        expects="true or false",
        parse=parsers.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="namespace",
        group="Metrics and labels",
        help="Profile ovalmoney: value of the label `namespace`.",
        expects="a name",
        parse=parsers.name,
        default="celery",
    ),
    Option(
        name="metric-prefix",
        group="Metrics and labels",
        help="Prefix of metric names.",
        expects="letters, digits, underscores and colons",
        metavar="PREFIX",
        parse=parsers.prefix,
        default="celery_",
    ),
    Option(
        name="static-label",
        group="Metrics and labels",
        help="A label with a fixed value on every sample. Repeatable.",
        expects="name=value, the name of letters, digits and underscores and not one that metrics have",
        metavar="NAME=VALUE",
        parse=_labels,
        default={},
        multiple=True,
    ),
    Option(
        name="buckets",
        group="Histograms",
        help="Upper bucket bounds of task runtimes, in seconds; other profiles have their own defaults.",
        expects="increasing numbers, separated by commas",
        metavar="NUMBERS",
        parse=parsers.buckets,
        display_default=native.RUNTIME_BUCKETS,
    ),
    Option(
        name="queue-wait-buckets",
        group="Histograms",
        help="Upper bucket bounds of waiting times, in seconds; other profiles have their own defaults.",
        expects="increasing numbers, separated by commas",
        metavar="NUMBERS",
        parse=parsers.buckets,
        display_default=native.WAIT_BUCKETS,
    ),
    Option(
        name="native-histograms",
        group="Histograms",
        help="Serve native histograms besides the classic ones, to a Prometheus that negotiates protobuf.",
        expects="true or false",
        parse=parsers.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="no-classic-histograms",
        group="Histograms",
        help="Omit the buckets of classic histograms; a native histogram then is one series instead of 17.",
        expects="true or false",
        parse=parsers.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="exemplars",
        group="Histograms",
        help="Add the uuid of a recent task to each bucket, in OpenMetrics.",
        expects="true or false",
        parse=parsers.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="histogram-sample-rate",
        group="Histograms",
        help="Share of tasks, chosen by uuid, that histograms observe; counters count all tasks.",
        expects="a number above 0, 1 at most",
        metavar="NUMBER",
        parse=parsers.number(1e-6, 1),
    ),
    Option(
        name="service-name",
        group="Records of tasks",
        help="Name of the application in records: the tag or label `service`, and service.name of spans.",
        expects="a name",
        parse=parsers.name,
        default="celery",
        env=("OTEL_SERVICE_NAME",),
    ),
    Option(
        name="record-arguments",
        group="Records of tasks",
        help="Record arguments and results of tasks, which may hold secrets.",
        expects="true or false",
        parse=parsers.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="sink-buffer",
        group="Records of tasks",
        help="Limit of records in memory for each sink, 600 bytes each; the oldest are dropped.",
        expects="a whole number, 1000 or more",
        metavar="NUMBER",
        parse=parsers.whole(1000, 10**8),
        default=100_000,
    ),
    Option(
        name="sink-flush-interval",
        group="Records of tasks",
        help="Longest time that a record waits for others before it is sent, in seconds.",
        expects="seconds, 0.1 to 60",
        metavar="SECONDS",
        parse=parsers.number(0.1, 60),
        default=1.0,
    ),
    Option(
        name="event-log",
        group="Records of tasks",
        help="Append a JSON object for each transition of a task to this file; - is stdout.",
        expects="a path in a writable directory, or -",
        metavar="PATH",
        parse=parsers.path,
    ),
    Option(
        name="influx-url",
        group="InfluxDB",
        help="Write points to this InfluxDB, or another server that accepts its line protocol.",
        expects="a URL such as http://influxdb:8086, without a login",
        metavar="URL",
        parse=parsers.http_url,
    ),
    Option(
        name="influx-version",
        group="InfluxDB",
        help="Write path: 1 (/write), 2 (/api/v2/write) or 3 (/api/v3/write_lp).",
        expects="1, 2 or 3",
        metavar="NUMBER",
        parse=parsers.whole(1, 3),
        default=2,
    ),
    Option(
        name="influx-database",
        group="InfluxDB",
        help="Database; versions 1 and 3.",
        expects="a name",
        parse=parsers.name,
    ),
    Option(
        name="influx-user",
        group="InfluxDB",
        help="User name; version 1.",
        expects="a name",
        parse=parsers.name,
    ),
    Option(
        name="influx-password-file",
        group="InfluxDB",
        help="A file with the password of the user; version 1. Reread for each request.",
        expects="the path of a readable file",
        metavar="PATH",
        parse=parsers.path,
    ),
    Option(
        name="influx-org",
        group="InfluxDB",
        help="Organization; version 2.",
        expects="a name",
        parse=parsers.name,
    ),
    Option(
        name="influx-bucket",
        group="InfluxDB",
        help="Bucket; version 2.",
        expects="a name",
        parse=parsers.name,
    ),
    Option(
        name="influx-token-file",
        group="InfluxDB",
        help="A file with the token; versions 2 and 3. Reread for each request.",
        expects="the path of a readable file",
        metavar="PATH",
        parse=parsers.path,
    ),
    Option(
        name="influx-layout",
        group="InfluxDB",
        help="Layout of points: fields keeps ids as fields, luna as tags, which is a series for each task.",
        expects="fields or luna",
        parse=parsers.one_of(INFLUX_LAYOUTS),
        default="fields",
        choices=INFLUX_LAYOUTS,
    ),
    Option(
        name="loki-url",
        group="Loki",
        help="Push a log line for each transition of a task to this Loki.",
        expects="a URL such as http://loki:3100, without a login",
        metavar="URL",
        parse=parsers.http_url,
    ),
    Option(
        name="loki-tenant",
        group="Loki",
        help="Tenant (X-Scope-OrgID), if Loki has several.",
        expects="a name",
        parse=parsers.name,
    ),
    Option(
        name="loki-user",
        group="Loki",
        help="User name of basic authentication.",
        expects="a name",
        parse=parsers.name,
    ),
    Option(
        name="loki-password-file",
        group="Loki",
        help="A file with the password of the user. Reread for each request.",
        expects="the path of a readable file",
        metavar="PATH",
        parse=parsers.path,
    ),
    Option(
        name="loki-token-file",
        group="Loki",
        help="A file with a bearer token, instead of user and password. Reread for each request.",
        expects="the path of a readable file",
        metavar="PATH",
        parse=parsers.path,
    ),
    Option(
        name="otlp-endpoint",
        group="Traces",
        help="Send a span for each task and attempt to this OTLP receiver, over HTTP (extra `otlp`).",
        expects="a URL such as http://tempo:4318, without a login",
        metavar="URL",
        parse=parsers.http_url,
        env=(TRACES_ENDPOINT, ENDPOINT),
    ),
    Option(
        name="trace-url",
        group="Traces",
        help="URL of a trace in the tracing backend, for links on task pages; {trace_id} is replaced.",
        expects="an http or https URL with {trace_id} in it",
        metavar="URL",
        parse=parsers.trace_url,
    ),
    Option(
        name="log-level",
        group="Log",
        help="Lowest level to log: debug, info, warning, error or critical.",
        expects=f"one of {', '.join(LOG_LEVELS)}",
        metavar="LEVEL",
        parse=_log_level,
        default="info",
        choices=LOG_LEVELS,
    ),
    Option(
        name="log-format",
        group="Log",
        help="Format of log lines: logfmt or json.",
        expects="logfmt or json",
        metavar="FORMAT",
        parse=parsers.one_of(LOG_FORMATS),
        default="logfmt",
        choices=LOG_FORMATS,
    ),
)
