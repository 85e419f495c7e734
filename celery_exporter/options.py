"""What can be set, in one table: names, help, how a text becomes a value, defaults.

The command line and the options table of the README are printed from it; `settings.load` reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from celery_exporter import parsing
from celery_exporter.core.cluster import TOMBSTONE_SECONDS
from celery_exporter.core.facts import UNKNOWN
from celery_exporter.profiles import TASK_LABELS, native
from celery_exporter.profiles.catalogue import PROFILES

ENV_PREFIXES = ("CELERY_EXPORTER_", "CE_")

RETRY_INTERVAL = 5.0
#: Seconds; by then the last late events of a finished task have found its tombstone.
LEAST_SERIES_TTL = 2 * TOMBSTONE_SECONDS

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
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
    help: str
    takes: str
    parse: Callable[[Any], Any] = str
    default: Any = None
    usual: Any = None  # what people are told is the default, where it is None and the profile decides
    short: str | None = None
    many: bool = False
    switch: bool = False
    secret: bool = False
    blank: bool = False  # a variable that is empty is a value, and not one that is not set
    env: tuple[str, ...] = ()  # read besides the ones with our prefixes

    @property
    def key(self) -> str:
        """Return the name as an identifier."""
        return re.sub(r"[-.]", "_", self.name)

    @property
    def variables(self) -> tuple[str, ...]:
        """Return its environment variables, the first that is set wins."""
        return (*(prefix + self.key.upper() for prefix in ENV_PREFIXES), *self.env)


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
        help="The broker that Celery uses; several, separated by `;`, are failed over to.",
        takes="a URL such as redis://host:6379/0 or amqp://user:password@host/vhost",
        parse=parsing.url,
        secret=True,
        env=("CELERY_BROKER_URL",),
    ),
    Option(
        name="broker-url-file",
        help="A file that holds the broker URL, to keep its password out of the process list.",
        takes="the path of a readable file",
        parse=parsing.path,
    ),
    Option(
        name="broker-transport-option",
        help="A kombu transport option, as Celery's broker_transport_options. Repeatable.",
        takes="name=value, the value JSON or plain text",
        parse=parsing.json_pairs,
        default={},
        many=True,
        secret=True,
    ),
    Option(
        name="broker-ssl-option",
        help="A TLS option, as Celery's broker_use_ssl. Repeatable.",
        takes="name=value, such as ssl_ca_certs=/etc/ssl/ca.pem or cert_reqs=none",
        parse=parsing.json_pairs,
        default={},
        many=True,
        secret=True,
    ),
    Option(
        name="accept-content",
        help="Serialisers of events to accept. Pickle can run code that the sender chose.",
        takes=f"a comma-separated list of {', '.join(CONTENT_TYPES)}",
        parse=_content,
        default=("json",),
    ),
    Option(
        name="retry-interval",
        help="The longest wait between two attempts to reach the broker; there is no last attempt.",
        takes="seconds, 0 (the default) to 86400",
        parse=_retry_interval,
        default=RETRY_INTERVAL,
    ),
    Option(
        name="event-exchange",
        help="The exchange of events, where Celery's event_exchange was changed.",
        takes="a name",
        parse=parsing.name,
        default="celeryev",
    ),
    Option(
        name="reader",
        help="How events are read: auto is the best way for the broker, kombu the slower one that all have.",
        takes="auto or kombu",
        parse=parsing.one_of(("auto", "kombu")),
        default="auto",
    ),
    Option(
        name="event-queue-durable",
        help="RabbitMQ: a durable queue; events wait there while the one exporter that has it is away.",
        takes="true or false",
        parse=parsing.switch,
        default=False,
        switch=True,
    ),
    Option(
        name="enable-events",
        help="Switch task events on, every update interval, in workers that send none.",
        takes="true or false",
        parse=parsing.switch,
        default=False,
        switch=True,
    ),
    Option(
        name="update-interval",
        help="How often queues are measured and workers asked, in seconds.",
        takes="seconds, 0.5 or more",
        parse=parsing.number(0.5, 86_400),
        default=15.0,
        env=("METRICS_UPDATE_INTERVAL",),
    ),
    Option(
        name="queues",
        short="Q",
        help="Queues to measure besides those that workers and events name. Comma-separated, repeatable.",
        takes="queue names",
        parse=parsing.names,
        default=(),
        many=True,
    ),
    Option(
        name="worker-timeout",
        help="Seconds of silence after which a worker is down (three heartbeats at least); 0: never.",
        takes="seconds, 1 or more; 0 is off",
        parse=_worker_timeout,
        default=60.0,
    ),
    Option(
        name="purge-offline-worker-metrics",
        help="Seconds after which a worker that is down is forgotten; 0: never.",
        takes="seconds, 0 or more",
        parse=parsing.seconds_or_off,
        default=600.0,
    ),
    Option(
        name="max-tasks",
        help="Unfinished tasks kept in memory, at 400 bytes each; beyond it the oldest go.",
        takes="a whole number, 1000 or more",
        parse=parsing.whole(1000, 10**9),
        default=300_000,
    ),
    Option(
        name="max-series",
        help="Label sets in each family of task metrics; further ones are added up under task_name other.",
        takes="a whole number, 100 or more",
        parse=parsing.whole(100, 10**7),
        default=20_000,
    ),
    Option(
        name="series-ttl",
        help="Seconds after which label sets of tasks that are not heard of any more are added up as other.",
        takes="seconds, 120 or more; 0 (the default) is off",
        parse=_series_ttl,
    ),
    Option(
        name="task-include",
        help="Show only tasks whose whole name matches this regular expression.",
        takes="a regular expression",
        parse=parsing.pattern,
    ),
    Option(
        name="task-exclude",
        help="Do not show tasks whose whole name matches this regular expression.",
        takes="a regular expression",
        parse=parsing.pattern,
    ),
    Option(
        name="task-name-rule",
        help="Show tasks whose whole name matches under another one, for names made at run time. Repeatable.",
        takes="regex=replacement, such as 'job-[0-9]+=job' or '(\\w+)\\.[0-9a-f]{8}=\\1'",
        parse=parsing.name_rules,
        default=(),
        many=True,
    ),
    Option(
        name="task-ttl",
        help="How long an unfinished task is remembered after its last event, in seconds.",
        takes="seconds, 1 or more",
        parse=parsing.number(1, 1e9),
        default=86_400.0,
    ),
    Option(
        name="reorder-window",
        help="How long a task's events wait for its task-sent, which alone names the queue, in seconds.",
        takes="seconds, 0 to 60",
        parse=parsing.number(0, 60),
        default=2.0,
    ),
    Option(
        name="state-file",
        help="A file with which sums and unfinished tasks outlast a restart; for one exporter.",
        takes="a path in a folder that can be written",
        parse=parsing.path,
    ),
    Option(
        name="host",
        help="The address to listen on.",
        takes="an address of this machine",
        default="0.0.0.0",  # noqa: S104  a scraper is on another host; as every exporter
    ),
    Option(
        name="port",
        help="The port to listen on.",
        takes="a port, 0 (any free one) to 65535",
        parse=parsing.whole(0, 65_535),
        default=9808,
        env=("PROMETHEUS_PORT",),
    ),
    Option(
        name="web.config.file",
        help="A file with TLS, users and headers for the listener, as Prometheus' exporters take it.",
        takes="the path of a readable file",
        parse=parsing.path,
        blank=True,  # nobody is let in because a variable is empty
    ),
    Option(
        name="profile",
        help="The metric names to serve, of those that `celery-exporter profiles` lists.",
        takes=f"a comma-separated list of {', '.join(PROFILES)}",
        parse=parsing.list_of(tuple(PROFILES)),
        default=("native",),
    ),
    Option(
        name="task-labels",
        help="Labels of task metrics besides task_name and state; empty for none.",
        takes=f"a comma-separated list of {', '.join(TASK_LABELS)}",
        parse=parsing.list_of(TASK_LABELS, least=0),
        blank=True,
        default=("queue_name",),
    ),
    Option(
        name="default-queue-name",
        help="Profile danihodovic: what a queue is called that nobody told.",
        takes="a name",
        parse=parsing.name,
        default=UNKNOWN,
    ),
    Option(
        name="generic-hostname-task-sent-metric",
        help="Profile danihodovic: call hosts of clients `generic`, for fewer series.",
        takes="true or false",
        parse=parsing.switch,
        default=False,
        switch=True,
    ),
    Option(
        name="generic-hostname-worker-task-metric",
        help="Profile danihodovic: call hosts of workers `generic` on task metrics, for fewer series.",
        takes="true or false",
        parse=parsing.switch,
        default=False,
        switch=True,
    ),
    Option(
        name="namespace",
        help="Profile ovalmoney: the value of the label `namespace`.",
        takes="a name",
        parse=parsing.name,
        default="celery",
    ),
    Option(
        name="metric-prefix",
        help="What metric names begin with.",
        takes="letters, digits, underscores and colons",
        parse=parsing.prefix,
        default="celery_",
    ),
    Option(
        name="static-label",
        help="A label with a fixed value on every sample. Repeatable.",
        takes="name=value, the name of letters, digits and underscores and not one that metrics have",
        parse=_labels,
        default={},
        many=True,
    ),
    Option(
        name="buckets",
        help="Upper bucket bounds of task run times, in seconds; other profiles have their own defaults.",
        takes="rising numbers, separated by commas",
        parse=parsing.buckets,
        usual=native.RUNTIME_BUCKETS,
    ),
    Option(
        name="queue-wait-buckets",
        help="Upper bucket bounds of waiting times, in seconds; other profiles have their own defaults.",
        takes="rising numbers, separated by commas",
        parse=parsing.buckets,
        usual=native.WAIT_BUCKETS,
    ),
    Option(
        name="native-histograms",
        help="Native histograms beside the buckets, for a Prometheus that asks for its protobuf format.",
        takes="true or false",
        parse=parsing.switch,
        default=False,
        switch=True,
    ),
    Option(
        name="no-classic-histograms",
        help="Leave the buckets of histograms out; a native one is one series then, instead of fifteen.",
        takes="true or false",
        parse=parsing.switch,
        default=False,
        switch=True,
    ),
    Option(
        name="exemplars",
        help="The uuid of a recent task beside each bucket, in OpenMetrics.",
        takes="true or false",
        parse=parsing.switch,
        default=False,
        switch=True,
    ),
    Option(
        name="histogram-sample-rate",
        help="The share of tasks, chosen by uuid, that histograms observe; counters count all.",
        takes="a number above 0, 1 at most",
        parse=parsing.number(1e-6, 1),
    ),
    Option(
        name="log-level",
        help="What to log.",
        takes=f"one of {', '.join(LOG_LEVELS)}",
        parse=_log_level,
        default="info",
    ),
    Option(
        name="log-format",
        help="How to log: logfmt or json, a line each.",
        takes="logfmt or json",
        parse=parsing.one_of(("logfmt", "json")),
        default="logfmt",
    ),
)
