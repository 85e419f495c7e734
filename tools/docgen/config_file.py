"""The JSON Schema of --config.file, and tables of its keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from celery_exporter.config.config_file import (
    BROKER_KEYS,
    BROKERS,
    EXPECTED,
    KEYS,
    NAME_PATTERN,
    OF_ONE_BROKER,
)
from celery_exporter.config.expected import ENTRY_KEYS
from celery_exporter.config.options import Option
from tools.docgen.api import DIALECT
from tools.docgen.markdown import table

PATH = Path(__file__).resolve().parents[2] / "docs" / "reference" / "config.schema.json"

Schema = dict[str, Any]
_SCALAR = ["string", "number", "boolean"]


def made() -> dict[Path, str]:
    """Return the generated file and its text."""
    return {PATH: msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode() + "\n"}


def schema() -> Schema:
    """Return the schema: options of all brokers, and below `brokers` those of each."""
    brokers = {
        "description": "Brokers by name.",
        "type": "object",
        "propertyNames": {"pattern": f"^{NAME_PATTERN}$"},
        "additionalProperties": _section(BROKER_KEYS),
    }
    section = _section(KEYS)
    section["properties"][BROKERS] = brokers
    return {
        "$schema": DIALECT,
        "title": "--config.file",
        "description": "Configuration of celery-exporter.",
        **section,
        "not": {"required": [BROKERS], "anyOf": [{"required": [key]} for key in OF_ONE_BROKER]},
    }


def broker_keys() -> str:
    """Return a table of the keys of a broker that are not named after their option."""
    rows = [(f"`{key}`", f"`--{option.name}`") for key, option in BROKER_KEYS.items() if key != option.key]
    others = ", ".join(f"`{key}`" for key, option in BROKER_KEYS.items() if key == option.key)
    return f"{table(('key', 'option'), rows)}\n\nThe others are named after their options: {others}."


def expected_keys() -> str:
    """Return a table of the keys of an expected task."""
    return table(("key", "value"), [(f"`{key}`", text) for key, text in ENTRY_KEYS.items()])


def _section(keys: Mapping[str, Option]) -> Schema:
    properties = {key: {"description": option.help, **_type(option)} for key, option in keys.items()}
    properties[EXPECTED] = _expected()
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _expected() -> Schema:
    """Return what the section of expected tasks may be; names and expressions are checked by its parser."""
    types = {"task": "string", "cron": "string", "timezone": "string"}
    return {
        "description": "Tasks that have to run, and when.",
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["task"],
            "oneOf": [{"required": ["every"]}, {"required": ["cron"]}],
            "dependentRequired": {"timezone": ["cron"]},
            "properties": {
                key: {"description": text, "type": types.get(key, ["string", "number"])}
                for key, text in ENTRY_KEYS.items()
            },
        },
    }


def _type(option: Option) -> Schema:
    """Return what a value may be; its text is checked by the parser of the option."""
    if option.is_flag:
        return {"type": "boolean"}
    if option.metavar in {"NAME=VALUE", "REGEX=NAME"}:
        return {"type": ["object", "array", "string"]}
    if option.multiple or isinstance(option.default, tuple) or option.metavar == "NUMBERS":
        return {"type": ["array", *_SCALAR], "items": {"type": _SCALAR}}
    if option.metavar in {"NUMBER", "SECONDS"}:
        return {"type": "number"}
    if option.choices:
        return {"enum": [*option.choices]}
    return {"type": _SCALAR if option.metavar == "NAME" else "string"}
