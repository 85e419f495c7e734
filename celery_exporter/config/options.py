"""What can be set, in one table: names, groups, help, how a text becomes a value, defaults.

The command line, its help and completion, and docs/reference/options.md are printed from
it; `settings.load` reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from celery_exporter.config import parsers as parsing
from celery_exporter.core.task_lifecycle import TOMBSTONE_SECONDS
from celery_exporter.core.task_names import QUEUE_NAME_RULES
from celery_exporter.core.types import UNKNOWN
from celery_exporter.metrics.model import TASK_LABELS
from celery_exporter.metrics.profiles import native
from celery_exporter.metrics.registry import PROFILES

ENV_PREFIXES = ("CELERY_EXPORTER_", "CE_")

RETRY_INTERVAL = 5.0
#: Seconds; by then the last late events of a finished task have found its tombstone.
LEAST_SERIES_TTL = 2 * TOMBSTONE_SECONDS

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("logfmt", "json")
EVENT_CONSUMERS = ("auto", "kombu")
CONTENT_TYPES = ("json", "msgpack", "yaml", "pickle")
#: Levels that other exporters have besides, and what shows the same of ours.
_LEVELS = {"trace": "debug", "success": "warning"}
_MEDIA_TYPES = {
    "application/json": "json",
    "application/x-msgpack": "msgpack",
    "application/x-yaml": "yaml",
    "application/x-python-serialize": "pickle",
}


class Option(Struct, frozen=True, kw_only=True):
    """One option: how it is called, what it takes, and how its text becomes a value.

    `parse` takes one text (a tuple of them when `many`) and raises ValueError for what it does not take.
    """

    name: str
    group: str
    help: str
    expects: str
    metavar: str = "NAME"  # what stands for its value in --help; a PATH is completed as one
    parse: Callable[[Any], Any] = str
    default: Any = None
    display_default: Any = None  # shown as the default in help and docs, where it differs from `default`
    short: str | None = None
    multiple: bool = False
    is_flag: bool = False
    secret: bool = False
    allow_empty: bool = False  # an empty variable is a value; elsewhere it counts as not set
    choices: tuple[str, ...] = ()  # what a shell may complete it to
    env: tuple[str, ...] = ()  # read besides the ones with our prefixes
    old_name: str = ""  # still taken, and not documented

    @property
    def key(self) -> str:
        """Return the name as an identifier."""
        return re.sub(r"[-.]", "_", self.name)

    @property
    def variables(self) -> tuple[str, ...]:
        """Return its environment variables, the first that is set wins."""
        names = [self.key.upper(), *([self.old_name.upper()] if self.old_name else [])]
        return (*(prefix + name for name in names for prefix in ENV_PREFIXES), *self.env)


def _retry_interval(text: str) -> float:
    return parsing.number(0, 86_400)(text) or RETRY_INTERVAL  # 0 is how other exporters spell their default


def _worker_timeout(text: str) -> float:
    return parsing.number(1, 1e9)(text) if parsing.number(0)(text) else math.inf


def _content(text: str) -> tuple[str, ...]:
    parts = (part.strip().lower() for part in text.split(","))
    return parsing.list_of(CONTENT_TYPES)(",".join(_MEDIA_TYPES.get(part, part) for part in parts))


def _log_level(text: str) -> str:
    return parsing.one_of(LOG_LEVELS)(_LEVELS.get(text.lower(), text))


def _series_ttl(text: str) -> float | None:
    seconds = parsing.seconds_or_off(text)
    return None if seconds is None else parsing.number(LEAST_SERIES_TTL)(text)


def _labels(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = parsing.pairs(texts)
    for name in pairs:
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name.startswith("__"):
            raise ValueError(name)
        pairs[name].encode()  # UnicodeEncodeError is a ValueError: what was no UTF-8 on the command line
    return pairs


OPTIONS = (
    Option(
        name="broker-url",
        group="Broker",
        help="The broker that Celery uses; several, separated by `;`, are failed over to.",
        expects="a URL such as redis://host:6379/0 or amqp://user:password@host/vhost",
        metavar="URL",
        parse=parsing.url,
        secret=True,
        env=("CELERY_BROKER_URL",),
    ),
    Option(
        name="broker-url-file",
        group="Broker",
        help="A file that holds the broker URL, out of the process list; reread when it changes.",
        expects="the path of a readable file",
        metavar="PATH",
        parse=parsing.path,
    ),
    Option(
        name="broker-transport-option",
        group="Broker",
        help="A kombu transport option, as Celery's broker_transport_options. Repeatable.",
        expects="name=value, the value JSON or plain text",
        metavar="NAME=VALUE",
        parse=parsing.json_pairs,
        default={},
        multiple=True,
        secret=True,
    ),
    Option(
        name="broker-ssl-option",
        group="Broker",
        help="A TLS option, as Celery's broker_use_ssl. Repeatable.",
        expects="name=value, such as ssl_ca_certs=/etc/ssl/ca.pem or cert_reqs=none",
        metavar="NAME=VALUE",
        parse=parsing.json_pairs,
        default={},
        multiple=True,
        secret=True,
    ),
    Option(
        name="accept-content",
        group="Broker",
        help="Serialisers of events to accept. Pickle can run code that the sender chose.",
        expects=f"a comma-separated list of {', '.join(CONTENT_TYPES)}",
        metavar="NAMES",
        parse=_content,
        default=("json",),
        choices=CONTENT_TYPES,
    ),
    Option(
        name="retry-interval",
        group="Broker",
        help="The longest wait between two attempts to reach the broker; it retries indefinitely.",
        expects="seconds up to 86400; 0 means the default",
        metavar="SECONDS",
        parse=_retry_interval,
        default=RETRY_INTERVAL,
    ),
    Option(
        name="event-exchange",
        group="Events",
        help="The exchange of events, where Celery's event_exchange was changed.",
        expects="a name",
        parse=parsing.name,
        default="celeryev",
    ),
    Option(
        name="control-exchange",
        group="Events",
        help="The exchange of remote control commands, where Celery's control_exchange was changed.",
        expects="a name",
        parse=parsing.name,
        default="celery",
    ),
    Option(
        name="event-consumer",
        group="Events",
        help="How events are consumed: auto is the fastest way for the broker, kombu works for every broker.",
        expects="auto or kombu",
        parse=parsing.one_of(EVENT_CONSUMERS),
        default="auto",
        choices=EVENT_CONSUMERS,
        old_name="reader",
    ),
    Option(
        name="event-queue-durable",
        group="Events",
        help="RabbitMQ: a durable queue; events wait there while the one exporter that has it is away.",
        expects="true or false",
        parse=parsing.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="enable-events",
        group="Events",
        help="Switch task events on, every update interval, in workers that send none.",
        expects="true or false",
        parse=parsing.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="update-interval",
        group="Queues and workers",
        help="How often queues are measured and workers asked, in seconds.",
        expects="seconds, 0.5 or more",
        metavar="SECONDS",
        parse=parsing.number(0.5, 86_400),
        default=15.0,
        env=("METRICS_UPDATE_INTERVAL",),
    ),
    Option(
        name="queues",
        group="Queues and workers",
        short="Q",
        help="Queues to measure besides those that workers and events name. Comma-separated, repeatable.",
        expects="queue names",
        metavar="NAMES",
        parse=parsing.names,
        default=(),
        multiple=True,
    ),
    Option(
        name="queue-include",
        group="Queues and workers",
        help="Show only queues whose whole name matches this regular expression.",
        expects="a regular expression",
        metavar="REGEX",
        parse=parsing.pattern,
    ),
    Option(
        name="queue-exclude",
        group="Queues and workers",
        help="Do not measure queues whose whole name matches; their tasks count under queue_name other.",
        expects="a regular expression",
        metavar="REGEX",
        parse=parsing.pattern,
    ),
    Option(
        name="queue-name-rule",
        group="Queues and workers",
        help="Show queues whose whole name matches under another one, added up. Repeatable. Rules for "
        "uuids and the like follow, unless an empty one is given.",
        expects="regex=replacement, such as 'customer-[0-9]+=customer-*', or nothing, for no rules but yours",
        metavar="REGEX=NAME",
        parse=parsing.queue_name_rules,
        default=QUEUE_NAME_RULES,
        display_default="",
        multiple=True,
        allow_empty=True,
    ),
    Option(
        name="worker-timeout",
        group="Queues and workers",
        help="Seconds of silence after which a worker is down (three heartbeats at least); 0: never.",
        expects="seconds, 1 or more; 0 is off",
        metavar="SECONDS",
        parse=_worker_timeout,
        default=60.0,
    ),
    Option(
        name="purge-offline-worker-metrics",
        group="Queues and workers",
        help="Seconds after which a worker that is down is forgotten; 0: never.",
        expects="seconds, 0 or more",
        metavar="SECONDS",
        parse=parsing.seconds_or_off,
        default=600.0,
    ),
    Option(
        name="max-tasks",
        group="Tasks",
        help="Unfinished tasks kept in memory, at 400 bytes each; beyond it the oldest go.",
        expects="a whole number, 1000 or more",
        metavar="NUMBER",
        parse=parsing.whole(1000, 10**9),
        default=300_000,
    ),
    Option(
        name="max-series",
        group="Tasks",
        help="Label sets in each family of task metrics; further ones are added up under task_name other.",
        expects="a whole number, 100 or more",
        metavar="NUMBER",
        parse=parsing.whole(100, 10**7),
        default=20_000,
    ),
    Option(
        name="series-ttl",
        group="Tasks",
        help="Seconds after which label sets of tasks that are not heard of any more are added up as other.",
        expects="seconds, 120 or more; 0 (the default) is off",
        metavar="SECONDS",
        parse=_series_ttl,
    ),
    Option(
        name="task-include",
        group="Tasks",
        help="Show only tasks whose whole name matches this regular expression.",
        expects="a regular expression",
        metavar="REGEX",
        parse=parsing.pattern,
    ),
    Option(
        name="task-exclude",
        group="Tasks",
        help="Do not show tasks whose whole name matches this regular expression.",
        expects="a regular expression",
        metavar="REGEX",
        parse=parsing.pattern,
    ),
    Option(
        name="task-name-rule",
        group="Tasks",
        help="Show tasks whose whole name matches under another one, for names made at run time. Repeatable.",
        expects="regex=replacement, such as 'job-[0-9]+=job' or '(\\w+)\\.[0-9a-f]{8}=\\1'",
        metavar="REGEX=NAME",
        parse=parsing.name_rules,
        default=(),
        multiple=True,
    ),
    Option(
        name="task-ttl",
        group="Tasks",
        help="How long an unfinished task is remembered after its last event, in seconds.",
        expects="seconds, 1 or more",
        metavar="SECONDS",
        parse=parsing.number(1, 1e9),
        default=86_400.0,
    ),
    Option(
        name="reorder-window",
        group="Tasks",
        help="How long a task's events wait for its task-sent, which alone names the queue, in seconds.",
        expects="seconds, 0 to 60",
        metavar="SECONDS",
        parse=parsing.number(0, 60),
        default=2.0,
    ),
    Option(
        name="state-file",
        group="State",
        help="A file with which sums and unfinished tasks outlast a restart; for one exporter.",
        expects="a path in a folder that can be written",
        metavar="PATH",
        parse=parsing.path,
    ),
    Option(
        name="host",
        group="HTTP",
        help="The address to listen on.",
        expects="an address of this machine",
        metavar="ADDRESS",
        default="0.0.0.0",  # noqa: S104  a scraper is on another host; as every exporter
    ),
    Option(
        name="port",
        group="HTTP",
        help="The port to listen on.",
        expects="a port, 0 (any free one) to 65535",
        metavar="NUMBER",
        parse=parsing.whole(0, 65_535),
        default=9808,
        env=("PROMETHEUS_PORT",),
    ),
    Option(
        name="web.config.file",
        group="HTTP",
        help="A file with TLS, users and headers for the listener, as Prometheus' exporters take it.",
        expects="the path of a readable file",
        metavar="PATH",
        parse=parsing.path,
        allow_empty=True,  # nobody is let in because a variable is empty
    ),
    Option(
        name="no-status-page",
        group="HTTP",
        help="Serve a short page at / instead of the status page, and no /api/v1/status.",
        expects="true or false",
        parse=parsing.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="profile",
        group="Metrics and labels",
        help="The metric names to serve, of those that `celery-exporter profiles` lists.",
        expects=f"a comma-separated list of {', '.join(PROFILES)}",
        metavar="NAMES",
        parse=parsing.list_of(tuple(PROFILES)),
        default=("native",),
        choices=tuple(PROFILES),
    ),
    Option(
        name="task-labels",
        group="Metrics and labels",
        help="Labels of task metrics besides task_name and state; empty for none.",
        expects=f"a comma-separated list of {', '.join(TASK_LABELS)}",
        metavar="NAMES",
        parse=parsing.list_of(TASK_LABELS, least=0),
        allow_empty=True,
        default=("queue_name",),
        choices=TASK_LABELS,
    ),
    Option(
        name="default-queue-name",
        group="Metrics and labels",
        help="Profile danihodovic: what a queue is called that nobody told.",
        expects="a name",
        parse=parsing.name,
        default=UNKNOWN,
    ),
    Option(
        name="generic-hostname-task-sent-metric",
        group="Metrics and labels",
        help="Profile danihodovic: call hosts of clients `generic`, for fewer series.",
        expects="true or false",
        parse=parsing.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="generic-hostname-worker-task-metric",
        group="Metrics and labels",
        help="Profile danihodovic: call hosts of workers `generic` on task metrics, for fewer series.",
        expects="true or false",
        parse=parsing.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="namespace",
        group="Metrics and labels",
        help="Profile ovalmoney: the value of the label `namespace`.",
        expects="a name",
        parse=parsing.name,
        default="celery",
    ),
    Option(
        name="metric-prefix",
        group="Metrics and labels",
        help="What metric names begin with.",
        expects="letters, digits, underscores and colons",
        metavar="PREFIX",
        parse=parsing.prefix,
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
        help="Upper bucket bounds of task run times, in seconds; other profiles have their own defaults.",
        expects="rising numbers, separated by commas",
        metavar="NUMBERS",
        parse=parsing.buckets,
        display_default=native.RUNTIME_BUCKETS,
    ),
    Option(
        name="queue-wait-buckets",
        group="Histograms",
        help="Upper bucket bounds of waiting times, in seconds; other profiles have their own defaults.",
        expects="rising numbers, separated by commas",
        metavar="NUMBERS",
        parse=parsing.buckets,
        display_default=native.WAIT_BUCKETS,
    ),
    Option(
        name="native-histograms",
        group="Histograms",
        help="Native histograms beside the buckets, for a Prometheus that asks for its protobuf format.",
        expects="true or false",
        parse=parsing.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="no-classic-histograms",
        group="Histograms",
        help="Leave the buckets of histograms out; a native one is one series then, instead of 17.",
        expects="true or false",
        parse=parsing.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="exemplars",
        group="Histograms",
        help="The uuid of a recent task beside each bucket, in OpenMetrics.",
        expects="true or false",
        parse=parsing.switch,
        default=False,
        is_flag=True,
    ),
    Option(
        name="histogram-sample-rate",
        group="Histograms",
        help="The share of tasks, chosen by uuid, that histograms observe; counters count all.",
        expects="a number above 0, 1 at most",
        metavar="NUMBER",
        parse=parsing.number(1e-6, 1),
    ),
    Option(
        name="log-level",
        group="Log",
        help="What to log: debug, info, warning, error or critical.",
        expects=f"one of {', '.join(LOG_LEVELS)}",
        metavar="LEVEL",
        parse=_log_level,
        default="info",
        choices=LOG_LEVELS,
    ),
    Option(
        name="log-format",
        group="Log",
        help="How to log: logfmt or json, a line each.",
        expects="logfmt or json",
        metavar="FORMAT",
        parse=parsing.one_of(LOG_FORMATS),
        default="logfmt",
        choices=LOG_FORMATS,
    ),
)
