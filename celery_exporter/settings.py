"""What can be set, in one table; argv, environment and files → `Settings`, checked once.

Only `load` makes `Settings`, so whoever holds one need not check again. The options table of the README is
printed from `OPTIONS` too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from celery_exporter.core.cluster import Limits
from celery_exporter.profiles import native

ENV_PREFIXES = ("CELERY_EXPORTER_", "CE_")

#: Upper bucket bounds, seconds: prometheus_client's defaults thinned out, and minutes added, for tasks.
RUNTIME_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Waits go on for longer: a backlog of an hour is still told from one of ten minutes.
WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)

RETRY_INTERVAL = 5.0

PROFILES = ("native",)
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
CONTENT_TYPES = ("json", "msgpack", "yaml", "pickle")


class BadSettingError(Exception):
    """A setting has a value that it does not take; the text is one line for people."""


class Settings(Struct, frozen=True, kw_only=True):
    """Everything that can be set. Times in seconds; None is off."""

    broker_url: str
    broker_transport_options: Mapping[str, Any]
    broker_ssl_options: Mapping[str, Any]
    accept_content: tuple[str, ...]
    retry_interval: float
    event_exchange: str
    event_queue_durable: bool
    enable_events: bool
    update_interval: float
    queues: tuple[str, ...]
    limits: Limits
    host: str
    port: int
    profiles: tuple[str, ...]
    task_labels: tuple[str, ...]
    metric_prefix: str
    static_labels: Mapping[str, str]
    buckets: tuple[float, ...]
    queue_wait_buckets: tuple[float, ...]
    log_level: str
    log_format: str


class Option(Struct, frozen=True, kw_only=True):
    """One option: how it is called, what it takes, and how its text becomes a value.

    `parse` takes one text (a tuple of them when `many`) and raises ValueError for what it does not take.
    """

    name: str
    help: str
    takes: str
    parse: Callable[[Any], Any] = str
    default: Any = None
    short: str | None = None
    many: bool = False
    switch: bool = False
    secret: bool = False
    env: tuple[str, ...] = ()  # read besides the ones with our prefixes

    @property
    def key(self) -> str:
        """Return the name as an identifier."""
        return self.name.replace("-", "_")

    @property
    def variables(self) -> tuple[str, ...]:
        """Return its environment variables, the first that is set wins."""
        return (*(prefix + self.key.upper() for prefix in ENV_PREFIXES), *self.env)


# -- from text to value ------------------------------------------------------------------------------


def _number(low: float, high: float = math.inf) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high or math.isinf(value):
            raise ValueError(text)
        return value

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _seconds_or_off(text: str) -> float | None:
    return _number(0)(text) or None


def _retry_interval(text: str) -> float:
    return _number(0, 300)(text) or RETRY_INTERVAL  # 0 is how other exporters spell their default


def _buckets(text: str) -> tuple[float, ...]:
    bounds = [float(part) for part in text.split(",")]
    if bounds[-1] == math.inf:
        bounds.pop()
    if not bounds or not all(map(math.isfinite, bounds)) or sorted(set(bounds)) != bounds:
        raise ValueError(text)
    return tuple(bounds)


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return parse


def _list_of(choices: tuple[str, ...], *, least: int = 1) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        one = _one_of(choices)
        found = tuple(one(part.strip()) for part in text.split(",") if part.strip())
        if len(found) < least:
            raise ValueError(text)
        return found

    return parse


def _names(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals):
            raise ValueError(text)
        pairs[name.strip()] = value
    return pairs


def _json_pairs(texts: tuple[str, ...]) -> dict[str, Any]:
    return {name: _json_or_text(value) for name, value in _pairs(texts).items()}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


_TAKEN = {"le", *(label for row in native.rows(native.TASK_LABELS) for label in row.labels)}


def _labels(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = _pairs(texts)
    for name in pairs:
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name.startswith("__") or name in _TAKEN:
            raise ValueError(name)
        pairs[name].encode()  # UnicodeEncodeError is a ValueError: what was no UTF-8 on the command line
    return pairs


def _prefix(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", text):
        raise ValueError(text)
    return text


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError(text)
    return text


def _url(text: str) -> str:
    if not re.match(r"[\w+.:]+://", text):
        raise ValueError(text)
    return text


_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def _switch(text: str) -> bool:
    return _one_of(_TRUE + _FALSE)(text) in _TRUE


# -- the table ------------------------------------------------------------------------------------------

OPTIONS = (
    Option(
        name="broker-url",
        help="The broker that Celery uses; several, separated by `;`, are failed over to.",
        takes="a URL such as redis://host:6379/0 or amqp://user:password@host/vhost",
        parse=_url,
        secret=True,
        env=("CELERY_BROKER_URL",),
    ),
    Option(
        name="broker-url-file",
        help="A file that holds the broker URL, to keep its password out of the process list.",
        takes="the path of a readable file",
        parse=Path,
    ),
    Option(
        name="broker-transport-option",
        help="A kombu transport option, as Celery's broker_transport_options. Repeatable.",
        takes="name=value, the value JSON or plain text",
        parse=_json_pairs,
        default={},
        many=True,
        secret=True,
    ),
    Option(
        name="broker-ssl-option",
        help="A TLS option, as Celery's broker_use_ssl. Repeatable.",
        takes="name=value, such as ssl_ca_certs=/etc/ssl/ca.pem or cert_reqs=none",
        parse=_json_pairs,
        default={},
        many=True,
        secret=True,
    ),
    Option(
        name="accept-content",
        help="Serialisers of events to accept. Pickle can run code that the sender chose.",
        takes=f"a comma-separated list of {', '.join(CONTENT_TYPES)}",
        parse=_list_of(CONTENT_TYPES),
        default=("json",),
    ),
    Option(
        name="retry-interval",
        help="The longest wait between two attempts to reach the broker; there is no last attempt.",
        takes="seconds, 0 (the default) to 300",
        parse=_retry_interval,
        default=RETRY_INTERVAL,
    ),
    Option(
        name="event-exchange",
        help="The exchange of events, where Celery's event_exchange was changed.",
        takes="a name",
        parse=_name,
        default="celeryev",
    ),
    Option(
        name="event-queue-durable",
        help="RabbitMQ: a durable queue; events wait there while the one exporter that has it is away.",
        takes="true or false",
        parse=_switch,
        default=False,
        switch=True,
    ),
    Option(
        name="enable-events",
        help="Switch task events on, every update interval, in workers that send none.",
        takes="true or false",
        parse=_switch,
        default=False,
        switch=True,
    ),
    Option(
        name="update-interval",
        help="How often queues are measured and workers asked, in seconds.",
        takes="seconds, 0.5 or more",
        parse=_number(0.5, 86_400),
        default=15.0,
        env=("METRICS_UPDATE_INTERVAL",),
    ),
    Option(
        name="queues",
        short="Q",
        help="Queues to measure besides those that workers and events name. Comma-separated, repeatable.",
        takes="queue names",
        parse=_names,
        default=(),
        many=True,
    ),
    Option(
        name="worker-timeout",
        help="Silence, in seconds, after which a worker counts as down (three heartbeats at least).",
        takes="seconds, 1 or more",
        parse=_number(1, 1e9),
        default=60.0,
    ),
    Option(
        name="purge-offline-worker-metrics",
        help="Seconds after which a worker that is down is forgotten; 0: never.",
        takes="seconds, 0 or more",
        parse=_seconds_or_off,
        default=600.0,
    ),
    Option(
        name="max-tasks",
        help="Unfinished tasks kept in memory, at 400 bytes each; beyond it the oldest go.",
        takes="a whole number, 100 or more",
        parse=_whole(100, 10**9),
        default=300_000,
    ),
    Option(
        name="max-series",
        help="Label sets of task metrics kept; further ones are added up under task_name other.",
        takes="a whole number, 10 or more",
        parse=_whole(10, 10**7),
        default=20_000,
    ),
    Option(
        name="task-ttl",
        help="How long an unfinished task is remembered after its last event, in seconds.",
        takes="seconds, 1 or more",
        parse=_number(1, 1e9),
        default=86_400.0,
    ),
    Option(
        name="reorder-window",
        help="How long a task's events wait for its task-sent, which alone names the queue, in seconds.",
        takes="seconds, 0 to 60",
        parse=_number(0, 60),
        default=2.0,
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
        parse=_whole(0, 65_535),
        default=9808,
        env=("PROMETHEUS_PORT",),
    ),
    Option(
        name="profile",
        help="The metric names to serve.",
        takes=f"a comma-separated list of {', '.join(PROFILES)}",
        parse=_list_of(PROFILES),
        default=("native",),
    ),
    Option(
        name="task-labels",
        help="Labels of task metrics besides task_name and state; empty for none.",
        takes=f"a comma-separated list of {', '.join(native.TASK_LABELS)}",
        parse=_list_of(native.TASK_LABELS, least=0),
        default=("queue_name",),
    ),
    Option(
        name="metric-prefix",
        help="What metric names begin with.",
        takes="letters, digits, underscores and colons",
        parse=_prefix,
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
        help="Upper bucket bounds of task run times, in seconds.",
        takes="rising numbers, separated by commas",
        parse=_buckets,
        default=RUNTIME_BUCKETS,
    ),
    Option(
        name="queue-wait-buckets",
        help="Upper bucket bounds of waiting times, in seconds.",
        takes="rising numbers, separated by commas",
        parse=_buckets,
        default=WAIT_BUCKETS,
    ),
    Option(
        name="log-level",
        help="What to log.",
        takes=f"one of {', '.join(LOG_LEVELS)}",
        parse=_one_of(LOG_LEVELS),
        default="info",
    ),
    Option(
        name="log-format",
        help="How to log: logfmt or json, a line each.",
        takes="logfmt or json",
        parse=_one_of(("logfmt", "json")),
        default="logfmt",
    ),
)


def load(argv: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Return the settings: argv (by option key; None or empty where not given) before environment.

    Raises BadSettingError, with one line that says which option, what it got and what it takes.
    """
    values = {option.key: _value(option, argv.get(option.key), environ) for option in OPTIONS}
    url_file = values.pop("broker_url_file")
    if url_file is not None and (argv.get("broker_url_file") or not argv.get("broker_url")):
        values["broker_url"] = _url_from(url_file)
    if values["broker_url"] is None:
        raise BadSettingError("--broker-url is missing; give it, --broker-url-file or CELERY_BROKER_URL")
    limits = Limits(
        reorder_window=values.pop("reorder_window"),
        worker_timeout=values.pop("worker_timeout"),
        worker_purge=values.pop("purge_offline_worker_metrics"),
        task_ttl=values.pop("task_ttl"),
        max_tasks=values.pop("max_tasks"),
        max_series=values.pop("max_series"),
    )
    return Settings(
        broker_transport_options=values.pop("broker_transport_option"),
        broker_ssl_options=values.pop("broker_ssl_option"),
        static_labels=values.pop("static_label"),
        profiles=values.pop("profile"),
        limits=limits,
        **values,
    )


def _value(option: Option, given: Any, environ: Mapping[str, str]) -> Any:
    source = f"--{option.name}"
    if given is None or given == ():
        variable = next((name for name in option.variables if _is_set(environ.get(name))), None)
        if variable is None:
            return option.default
        source = f"--{option.name} (from {variable})"
        given = _split(environ[variable]) if option.many else environ[variable]
    try:
        return option.parse(given)
    except ValueError:
        got = "something else" if option.secret else repr(" ".join(given) if option.many else given)
        raise BadSettingError(f"{source}: got {got}; it takes {option.takes}") from None


def _is_set(value: str | None) -> bool:
    # Kubernetes sets <SERVICE>_PORT=tcp://… for a service, and one may well be called celery-exporter.
    return value is not None and not value.startswith("tcp://")


def _split(text: str) -> tuple[str, ...]:
    """Split a repeatable option's variable: white space separates, or it is one JSON object."""
    if text.lstrip().startswith("{"):
        try:
            return tuple(
                f"{name}={value if isinstance(value, str) else json.dumps(value)}"
                for name, value in json.loads(text).items()
            )
        except ValueError:
            pass
    return tuple(text.split())


def _url_from(path: Path) -> str:
    try:
        return _url(path.read_text().strip())
    except OSError as error:
        raise BadSettingError(f"--broker-url-file: cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError:
        raise BadSettingError(f"--broker-url-file: {str(path)!r} holds no URL; it takes one, alone") from None
