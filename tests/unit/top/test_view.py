"""Which rows and texts of a status are shown, and the status as plain text."""

from __future__ import annotations

from harness.example_status import STATUS, task_status
from msgspec.structs import replace

from celery_exporter.status.columns import FINDINGS, TABLES, UNKNOWN
from celery_exporter.top.view import BAR_CELLS, SECTIONS, Part, bar, grid, header, orders, plain

TASKS = next(table for table in SECTIONS if table.name == "tasks")
EMPTY = replace(STATUS, findings=[], workers=[], queues=[], tasks=[], failures=[])


def joined(parts: list[Part]) -> str:
    return "".join(content for content, _ in parts)


def test_each_column_of_the_status_page_is_there():
    assert [{*table.columns} for table in SECTIONS[1:]] == [{*table.columns} for table in TABLES]
    assert [table.columns[0] for table in SECTIONS[1:]] == [table.columns[0] for table in TABLES]


def test_the_header_of_a_broker_that_is_down_says_why_and_since_when():
    broker = replace(STATUS.broker, up=False, down_since=STATUS.at - 60, error="refused\x1b[2J")
    *_, line = "".join(text for text, _ in header(replace(STATUS, broker=broker))).split("\n")
    assert line == "Not open since 11-21 22:25:40 UTC: refused\N{REPLACEMENT CHARACTER}[2J"
    assert "Not open" not in "".join(text for text, _ in header(STATUS))
    impossible = replace(STATUS, broker=replace(broker, down_since=1e300))
    assert f"Not open since {UNKNOWN} UTC: " in "".join(text for text, _ in header(impossible))


def test_each_column_but_findings_and_sparklines_can_be_sorted_by():
    assert orders(FINDINGS) == [""]
    for table in SECTIONS[1:]:
        sortable = [column.field for column in table.columns if column.kind != "line"]
        assert [order.removeprefix("-") for order in orders(table)] == sortable
        for order in orders(table):
            columns, keys = grid(STATUS, table, order)
            assert len(columns[0].cells) == len(keys) == len(getattr(STATUS, table.name))
            assert sum("▲" in column.title or "▼" in column.title for column in columns) == 1


def test_rows_have_keys_in_their_order():
    _, keys = grid(STATUS, TASKS, "-name")
    assert keys == sorted((task.name for task in STATUS.tasks), reverse=True)


def test_a_filter_without_rows_is_explained():
    columns, keys = grid(STATUS, TASKS, contains="nosuch")
    assert [column.title for column in columns] == ["Tasks 0 of 12"]
    assert ([*map(joined, columns[0].cells)], keys) == (["No name contains this text."], [])


def test_the_title_says_that_there_are_more_rows_than_shown():
    many = replace(STATUS, tasks=[task_status(f"task_{number}", 1.0) for number in range(1_201)])
    columns, keys = grid(many, TASKS)
    assert (columns[0].title, len(keys)) == (f"Tasks {TASKS.max_rows} of 1,201", TASKS.max_rows)


def test_a_wrapped_finding_is_whole():
    (column,), _ = grid(STATUS, FINDINGS, line_cells=43)
    for finding, parts in zip(STATUS.findings[1:], column.cells, strict=True):
        text = joined(parts)
        assert max(map(len, text.splitlines())) <= 40
        assert f"{finding.severity} {finding.message} -> {finding.remedy}" == " ".join(text.split())


def test_a_bar_shows_every_part_above_0():
    assert bar(0, 8) == "░" * BAR_CELLS
    assert bar(1, 100) == "█" + "░" * (BAR_CELLS - 1)
    assert bar(8, 8) == bar(9, 8) == "█" * BAR_CELLS
    assert bar(-1, 8) == "░" * BAR_CELLS


def test_the_plain_text_has_all_rows_columns_and_whole_names():
    text = plain(STATUS)
    for row in (*STATUS.tasks, *STATUS.workers, *STATUS.queues):
        assert row.name in text
    for table in TABLES:
        assert not [column.title for column in table.columns[1:] if column.title not in text]
    for finding in STATUS.findings[1:]:
        assert f"\n{finding.severity:8} {finding.message}\n      -> {finding.remedy}\n" in text


def test_a_line_of_the_plain_text_is_of_use_to_grep():
    lines = [
        line.replace(UNKNOWN, "?").split() for line in plain(STATUS).splitlines() if "gone@web-3" in line
    ]
    assert lines == [["gone@web-3", "down", "?", "1,204", "?", "6.7", "min", "?", "?", "5.6.0"]]


def test_an_empty_cluster_is_explained():
    text = plain(EMPTY)
    for table in SECTIONS:
        assert f"{table.title} 0\n{table.empty}" in text


def test_a_closed_subscription_is_shown():
    down = replace(STATUS, broker=replace(STATUS.broker, up=False, event_lag=None, unacked=None))
    assert "DOWN" in plain(down).splitlines()[0]


def test_a_number_that_is_no_time_is_unknown():
    failure = replace(STATUS.failures[0], at=1e300)
    assert plain(replace(STATUS, failures=[failure])).splitlines()[-1].startswith(UNKNOWN)
