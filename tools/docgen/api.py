"""The JSON Schema of /api/v1/status, and a table for each object in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from celery_exporter.status.model import Status
from tools.docgen.markdown import table

PATH = Path(__file__).resolve().parents[2] / "docs" / "reference" / "status-api.schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def made() -> dict[Path, str]:
    """Return the generated file and its text."""
    schema = {"$schema": DIALECT, **msgspec.json.schema(Status)}
    return {PATH: msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"}


def fields() -> str:
    """Return a link to the schema, and a heading and a table for each object, the whole answer first."""
    link = f"The tables are made from the [JSON Schema]({PATH.name}) of the answer."
    return "\n\n".join([link, *map(_object, msgspec.json.schema(Status)["$defs"].values())])


def object_fields(schema: Schema) -> list[tuple[str, str, str]]:
    """Return name, type and meaning of each field of an object."""
    fields = schema["properties"].items()
    return [(f"`{name}`", _type(field), field["description"]) for name, field in fields]


def _object(schema: Schema) -> str:
    rows = table(("field", "type", "meaning"), object_fields(schema))
    return f"## {schema['title']}\n\n{schema['description']}\n\n{rows}"


def _type(schema: Schema) -> str:
    match schema:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        case {"anyOf": options}:
            return " or ".join(map(_type, options))
        case {"enum": values}:
            return " or ".join(f"`{value}`" for value in values)
        case {"prefixItems": items}:
            return f"pair ({', '.join(map(_type, items))})"
        case {"type": "array", "items": items}:
            return f"array of {_type(items)}"
        case {"type": "object", "additionalProperties": values}:
            return f"object of {_type(values)}"
        case _:
            return str(schema["type"])
