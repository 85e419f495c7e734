"""The section is accepted by the exporter, whatever is in names, and says what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_exporter.beat_schedule.entries import Entry
from celery_exporter.beat_schedule.section import section
from celery_exporter.config.expected import expected_tasks
from celery_exporter.core.expected import MAX_EXPECTED
from celery_exporter.core.schedules import Cron, Every
from celery_exporter.runtime.yaml_tree import load_yaml


def test_an_entry_without_a_schedule_says_why():
    text = section([Entry("x", "t", None, "it runs once")])
    assert text == "  # left out: x (task t): it runs once", "an empty section is an error"


def test_entries_have_their_schedule():
    text = section([Entry("a", "t", Every(90.0)), Entry("b", "t", Cron("0 3 * * *", "Europe/Berlin"))])
    assert [task.schedule for task in read(text)] == [Every(90.0), Cron("0 3 * * *", "Europe/Berlin")]


def test_a_task_that_has_a_schedule_twice_is_expected_once():
    """The two have different arguments."""
    text = section([Entry("a", "t", Every(60.0)), Entry("b", "t", Every(60.0))])
    assert text.endswith("# left out: b: it has the task and the schedule of a")
    assert len(read(text)) == 1


def test_entries_beyond_the_limit_are_named():
    text = section(Entry(f"e{number}", f"t{number}", Every(60.0)) for number in range(MAX_EXPECTED + 1))
    assert text.endswith(f"# left out: e{MAX_EXPECTED}: a broker takes up to {MAX_EXPECTED} entries")
    assert len(read(text)) == MAX_EXPECTED


def read(text: str) -> Any:
    return expected_tasks(load_yaml(text.encode())["expected"])


@given(st.text(min_size=1).filter(str.strip), st.text(), st.floats(1, 366 * 86_400))
@example("x\n  - {task: y, every: 1h} #", "name\n- task: z", 1.0)
@example('"quoted" \\ \x85\u2028\U0001f600', "\x00", 3_600.0)
def test_names_are_texts_whatever_is_in_them(task, name, seconds):
    if any("\ud800" <= character <= "\udfff" for character in task):
        return  # no event has such a name
    (result,) = read(section([Entry(name, task, Every(seconds))]))
    assert result.name == task.strip()
    assert result.schedule.seconds == pytest.approx(seconds, abs=1e-8)
