"""The JSON Schema of a line of --event-log, and a table of its fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from celery_exporter.sinks.log_line import LogLine
from tools.docgen.api import DIALECT, object_fields
from tools.docgen.markdown import table

PATH = Path(__file__).resolve().parents[2] / "docs" / "reference" / "event-log.schema.json"

Schema = dict[str, Any]


def made() -> dict[Path, str]:
    """Return the generated file and its text."""
    return {PATH: msgspec.json.format(msgspec.json.encode(_schema()), indent=2).decode() + "\n"}


def fields() -> str:
    """Return a table of the fields."""
    schema = _schema()
    rows = [
        (name, kind, meaning if name.strip("`") in schema["required"] else f"{meaning} Optional.")
        for name, kind, meaning in object_fields(schema)
    ]
    return table(("field", "type", "meaning"), rows)


def _schema() -> Schema:
    """Return the schema of a line. Fields that are None are absent, so no field can be null."""
    schema: Schema = msgspec.json.schema(LogLine)["$defs"][LogLine.__name__]
    properties = {name: _without_null(field) for name, field in schema["properties"].items()}
    return {"$schema": DIALECT, **schema, "properties": properties}


def _without_null(field: Schema) -> Schema:
    options = [option for option in field.get("anyOf", ()) if option != {"type": "null"}]
    rest = {key: value for key, value in field.items() if key not in {"anyOf", "default"}}
    return {**rest, **options[0]} if options else rest
