"""The diagnoses on single tasks, the JSON Schema of /api/v1/explain, and a table for each object in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from celery_exporter.status.explain import DIAGNOSES
from celery_exporter.status.explanation import Explanation
from tools.docgen.api import DIALECT, object_fields
from tools.docgen.markdown import table

PATH = Path(__file__).resolve().parents[2] / "docs" / "reference" / "explain-api.schema.json"


def made() -> dict[Path, str]:
    """Return the generated file and its text."""
    schema = {"$schema": DIALECT, **msgspec.json.schema(Explanation)}
    return {PATH: msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"}


def diagnoses() -> str:
    """Return a table of all diagnoses in the order in which they are tried, each once."""
    rows = {diagnosis.name: _row(diagnosis.sentence, diagnosis.unknown) for diagnosis in DIAGNOSES}
    return table(
        ("diagnosis", "sentence", "cannot know"), [(f"`{name}`", *row) for name, row in rows.items()]
    )


def _row(sentence: str, unknown: tuple[str, ...]) -> tuple[str, str]:
    blanks: dict[str, Any] = {name: text for name, text in _BLANKS.items() if f"{{{name}}}" in sentence}
    return sentence.format(**blanks), "; ".join(unknown)


#: What stands for the values in a sentence.
_BLANKS = {name: f"*{name}*" for name in ("state", "worker", "queue", "position", "length", "messages")} | {
    "ago": "*some time* ago",
    "seconds": "*some time*",
    "taken": " *some time* ago",
    "by": " at worker *worker*",
    "named": " *worker*",
    "silent": "*worker*",
    "deferred": "*types*",
    "online": "*some time* ago",
    "started": "*some time* ago",
    "message": "",
    "unknown_since": " since its start *some time* ago",
    "had": "started",
    "eta": "*time*",
    "queues": "*n* queues",
    "busy": "*n* of *n* slots",
    "worker_busy": "*n* of *n* slots",
}


def fields() -> str:
    """Return a link to the schema, and a heading and a table for each object, the whole answer first."""
    link = f"The tables are made from the [JSON Schema](../reference/{PATH.name}) of the answer."
    return "\n\n".join([link, *map(_object, msgspec.json.schema(Explanation)["$defs"].values())])


def _object(schema: dict[str, Any]) -> str:
    rows = table(("field", "type", "meaning"), object_fields(schema))
    return f"### {schema['title']}\n\n{schema['description']}\n\n{rows}"
