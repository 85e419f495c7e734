"""Which rows and texts of a status are shown, and the status as plain text."""

from __future__ import annotations

import pytest
from harness.example_status import STATUS, task_status
from msgspec.structs import replace

from celery_exporter.status.columns import TABLES, UNKNOWN
from celery_exporter.top.view import FINDINGS, SECTIONS, finding_parts, plain, rows_of, sort_after

TASKS = next(table for table in SECTIONS if table.name == "tasks")
EMPTY = replace(STATUS, findings=[], workers=[], queues=[], tasks=[], failures=[])


def names(sort: str = "", contains: str = "") -> list[str]:
    return [task.name for task in rows_of(STATUS, TASKS, sort, contains).rows]


def test_each_column_of_the_status_page_is_there():
    assert [{*table.columns} for table in SECTIONS[1:]] == [{*table.columns} for table in TABLES]
    assert [table.columns[0] for table in SECTIONS[1:]] == [table.columns[0] for table in TABLES]


def test_rows_are_sorted_by_a_column_in_both_orders():
    assert names("name")[0] == names("-rates.SUCCESS")[0] == "shop.email.send_confirmation"
    assert names("-name")[0] == "shop.sync.part_8"


@pytest.mark.parametrize("table", SECTIONS[1:], ids=lambda table: table.name)
def test_each_column_but_a_sparkline_can_be_sorted_by(table):
    order, orders = table.columns[0].field, []
    for _ in range(len(table.columns)):
        order = sort_after(table, order, 1)
        orders.append(order)
        assert len(rows_of(STATUS, table, order).rows) == len(getattr(STATUS, table.name))
        assert sort_after(table, sort_after(table, order, 0), 0) == order
    sortable = {column.field for column in table.columns if column.kind != "line"}
    assert {order.removeprefix("-") for order in orders} == sortable


def test_numbers_are_sorted_from_the_largest_and_names_from_the_first():
    assert sort_after(TASKS, "name", 1) == "-rates.SUCCESS"
    assert sort_after(TASKS, "-rates.SUCCESS", -1) == "name"


def test_tasks_are_filtered_by_a_part_of_the_name():
    assert names(contains="imaGe") == ["shop.image.thumbnail"]
    shown = rows_of(STATUS, TASKS, contains="nosuch")
    assert (shown.title, list(shown.rows), shown.empty) == (
        "Tasks 0 of 12",
        [],
        "No name contains this text.",
    )


def test_the_title_says_that_there_are_more_rows_than_shown():
    many = replace(STATUS, tasks=[task_status(f"task_{number}", 1.0) for number in range(1_201)])
    shown = rows_of(many, TASKS)
    assert (shown.title, len(shown.rows)) == (f"Tasks {TASKS.max_rows} of 1,201", TASKS.max_rows)


def test_only_problems_are_findings():
    shown = rows_of(STATUS, FINDINGS)
    assert [finding.severity for finding in shown.rows] == ["critical", "warning"]
    assert rows_of(EMPTY, FINDINGS).empty == "No problems found."


def test_a_wrapped_finding_is_whole():
    for finding in STATUS.findings[1:]:
        text = "".join(content for content, _ in finding_parts(finding, 40))
        assert max(map(len, text.splitlines())) <= 40
        assert f"{finding.severity} {finding.message} -> {finding.remedy}" == " ".join(text.split())


def test_the_plain_text_has_all_rows_columns_and_whole_names():
    text = plain(STATUS)
    for row in (*STATUS.tasks, *STATUS.workers, *STATUS.queues):
        assert row.name in text
    for table in TABLES:
        assert not [column.title for column in table.columns[1:] if column.title not in text]
    for finding in STATUS.findings[1:]:
        assert finding.message in text
        assert finding.remedy in text


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
