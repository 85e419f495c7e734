"""Tables of results, printed at the end of a test run. A test adds rows with `add_row`.

A row is part of the report of its test, so it is also sent by the processes of pytest-xdist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

_PREFIX = "table: "

#: Rows by the title of the table, in the order in which the tests ended.
_tables: dict[str, list[dict[str, str]]] = {}


def add_row(item: pytest.Item, table: str, row: Mapping[str, object]) -> None:
    """Add a row of cells by heading. The first row determines the headings of the table."""
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
    """Return the lines of a table, with numbers aligned right and other cells aligned left."""
    columns = {heading: [row[heading] for row in rows] for heading in rows[0]}
    aligned = [_aligned(heading, cells) for heading, cells in columns.items()]
    return ["  ".join(cells).rstrip() for cells in zip(*aligned, strict=True)]


def _aligned(heading: str, cells: list[str]) -> list[str]:
    width = max(map(len, (heading, *cells)))
    is_number = all(cell[:1] in "+-.0123456789" for cell in cells)
    return [f"{cell:>{width}}" if is_number else f"{cell:{width}}" for cell in (heading, *cells)]
