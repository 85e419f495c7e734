"""The JSON Schemas of the API, and a table for each object in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from celery_exporter.status.charts import Charts
from celery_exporter.status.details import Detail, Failures, QueueDetail, WorkerDetail
from celery_exporter.status.model import Status
from celery_exporter.web.task_answers import Problem, TaskAnswer, TaskList
from celery_exporter.web.task_query import PARAMETERS
from tools.docgen.markdown import cell, table

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
#: Page → the types of the answers on it.
PAGES = {
    "status-api": (Status,),
    "pages-api": (WorkerDetail, QueueDetail, Failures, Charts, Detail),
    "task-api": (TaskList, TaskAnswer, Problem),
}
DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def made() -> dict[Path, str]:
    """Return the generated files and their texts."""
    return {REFERENCE / f"{page}.schema.json": _document(_schema(page)) for page in PAGES}


def fields(page: str) -> str:
    """Return a link to the schema of a page, and a heading and a table for each object in it."""
    link = f"The tables are made from the [JSON Schema]({page}.schema.json) of the answers."
    return "\n\n".join([link, *map(_object, _schema(page)["$defs"].values())])


def parameters() -> str:
    """Return a table of the parameters of a search."""
    rows = ((f"`{name}`", cell(expects)) for name, (_, expects) in PARAMETERS.items())
    return table(("parameter", "takes"), rows)


def _schema(page: str) -> Schema:
    schemas, components = msgspec.json.schema_components(PAGES[page], ref_template="#/$defs/{name}")
    return (
        {"anyOf": [*schemas], "$defs": components}
        if len(schemas) > 1
        else {**schemas[0], "$defs": components}
    )


def _document(schema: Schema) -> str:
    text = msgspec.json.format(msgspec.json.encode({"$schema": DIALECT, **schema}), indent=2).decode()
    return text + "\n"


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
