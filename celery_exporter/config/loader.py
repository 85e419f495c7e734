"""Command line, environment and files → `Settings`, checked once by the rows of `OPTIONS`.

Only `load` makes `Settings` (and `load_listen` a `ListenConfig`), so no other code checks a value again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.url_file import url_from_file
from celery_exporter.config.options import OPTIONS, Option
from celery_exporter.config.otel_variables import (
    TRACES_ENDPOINT,
    TRACES_PATH,
    otlp_config,
    without_traces_turned_off,
)
from celery_exporter.config.schema import Settings
from celery_exporter.core.limits import Limits
from celery_exporter.core.task_names import Pattern, shown_as
from celery_exporter.errors import BadSettingError
from celery_exporter.history.config import HistoryConfig
from celery_exporter.metrics.config import MetricsConfig
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.profiles.native import EXPORTER_ROWS
from celery_exporter.metrics.registry import ProfilesClashError, Selection, select
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.sinks.config import InfluxConfig, LokiConfig, OtlpConfig, SinksConfig
from celery_exporter.web.listen_config import ListenConfig

C = TypeVar("C", bound=Struct)


def load_listen(argv: Mapping[str, Any], environ: Mapping[str, str]) -> ListenConfig:
    """Return only where the exporter listens, by the same rules as `load`."""
    fields = ListenConfig.__struct_fields__
    options = (option for option in OPTIONS if option.key in fields)
    return ListenConfig(**{option.key: _value(option, argv.get(option.key), environ) for option in options})


def load(argv: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Return the settings. A value in `argv`, by option key, takes precedence over the environment.

    Raises BadSettingError; its text is one line with the option, the value and what the option expects.
    """
    environ = without_traces_turned_off(environ)
    values = {option.key: _value(option, argv.get(option.key), environ) for option in OPTIONS}
    _resolve_url(values, argv)
    if values["event_queue_durable"] and values["event_consumer"] == "kombu":
        raise BadSettingError(
            "--event-consumer: got 'kombu', which cannot acknowledge; --event-queue-durable needs auto"
        )
    _check_queues(values["queues"], values["queue_include"], values["queue_exclude"])
    values["selection"] = _selection(values)
    _check_static_labels(values["static_label"], values["selection"])
    values["broker"] = _config(BrokerConfig, values)
    values["limits"] = _config(Limits, values)
    values["metrics"] = _config(MetricsConfig, values)
    values |= {"influx": _config(InfluxConfig, values), "loki": _config(LokiConfig, values)}
    values["otlp"] = _otlp_config(values, argv, environ)
    values["sinks"] = _config(SinksConfig, values)
    values["history"] = _history_config(values)
    values["records"] = values["sinks"].is_any_on
    values["traces"] = values["otlp"].otlp_endpoint is not None
    values["monitor"] = _config(MonitorConfig, values)
    values["listen"] = _config(ListenConfig, values)
    return _config(Settings, values)


def _config(config_type: type[C], values: Mapping[str, Any]) -> C:
    """Return a config, whose fields have the names of options."""
    return config_type(**{name: values[name] for name in config_type.__struct_fields__})


def _history_config(values: Mapping[str, Any]) -> HistoryConfig:
    """Return what is remembered of single tasks: nothing if no page shows it."""
    config = _config(HistoryConfig, values)
    if config.no_history and config.history_file is not None:
        raise BadSettingError("--history-file: got --no-history, too; give one of them")
    return replace(config, no_history=config.no_history or values["no_status_page"])


def _resolve_url(values: dict[str, Any], argv: Mapping[str, Any]) -> None:
    """Set `broker_url` from whichever option was given; raise BadSettingError for both or none."""
    if argv.get("broker_url") and argv.get("broker_url_file"):
        raise BadSettingError("--broker-url and --broker-url-file: got both; give one of them")
    if argv.get("broker_url"):  # an option takes precedence over a variable
        values["broker_url_file"] = None
    if values["broker_url_file"] is not None:
        values["broker_url"] = url_from_file(values["broker_url_file"])
    if values["broker_url"] is None:
        raise BadSettingError("--broker-url is missing; give it, --broker-url-file or CELERY_BROKER_URL")
    values["broker_url"] = values["broker_url"].strip()  # `echo` ends a secret with a newline


def _check_queues(queues: Iterable[str], include: Pattern | None, exclude: Pattern | None) -> None:
    """Raise BadSettingError for a queue that is both requested and excluded."""
    is_shown = shown_as(include, exclude, ())
    for name in queues:
        if not is_shown(name):
            raise BadSettingError(
                f"--queues: got {name!r}, which --queue-include or --queue-exclude excludes"
            )


def _selection(values: Mapping[str, Any]) -> Selection:
    """Return the metrics of the selected profiles."""
    names = (name for name in MetricOptions.__struct_fields__ if name in values)  # the others are no options
    options = MetricOptions(**{name: values[name] for name in names})
    try:
        return select(values["profile"], options, values["metric_prefix"])
    except ProfilesClashError as error:
        raise BadSettingError(str(error)) from None


def _check_static_labels(labels: Mapping[str, str], selection: Selection) -> None:
    """Raise BadSettingError for a label that a metric of a profile has already.

    The exporter's own metrics are not checked: they keep their label, and users of other exporters do not
    know which labels they have.
    """
    rows = (row for row in selection.rows if row not in EXPORTER_ROWS)
    taken = {"le", *(label for row in rows for label in row.labels)}
    for name, value in labels.items():
        if name in taken:
            pair = f"{name}={value}"
            raise BadSettingError(f"--static-label: got {pair!r}; it takes a name that metrics do not have")


def _otlp_config(
    values: Mapping[str, Any], argv: Mapping[str, Any], environ: Mapping[str, str]
) -> OtlpConfig:
    """Return where spans are sent, and how."""
    url = values["otlp_endpoint"]
    if url is None:
        return OtlpConfig(otlp_endpoint=None)
    is_complete = _source("otlp_endpoint", argv, environ) == TRACES_ENDPOINT
    url = environ[TRACES_ENDPOINT].strip() if is_complete else url + TRACES_PATH
    service = {"service.name": values["service_name"]}
    attributes = {**values["static_label"], **(service if _source("service_name", argv, environ) else {})}
    return otlp_config(url, service, attributes, environ)


def _source(key: str, argv: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """Return what sets an option: the option itself, one of its variables, or None for nothing."""
    option = next(option for option in OPTIONS if option.key == key)
    return f"--{option.name}" if argv.get(key) is not None else _variable(option, environ)


def _variable(option: Option, environ: Mapping[str, str]) -> str | None:
    """Return the variable that sets an option, if no argument does."""
    return next((name for name in option.variables if _is_set(option, environ.get(name))), None)


def _value(option: Option, argument: Any, environ: Mapping[str, str]) -> Any:
    source, text = f"--{option.name}", argument
    if argument is None or argument == ():
        variable = _variable(option, environ)
        if variable is None:
            return option.default
        source = f"--{option.name} (from {variable})"
        text = _split(environ[variable]) if option.multiple else environ[variable]
    try:
        return option.parse(text)
    except ValueError:
        # A URL given to another option may hold a password.
        is_secret = option.secret or "://" in str(text)
        shown = "something else" if is_secret else repr(" ".join(text) if option.multiple else text)
        raise BadSettingError(f"{source}: got {shown}; it takes {option.expects}") from None


def _is_set(option: Option, value: str | None) -> bool:
    if not value:  # compose files set variables to an empty text
        return value is not None and option.allow_empty
    # Kubernetes sets <SERVICE>_PORT=tcp://… for every service, also for one named celery-exporter.
    return not value.startswith("tcp://")


def _split(text: str) -> tuple[str, ...]:
    """Split the variable of a repeatable option: at white space, or it is one JSON object."""
    if text.lstrip().startswith("{"):
        try:
            return tuple(
                f"{name}={value if isinstance(value, str) else json.dumps(value)}"
                for name, value in json.loads(text).items()
            )
        except ValueError:
            pass
    return tuple(text.split())
