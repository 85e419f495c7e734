"""Tables under a test run: each test may add a row to one, and they are printed at its end.

A row travels with the report of its test, so that it comes from the processes of pytest-xdist too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

_PREFIX = "table: "

#: Rows by the table's title, in the order of the tests' ends.
_tables: dict[str, list[dict[str, str]]] = {}


def add_row(item: pytest.Item, table: str, row: Mapping[str, object]) -> None:
    """Add cells by their headings; the first row's are the table's."""
    item.user_properties.append((_PREFIX + table, {heading: str(cell) for heading, cell in row.items()}))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        for name, row in report.user_properties:
            if name.startswith(_PREFIX):
                _tables.setdefault(name.removeprefix(_PREFIX), []).append(row)  # type: ignore[arg-type]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for title, rows in sorted(_tables.items()):
        terminalreporter.section(title)
        terminalreporter.write_line("\n".join(_lines(rows)))


def _lines(rows: list[dict[str, str]]) -> list[str]:
    """Return the table's lines: what looks like a number to the right, the rest to the left."""
    columns = {heading: [row[heading] for row in rows] for heading in rows[0]}
    aligned = [_aligned(heading, cells) for heading, cells in columns.items()]
    return ["  ".join(cells).rstrip() for cells in zip(*aligned, strict=True)]


def _aligned(heading: str, cells: list[str]) -> list[str]:
    width = max(map(len, (heading, *cells)))
    is_number = all(cell[:1] in "+-.0123456789" for cell in cells)
    return [f"{cell:>{width}}" if is_number else f"{cell:{width}}" for cell in (heading, *cells)]
