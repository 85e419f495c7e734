"""The rows and texts that the pages and `top` share. tests/unit/web has the formats of values."""

from __future__ import annotations

from harness.example_status import AT as NOW
from harness.example_status import STATUS
from msgspec.structs import replace

from celery_exporter.status.columns import (
    AT,
    DETAILS,
    FINDINGS,
    SPARKLINE_CHARACTERS,
    TABLES,
    UNKNOWN,
    first_sort,
    reversed_sort,
    rows_of,
    sparkline,
    text,
)
from celery_exporter.status.finding import Finding

TASKS = next(table for table in TABLES if table.name == "tasks")


def names(sort: str = "", contains: str = "") -> list[str]:
    return [task.name for task in rows_of(STATUS, TASKS, sort, contains)]


def test_rows_are_sorted_by_a_column_in_both_orders():
    assert names("name")[0] == names("-rates.SUCCESS")[0] == "shop.email.send_confirmation"
    assert names("-name")[0] == "shop.sync.part_8"


def test_tasks_are_filtered_by_a_part_of_the_name():
    assert names(contains="imaGe") == ["shop.image.thumbnail"]
    assert names(contains="nosuch") == []
    (workers,) = (table for table in TABLES if table.name == "workers")
    assert len(rows_of(STATUS, workers, contains="nosuch")) == 3


def test_only_problems_are_findings():
    assert [finding.severity for finding in rows_of(STATUS, FINDINGS)] == ["critical", "warning"]


def test_numbers_are_sorted_from_the_largest_and_names_from_the_first():
    assert [first_sort(column) for column in TASKS.columns[:2]] == ["name", "-rates.PENDING"]
    assert reversed_sort("name") == "-name"
    assert reversed_sort("-name") == "name"


def test_rows_of_each_table_have_a_key():
    for table in (FINDINGS, *TABLES):
        assert all(getattr(row, table.key) for row in rows_of(STATUS, table))


def test_a_number_that_is_not_a_time_is_unknown():
    assert text(AT, replace(STATUS, at=1e300), NOW) == UNKNOWN


def test_a_sparkline_ends_now_and_is_blank_where_the_length_is_unknown():
    line = sparkline([(NOW - 899, 0), (NOW - 450, None), (NOW - 30, 4), (NOW, 8)], NOW)
    assert len(line) == SPARKLINE_CHARACTERS
    assert (line[0], line[-1], line.count(" ")) == ("▁", "█", SPARKLINE_CHARACTERS - 2)
    assert sparkline([(NOW - 5_000, 3)], NOW) == " " * SPARKLINE_CHARACTERS
    assert set(sparkline([(NOW - 15 * step, 0) for step in range(60)], NOW)) == {"▁"}


def test_details_are_fields_of_columns():
    assert {*DETAILS} <= {column.field for table in TABLES for column in table.columns}


def test_critical_problems_come_first_and_others_keep_their_order():
    findings = [Finding(name, severity, "") for name, severity in (
        ("a", "warning"), ("b", "ok"), ("c", "critical"), ("d", "warning"), ("e", "critical"),
    )]  # fmt: skip
    shown = rows_of(replace(STATUS, findings=findings), FINDINGS)
    assert [finding.check for finding in shown] == ["c", "e", "a", "d"]
