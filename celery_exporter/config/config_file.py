"""--config.file: YAML → what the options would have on the command line.

A key is the name of an option with underscores. `brokers` maps the name of each broker to keys of its own;
of the others, those of `PER_BROKER_GROUPS` are the defaults of all brokers. `expected`
is no option: see expected.py. The JSON Schema,
docs/reference/config.schema.json, is generated from the same tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from celery_exporter.config import parsers
from celery_exporter.config.expected import BadEntryError, expected_tasks
from celery_exporter.config.options import OPTIONS, Option
from celery_exporter.config.suggestions import suggestion
from celery_exporter.core.expected import ExpectedTask
from celery_exporter.errors import BadSettingError
from celery_exporter.runtime.yaml_tree import InvalidYamlError, Quoted, load_yaml

CONFIG_FILE, BROKERS, EXPECTED = "config_file", "brokers", "expected"
#: Options by the keys of the file.
KEYS = {option.key: option for option in OPTIONS if option.key != CONFIG_FILE}
#: Groups of options that each broker may set for itself.
PER_BROKER_GROUPS = ("Broker", "Events", "Queues and workers", "Tasks", "State", "History")
_SHORT_KEYS = {
    "broker_url": "url",
    "broker_url_file": "url_file",
    "broker_transport_option": "transport_options",
    "broker_ssl_option": "ssl_options",
}
#: Options by the keys of a broker.
BROKER_KEYS = {
    _SHORT_KEYS.get(option.key, option.key): option
    for option in OPTIONS
    if option.group in PER_BROKER_GROUPS and option.key != "no_history"
}
#: Options that say which broker it is: the file has them below `brokers`, or else nothing but them.
OF_ONE_BROKER = tuple(_SHORT_KEYS)
#: The name of a broker: a label value, a part of paths and of file names.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
NAME_EXPECTS = "up to 63 letters, digits, _, - and ., a letter or digit first"


class Setting(Struct, frozen=True):
    """The value of one option, as on the command line, and where the file has it: `brokers.shop.queues`."""

    argument: str | tuple[str, ...]
    key: str


class ConfigFile(Struct, frozen=True):
    """A file: settings by the key of their option, and those of each broker by its name."""

    path: Path
    settings: Mapping[str, Setting]
    brokers: Mapping[str, Mapping[str, Setting]]
    #: The tasks that are expected of each broker that says so; "" for all others.
    expected: Mapping[str, Sequence[ExpectedTask]]


def read(path: Path) -> ConfigFile:
    """Return what a file has. Values are parsed later. Raises BadSettingError for anything else."""
    try:
        tree = load_yaml(path.read_bytes(), marks_quotes=True, keeps=[EXPECTED])
    except OSError as error:
        raise BadSettingError(f"--config.file: cannot read {str(path)!r}: {error.strerror}") from None
    except InvalidYamlError as error:
        raise BadSettingError(f"{path}: {error}") from None
    try:
        return _config_file(path, {} if tree is None else tree)
    except _BadFileError as error:
        raise BadSettingError(f"{path}: {error}") from None


class _BadFileError(Exception):
    pass


def _config_file(path: Path, tree: Any) -> ConfigFile:
    sections = _mapping(_mapping(tree, "").get(BROKERS, {}), BROKERS)
    others = {key: value for key, value in tree.items() if key != BROKERS}
    for name in sections:
        if not re.fullmatch(NAME_PATTERN, name):
            raise _BadFileError(f"{BROKERS}: got the name {name!r}; it takes {NAME_EXPECTS}")
    settings = _settings(others, KEYS, "", (BROKERS, EXPECTED))
    brokers = {
        name: _settings(
            _mapping(section, f"{BROKERS}.{name}"), BROKER_KEYS, f"{BROKERS}.{name}.", (EXPECTED,)
        )
        for name, section in sections.items()
    }
    return ConfigFile(path, settings, brokers, _expected({"": others, **sections}))


def _expected(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Sequence[ExpectedTask]]:
    expected: dict[str, Sequence[ExpectedTask]] = {}
    for name, section in sections.items():
        if EXPECTED in section:
            try:
                expected[name] = expected_tasks(section[EXPECTED])
            except BadEntryError as error:
                where = f"{BROKERS}.{name}.{EXPECTED}" if name else EXPECTED
                raise _BadFileError(f"{where}{error}") from None
    return expected


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _BadFileError(f"{key or 'the file'}: expected a mapping, such as name: value")
    return value


def _settings(
    section: Mapping[str, Any], keys: Mapping[str, Option], prefix: str, further: Collection[str] = ()
) -> dict[str, Setting]:
    """Return the settings of a section by the key of their option, without `further` keys."""
    for key in section:
        if key not in keys and key not in further:
            raise _BadFileError(f"{prefix}{key}: unknown key{suggestion(key, [*keys, *further])}")
    return {
        keys[key].key: Setting(_argument(keys[key], value, prefix + key), prefix + key)
        for key, value in section.items()
        if key not in further
    }


def _argument(option: Option, value: Any, key: str) -> str | tuple[str, ...]:
    """Return a value as it would be on the command line."""
    if isinstance(value, dict) and option.multiple and option.metavar in {"NAME=VALUE", "REGEX=NAME"}:
        is_json = option.parse is parsers.json_pairs
        return tuple(f"{name}={_json(item) if is_json else _text(item, key)}" for name, item in value.items())
    if isinstance(value, list):
        texts = tuple(_text(item, key) for item in value)
        return texts if option.multiple else ",".join(texts)
    return (_text(value, key),) if option.multiple else _text(value, key)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _BadFileError(f"{key}: expected a single value, not a mapping or a list in it")
    return str(value)


def _json(value: Any) -> str:
    return json.dumps(_typed(value))


def _typed(value: Any) -> Any:
    """Return texts without quotes as numbers, true, false or null, if they are some."""
    if isinstance(value, dict):
        return {name: _typed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, Quoted):
        return str(value)
    try:
        return json.loads(value)
    except ValueError:
        return value
