"""Values of the Helm chart: `values.yaml` and the table of its README, from `values.schema.json`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tools.docgen.markdown import cell, table

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "celery-exporter"
README = CHART / "README.md"
WIDTH = 110
HEAD = """\
# Generated from values.schema.json by python -m tools.docgen. Change the defaults and descriptions there.
"""

Schema = Mapping[str, Any]


def made() -> dict[Path, str]:
    """Return the generated file and its text."""
    return {CHART / "values.yaml": HEAD + "".join(_section(schema(), 0))}


def schema() -> Schema:
    """Return the schema of the values."""
    content: Schema = json.loads((CHART / "values.schema.json").read_text())
    return content


def values() -> str:
    """Return the table of all values."""
    rows = [
        (f"`{name}`", cell(value["description"]), _default(value)) for name, value in _leaves(schema(), "")
    ]
    return table(("value", "description", "default"), rows)


def _default(value: Schema) -> str:
    """Return the default as a cell. In an item of a list, a value without one has to be set."""
    return f"`{json.dumps(value['default'], ensure_ascii=False)}`" if "default" in value else "required"


def _properties(section: Schema) -> Iterator[tuple[str, Schema, Schema]]:
    """Yield the name of each value with its schema, and the schema of its own values."""
    for name, value in section["properties"].items():
        if "$ref" in value:
            yield name, value, schema()["definitions"][value["$ref"].rpartition("/")[2]]
        elif "default" in value or "properties" in value:  # without a default, a value is not for users
            yield name, value, value


def _leaves(section: Schema, prefix: str) -> Iterator[tuple[str, Schema]]:
    for name, value, inner in _properties(section):
        if "properties" in inner:
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, value
        for key, item in inner.get("items", {}).get("properties", {}).items():
            yield f"{prefix}{name}[].{key}", item


def _section(section: Schema, depth: int) -> Iterator[str]:
    """Yield the lines of a section of values.yaml."""
    for name, value, inner in _properties(section):
        lines = [f"# {line}" for line in textwrap.wrap(value["description"], WIDTH - 2 - 2 * depth)]
        if "properties" in inner:
            lines.append(f"{name}:")
        else:
            lines += _yaml({name: value["default"]})
            for example in value.get("examples", ()):
                lines += [f"# {line}" for line in _yaml({name: example})]
        if depth == 0:
            yield "\n"
        yield textwrap.indent("\n".join(lines) + "\n", "  " * depth)
        if "properties" in inner:
            yield from _section(inner, depth + 1)


class _Dumper(yaml.SafeDumper):
    """Indents lists below their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, indentless=False)


def _yaml(value: Mapping[str, Any]) -> list[str]:
    text = yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)
    return text.replace(": ''", ': ""').splitlines()
