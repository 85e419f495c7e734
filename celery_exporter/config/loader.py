"""argv, environment and files → `Settings`, checked once by the rows of `OPTIONS`.

Only `load` makes `Settings` (and `load_listener` a `Listener`), so whoever holds one need not check again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.config import parsers as parsing
from celery_exporter.config.options import OPTIONS, Option
from celery_exporter.core.limits import Limits
from celery_exporter.core.task_names import Pattern, shown_as
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.profiles.native import EXPORTER_ROWS
from celery_exporter.metrics.registry import ProfilesClashError, Selection, select

#: Characters that are read of a file that holds a URL.
LONGEST_URL = 2**16


class BadSettingError(Exception):
    """A setting has a value that it does not take; the text is one line for people."""


class Settings(Struct, frozen=True, kw_only=True):
    """Everything that can be set. Times in seconds; None is off."""

    broker_url: str
    broker_url_file: Path | None  # where the URL was read from, and is read again
    broker_transport_options: Mapping[str, Any]
    broker_ssl_options: Mapping[str, Any]
    accept_content: tuple[str, ...]
    retry_interval: float
    event_exchange: str
    control_exchange: str
    event_consumer: str
    event_queue_durable: bool
    enable_events: bool
    update_interval: float
    queues: tuple[str, ...]
    queue_include: Pattern | None
    queue_exclude: Pattern | None
    queue_name_rules: tuple[tuple[Pattern, str], ...]
    limits: Limits
    state_file: Path | None
    host: str
    port: int
    web_config_file: Path | None
    selection: Selection
    task_include: Pattern | None
    task_exclude: Pattern | None
    task_name_rules: tuple[tuple[Pattern, str], ...]
    metric_prefix: str
    static_labels: Mapping[str, str]
    log_level: str
    native_histograms: bool
    no_classic_histograms: bool
    no_status_page: bool
    exemplars: bool
    histogram_sample_rate: float | None
    log_format: str

    def to_look(self) -> Settings:
        """Return settings of an exporter that only looks: it switches nothing on, and keeps nothing."""
        return replace(
            self,
            enable_events=False,
            event_queue_durable=False,  # whose events are another's
            state_file=None,
        )


class Listener(Struct, frozen=True, kw_only=True):
    """Where the exporter listens: what those need to know who ask it something."""

    host: str
    port: int
    web_config_file: Path | None


def load_listener(argv: Mapping[str, Any], environ: Mapping[str, str]) -> Listener:
    """Return only where the exporter listens, by the same rules as `load`."""
    return Listener(
        **{
            option.key: _value(option, argv.get(option.key), environ)
            for option in OPTIONS
            if option.key in Listener.__struct_fields__
        }
    )


def load(argv: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Return the settings: argv (by option key; None or empty where not given) before environment.

    Raises BadSettingError, with one line that says which option, what it got and what it takes.
    """
    values = {option.key: _value(option, argv.get(option.key), environ) for option in OPTIONS}
    if argv.get("broker_url") and argv.get("broker_url_file"):
        raise BadSettingError("--broker-url and --broker-url-file are both given; give one of them")
    if argv.get("broker_url"):  # an option beats a variable
        values["broker_url_file"] = None
    if values["broker_url_file"] is not None:
        values["broker_url"] = url_from_file(values["broker_url_file"])
    if values["broker_url"] is None:
        raise BadSettingError("--broker-url is missing; give it, --broker-url-file or CELERY_BROKER_URL")
    values["broker_url"] = values[
        "broker_url"
    ].strip()  # a secret that was written by echo ends with a newline
    if values["event_queue_durable"] and values["event_consumer"] == "kombu":
        raise BadSettingError(
            "--event-consumer: got 'kombu'; --event-queue-durable takes auto, which acknowledges"
        )
    _check_queues(values["queues"], values["queue_include"], values["queue_exclude"])
    limits = Limits(
        reorder_window=values.pop("reorder_window"),
        worker_timeout=values.pop("worker_timeout"),
        worker_purge=values.pop("purge_offline_worker_metrics"),
        task_ttl=values.pop("task_ttl"),
        max_tasks=values.pop("max_tasks"),
        max_series=values.pop("max_series"),
        series_ttl=values.pop("series_ttl"),
    )
    selection = _selection(values)
    return Settings(
        broker_transport_options=values.pop("broker_transport_option"),
        broker_ssl_options=values.pop("broker_ssl_option"),
        static_labels=_static_labels(values.pop("static_label"), selection),
        selection=selection,
        task_name_rules=values.pop("task_name_rule"),
        queue_name_rules=values.pop("queue_name_rule"),
        limits=limits,
        **values,
    )


def _check_queues(queues: Iterable[str], include: Pattern | None, exclude: Pattern | None) -> None:
    """Raise BadSettingError for a queue that is asked for and left out."""
    is_shown = shown_as(include, exclude, ())
    for name in queues:
        if not is_shown(name):
            raise BadSettingError(
                f"--queues: got {name!r}, which --queue-include or --queue-exclude leaves out"
            )


def _selection(values: dict[str, Any]) -> Selection:
    """Take out of the values what shapes metrics, and return what it makes."""
    shape = MetricOptions(
        task_labels=values.pop("task_labels"),
        buckets=values.pop("buckets"),
        wait_buckets=values.pop("queue_wait_buckets"),
        default_queue_name=values.pop("default_queue_name"),
        namespace=values.pop("namespace"),
        generic_sent=values.pop("generic_hostname_task_sent_metric"),
        generic_worker=values.pop("generic_hostname_worker_task_metric"),
    )
    try:
        return select(values.pop("profile"), shape, values["metric_prefix"])
    except ProfilesClashError as error:
        raise BadSettingError(str(error)) from None


def _static_labels(labels: Mapping[str, str], selection: Selection) -> Mapping[str, str]:
    """Return the labels, none of which may be one that a profile's metric has already.

    Metrics of the exporter itself keep theirs: who comes from another one does not know what they have.
    """
    rows = (row for row in selection.rows if row not in EXPORTER_ROWS)
    taken = {"le", *(label for row in rows for label in row.labels)}
    for name, value in labels.items():
        if name in taken:
            got = f"{name}={value}"
            raise BadSettingError(f"--static-label: got {got!r}; it takes a name that metrics do not have")
    return labels


def _value(option: Option, given: Any, environ: Mapping[str, str]) -> Any:
    source = f"--{option.name}"
    if given is None or given == ():
        variable = next((name for name in option.variables if _is_set(option, environ.get(name))), None)
        if variable is None:
            return option.default
        source = f"--{option.name} (from {variable})"
        given = _split(environ[variable]) if option.multiple else environ[variable]
    try:
        return option.parse(given)
    except ValueError:
        # A URL that stands where none belongs has a password in it.
        secret = option.secret or "://" in str(given)
        got = "something else" if secret else repr(" ".join(given) if option.multiple else given)
        raise BadSettingError(f"{source}: got {got}; it takes {option.expects}") from None


def _is_set(option: Option, value: str | None) -> bool:
    if not value:  # as compose files leave them
        return value is not None and option.allow_empty
    # Kubernetes sets <SERVICE>_PORT=tcp://… for a service, and one may well be called celery-exporter.
    return not value.startswith("tcp://")


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


def url_from_file(path: Path) -> str:
    """Return the broker URL that a file holds; raise BadSettingError, whose text has nothing of it."""
    try:
        with path.open() as file:
            return parsing.url(file.read(LONGEST_URL).strip())
    except OSError as error:
        raise BadSettingError(f"--broker-url-file: cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError:
        raise BadSettingError(f"--broker-url-file: {str(path)!r} holds no URL; it takes one, alone") from None
