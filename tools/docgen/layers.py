"""The layers of import-linter's contract as a Mermaid picture, and what each package is for."""

from __future__ import annotations

import ast
from pathlib import Path

import tomllib

import celery_exporter

PACKAGE = Path(celery_exporter.__file__).parent
_CONTRACT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def layers() -> list[list[str]]:
    """Return the packages of each layer, the highest first, as the contract has them."""
    contracts = tomllib.loads(_CONTRACT.read_text())["tool"]["importlinter"]["contracts"]
    (layered,) = (contract for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in layered["layers"]]


def picture() -> str:
    """Return a Mermaid flowchart: a box a layer, from which arrows point down."""
    lines = ["```mermaid", "flowchart TD"]
    for place, names in enumerate(layers()):
        lines.append(f'  L{place}["{" · ".join(names)}"]')
    lines += [f"  L{place} --> L{place + 1}" for place in range(len(layers()) - 1)]
    return "\n".join([*lines, "```"])


def table() -> str:
    """Return a table of the packages, from the highest layer down."""
    lines = ["| package | what it is |", "|---|---|"]
    lines += [f"| `{name}` | {_purpose(name)} |" for names in layers() for name in names]
    return "\n".join(lines)


def _purpose(name: str) -> str:
    """Return the first paragraph of what a package or module says of itself."""
    path = PACKAGE / name
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    return " ".join((ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].split())
