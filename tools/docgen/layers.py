"""The layers of import-linter's contract as a Mermaid flowchart, and a table of the packages."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import celery_exporter
from tools.docgen import markdown

PACKAGE = Path(celery_exporter.__file__).parent
_CONTRACT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def layers() -> list[list[str]]:
    """Return the packages of each layer of the contract, the highest first."""
    contracts = tomllib.loads(_CONTRACT.read_text())["tool"]["importlinter"]["contracts"]
    (layered,) = (contract for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in layered["layers"]]


def picture() -> str:
    """Return a Mermaid flowchart with a box for each layer, and arrows that point down."""
    lines = ["```mermaid", "flowchart TD"]
    for number, names in enumerate(layers()):
        lines.append(f'  L{number}["{" · ".join(names)}"]')
    lines += [f"  L{number} --> L{number + 1}" for number in range(len(layers()) - 1)]
    return "\n".join([*lines, "```"])


def table() -> str:
    """Return a table of the packages, from the highest layer down."""
    rows = [(f"`{name}`", _purpose(name)) for names in layers() for name in names]
    return markdown.table(("package", "what it is"), rows)


def _purpose(name: str) -> str:
    """Return the first paragraph of the docstring of a package or module."""
    path = PACKAGE / name
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    return " ".join((ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].split())
