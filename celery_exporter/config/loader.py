"""Command line, environment and files → `Settings`, checked once by the rows of `OPTIONS`.

Only `load` makes `Settings` (and `load_listen` a `ListenConfig`), so no other code checks a value again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.url_file import url_from_file
from celery_exporter.config.config_file import (
    BROKER_KEYS,
    BROKERS,
    CONFIG_FILE,
    EXPECTED,
    KEYS,
    OF_ONE_BROKER,
    ConfigFile,
    Setting,
    read,
)
from celery_exporter.config.expected import BadEntryError, as_shown
from celery_exporter.config.options import ENV_PREFIXES, OPTIONS, Option
from celery_exporter.config.otel_variables import (
    TRACES_ENDPOINT,
    TRACES_PATH,
    otlp_config,
    without_traces_turned_off,
)
from celery_exporter.config.schema import BROKER_LABEL, BrokerSettings, Settings
from celery_exporter.config.suggestions import suggestion
from celery_exporter.core.expected import ExpectedTask
from celery_exporter.core.limits import Limits
from celery_exporter.core.task_names import Pattern, shown_as
from celery_exporter.errors import BadSettingError, SecretValueError
from celery_exporter.history.config import HistoryConfig
from celery_exporter.metrics.config import MetricsConfig
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.profiles.native import EXPORTER_ROWS
from celery_exporter.metrics.registry import ProfilesClashError, Selection, select
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.sinks.config import InfluxConfig, LokiConfig, OtlpConfig, SinksConfig
from celery_exporter.web.listen_config import ListenConfig

C = TypeVar("C", bound=Struct)

#: Files that each broker needs for itself.
FILES = ("state_file", "history_file")
#: The variable of the URL of a running exporter, for `top` and `find`.
URL_VARIABLE = "CELERY_EXPORTER_URL"
#: Variables that Kubernetes sets in each container of a namespace for a Service named celery-exporter, or
#: celery-exporter-… (kubernetes.io, "Environment variables" of Services).
_service_variable = re.compile(
    r"CELERY_EXPORTER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)


def load_listen(argv: Mapping[str, Any], environ: Mapping[str, str]) -> ListenConfig:
    """Return only where the exporter listens, by the same rules as `load`."""
    sources = _sources(argv, environ)
    fields = ListenConfig.__struct_fields__
    return ListenConfig(**{option.key: sources.value(option) for option in OPTIONS if option.key in fields})


def load(argv: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Return the settings. A value in `argv`, by option key, takes precedence over the environment.

    Both take precedence over --config.file. Raises BadSettingError; its text is one line with the option, the
    value and what the option expects.
    """
    environ = without_traces_turned_off(environ)
    _check_variables(environ)
    sources = _sources(argv, environ)
    values = {option.key: sources.value(option) for option in OPTIONS}
    sections = sources.file.brokers if sources.file else {}
    if sections:
        _check_no_broker(sources)
        brokers = {name: _of_broker(values, name, section, sources) for name, section in sections.items()}
    else:
        brokers = {"": {**values, **_resolved_url(values, sources)}}
    _check_files(brokers, sources.path)
    values["selection"] = _selection(values)
    _check_static_labels(values["static_label"], values["selection"], is_named="" not in brokers)
    values["metrics"] = _config(MetricsConfig, values)
    values["listen"] = _config(ListenConfig, values)
    values["brokers"] = {
        name: _broker_settings(name, {**values, **of}, sources) for name, of in brokers.items()
    }
    values["given"] = sources.given(of_brokers=False)
    return _config(Settings, values)


def _of_broker(
    values: Mapping[str, Any], name: str, section: Mapping[str, Setting], sources: _Sources
) -> dict[str, Any]:
    """Return the values of the options that a broker in the file may set, with its own ones."""
    own = {option.key: option for option in BROKER_KEYS.values()}
    files = {key: values[key] and values[key].with_name(f"{values[key].name}.{name}") for key in FILES}
    given = {key: sources.in_file(own[key], setting) for key, setting in section.items()}
    of = {**{key: values[key] for key in own}, **files, **given}
    where = f"{sources.path}: {BROKERS}.{name}"
    if of["broker_url"] and of["broker_url_file"]:
        raise BadSettingError(f"{where}: got url and url_file; give one of them")
    if of["broker_url_file"] is not None:
        of["broker_url"] = url_from_file(of["broker_url_file"])
    if of["broker_url"] is None:
        raise BadSettingError(f"{where}: url is missing; give url or url_file")
    return {**of, "broker_url": of["broker_url"].strip()}


def _broker_settings(name: str, values: dict[str, Any], sources: _Sources) -> BrokerSettings:
    """Return the settings of one broker, whose name is empty if it is the only one and not in the file."""
    _check_event_queue(values)
    _check_queues(values["queues"], values["queue_include"], values["queue_exclude"])
    values["broker"] = _config(BrokerConfig, values)
    values["limits"] = _config(Limits, values)
    values |= {"influx": _config(InfluxConfig, values), "loki": _config(LokiConfig, values)}
    values["static_label"] = {**values["static_label"], **({BROKER_LABEL: name} if name else {})}
    values["otlp"] = _otlp_config(values, sources)
    values["sinks"] = _config(SinksConfig, {**values, "broker": name or None})
    values["history"] = _history_config(values)
    values["expected"] = _expected(name, values, sources)
    values["records"] = values["sinks"].is_any_on
    values["traces"] = values["otlp"].otlp_endpoint is not None
    own = sources.file.brokers.get(name, {}) if sources.file else {}
    given = {**sources.given(of_brokers=True), **{key: setting.argument for key, setting in own.items()}}
    given[EXPECTED] = values["expected"]
    return BrokerSettings(monitor=_config(MonitorConfig, values), sinks=values["sinks"], given=given)


def _expected(name: str, values: Mapping[str, Any], sources: _Sources) -> tuple[ExpectedTask, ...]:
    """Return the tasks that are expected of a broker, by the names that its metrics show."""
    expected = sources.file.expected if sources.file else {}
    own = name if name in expected else ""
    show = shown_as(values["task_include"], values["task_exclude"], values["task_name_rule"])
    try:
        return as_shown(expected.get(own, ()), show)
    except BadEntryError as error:
        where = f"{BROKERS}.{own}.{EXPECTED}" if own else EXPECTED
        raise BadSettingError(f"{sources.path}: {where}{error}") from None


def _check_event_queue(values: Mapping[str, Any]) -> None:
    """Raise BadSettingError for options of a durable event queue that contradict each other."""
    given = [KEYS[key].name for key in ("event_queue_durable", "event_queue") if values[key]]
    if len(given) > 1:
        raise BadSettingError("--event-queue: got --event-queue-durable, too; give one of them")
    numbers = re.search(r"\.(\d+)-of-(\d+)$", values["event_queue"] or "")
    if numbers and "/".join(numbers.groups()) != str(values["shard"]):
        raise BadSettingError(
            f"--event-queue: got '{values['event_queue']}', the queue of shard {'/'.join(numbers.groups())}; "
            f"give --shard {'/'.join(numbers.groups())}"
        )
    if given and values["event_consumer"] == "kombu":
        raise BadSettingError(
            f"--event-consumer: got 'kombu', which cannot acknowledge; --{given[0]} needs auto"
        )


def _config(config_type: type[C], values: Mapping[str, Any]) -> C:
    """Return a config, whose fields have the names of options."""
    return config_type(**{name: values[name] for name in config_type.__struct_fields__})


def _history_config(values: Mapping[str, Any]) -> HistoryConfig:
    """Return what is remembered of single tasks: nothing if no page shows it."""
    config = _config(HistoryConfig, values)
    if config.no_history and config.history_file is not None:
        raise BadSettingError("--history-file: got --no-history, too; give one of them")
    return replace(config, no_history=config.no_history or values["no_status_page"])


def _resolved_url(values: Mapping[str, Any], sources: _Sources) -> dict[str, Any]:
    """Return the URL of the only broker, and the file that it is from: by the option that takes precedence.

    Raises BadSettingError for both or none.
    """
    origins = {key: sources.origin(KEYS[key]) for key in ("broker_url", "broker_url_file")}
    given = {key: origin for key, origin in origins.items() if origin is not None}
    if not given:
        raise BadSettingError("--broker-url is missing; give it, --broker-url-file or CELERY_BROKER_URL")
    first = min(origin.rank for origin in given.values())
    nearest = [key for key, origin in given.items() if origin.rank == first]
    if len(nearest) > 1 and first != _VARIABLE:
        names = (given[key].name for key in nearest)
        raise BadSettingError(f"{' and '.join(names)}: got both; give one of them")
    path = values["broker_url_file"] if "broker_url_file" in nearest else None
    url = values["broker_url"] if path is None else url_from_file(path)
    return {"broker_url": url.strip(), "broker_url_file": path}  # `echo` ends a secret with a newline


def _check_no_broker(sources: _Sources) -> None:
    """Raise BadSettingError for options of one broker besides the brokers of the file."""
    for key in OF_ONE_BROKER:
        origin = sources.origin(KEYS[key])
        if origin is not None:
            raise BadSettingError(
                f"{origin.name}: got {BROKERS} in {str(sources.path)!r}, too; put it below one of these"
            )


def _check_files(brokers: Mapping[str, Mapping[str, Any]], config_file: Path | None) -> None:
    """Raise BadSettingError for a file that two brokers would write."""
    owners: dict[Path, str] = {}
    for name, values in brokers.items():
        for path in (values[key] for key in FILES if values[key] is not None):
            owner = owners.setdefault(path.absolute(), name)
            if owner != name:
                raise BadSettingError(
                    f"{config_file}: {BROKERS}.{name}: {str(path)!r} is that of {BROKERS}.{owner}"
                )


def _check_variables(environ: Mapping[str, str]) -> None:
    """Raise BadSettingError for a variable that has the prefix of this program, and no option."""
    prefix = ENV_PREFIXES[0]
    known = {*(name for option in OPTIONS for name in option.variables), URL_VARIABLE}
    for name in environ:
        if name.startswith(prefix) and name not in known and not _service_variable.fullmatch(name):
            others = (other.removeprefix(prefix) for other in known if other.startswith(prefix))
            similar = suggestion(name.removeprefix(prefix), others, prefix)
            raise BadSettingError(f"{name}: unknown variable{similar or '; remove it'}")


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


def _check_static_labels(labels: Mapping[str, str], selection: Selection, *, is_named: bool) -> None:
    """Raise BadSettingError for a label that a metric of a profile has already.

    The exporter's own metrics are not checked: they keep their label, and users of other exporters do not
    know which labels they have.
    """
    rows = (row for row in selection.rows if row not in EXPORTER_ROWS)
    taken = {"le", *(label for row in rows for label in row.labels), *([BROKER_LABEL] if is_named else ())}
    for name, value in labels.items():
        if name in taken:
            pair = f"{name}={value}"
            raise BadSettingError(f"--static-label: got {pair!r}; it takes a name that metrics do not have")


def _otlp_config(values: Mapping[str, Any], sources: _Sources) -> OtlpConfig:
    """Return where spans are sent, and how."""
    url = values["otlp_endpoint"]
    if url is None:
        return OtlpConfig(otlp_endpoint=None)
    origin = sources.origin(KEYS["otlp_endpoint"])
    is_complete = origin is not None and origin.name == TRACES_ENDPOINT
    url = sources.environ[TRACES_ENDPOINT].strip() if is_complete else url + TRACES_PATH
    service = {"service.name": values["service_name"]}
    is_service_given = sources.origin(KEYS["service_name"]) is not None
    attributes = {**values["static_label"], **(service if is_service_given else {})}
    return otlp_config(url, service, attributes, sources.environ)


# -- where values come from ----------------------------------------------------------------------------------

#: The ranks of origins: the lower one takes precedence.
_OPTION, _VARIABLE, _FILE = 0, 1, 2


class _Origin(Struct, frozen=True):
    rank: int
    name: str


class _Sources(Struct, frozen=True):
    """The command line, the environment, and the configuration file if there is one."""

    argv: Mapping[str, Any]
    environ: Mapping[str, str]
    file: ConfigFile | None = None

    @property
    def path(self) -> Path | None:
        """Return the path of the file."""
        return self.file.path if self.file else None

    def given(self, *, of_brokers: bool) -> dict[str, object]:
        """Return what the file gives at its top level, by option: what each broker may set, or the rest."""
        settings = self.file.settings if self.file else {}
        own = {option.key for option in BROKER_KEYS.values()}
        return {key: setting.argument for key, setting in settings.items() if (key in own) is of_brokers}

    def origin(self, option: Option) -> _Origin | None:
        """Return what sets an option; None for nothing."""
        argument = self.argv.get(option.key)
        if argument is not None and argument != ():
            return _Origin(_OPTION, f"--{option.name}")
        variable = next((name for name in option.variables if _is_set(option, self.environ.get(name))), None)
        if variable is not None:
            return _Origin(_VARIABLE, variable)
        if self.file is not None and option.key in self.file.settings:
            return _Origin(_FILE, f"{self.path}: {self.file.settings[option.key].key}")
        return None

    def value(self, option: Option) -> Any:
        """Return the value of an option. Raises BadSettingError."""
        origin = self.origin(option)
        if origin is None:
            return option.default
        if origin.rank == _OPTION:
            return _parsed(option, self.argv[option.key], origin.name)
        if origin.rank == _FILE and self.file is not None:
            return self.in_file(option, self.file.settings[option.key])
        text = self.environ[origin.name]
        return _parsed(
            option, _split(text) if option.multiple else text, f"--{option.name} (from {origin.name})"
        )

    def in_file(self, option: Option, setting: Setting) -> Any:
        """Return the value of an option that the file sets. Raises BadSettingError."""
        return _parsed(option, setting.argument, f"{self.path}: {setting.key}")


def _sources(argv: Mapping[str, Any], environ: Mapping[str, str]) -> _Sources:
    """Return where values come from. Raises BadSettingError for a file that cannot be used."""
    path = _Sources(argv, environ).value(next(option for option in OPTIONS if option.key == CONFIG_FILE))
    return _Sources(argv, environ, None if path is None else read(path))


def _parsed(option: Option, argument: Any, source: str) -> Any:
    try:
        return option.parse(argument)
    except SecretValueError as error:
        raise BadSettingError(f"{source}: got {error}; it takes {option.expects}") from None
    except ValueError:
        # A URL given to another option may hold a password.
        is_secret = option.secret or "://" in str(argument)
        shown = "something else" if is_secret else repr(" ".join(argument) if option.multiple else argument)
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
