"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def cell(text: str) -> str:
    """Return a text as a cell that shows it: without HTML, emphasis or an end of the cell."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
