"""The query of a search: what each parameter takes, and what it says to a wrong one."""

from __future__ import annotations

import pytest

from celery_exporter.core.task_search import Cursor, TaskFilter
from celery_exporter.web.task_query import LIMIT, PARAMETERS, BadQueryError, cursor_text, parse_query

NOW = 1_700_000_000.0


def test_each_parameter_is_part_of_the_search():
    texts = {
        "name": "a.b", "state": "failure,RETRY", "queue": "q", "worker": "w@h", "exception": "KeyError",
        "since": "2h", "until": "2023-11-14T22:13:20Z", "min_runtime": "1.5", "root": "r", "parent": "p",
        "limit": "7", "cursor": "12.5~id~with~tildes",
    }  # fmt: skip
    assert texts.keys() == PARAMETERS.keys()
    query = parse_query(texts, NOW)
    assert query.wanted == TaskFilter(
        task_name="a.b",
        states=frozenset({"FAILURE", "RETRY"}),
        queue_name="q",
        worker="w@h",
        exception="KeyError",
        since=NOW - 7_200,
        until=1_700_000_000.0,
        min_runtime=1.5,
        root_id="r",
        parent_id="p",
    )
    assert (query.limit, query.before) == (7, Cursor(12.5, "id~with~tildes"))


def test_an_empty_parameter_is_absent_as_a_form_sends_it():
    query = parse_query({"name": "", "state": ""}, NOW)
    assert (query.wanted, query.limit, query.before) == (TaskFilter(), LIMIT, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW - 90),
        ("1.5h", NOW - 5_400),
        ("3d", NOW - 259_200),
        ("1699999999.5", 1_699_999_999.5),
        ("2023-11-14", 1_699_920_000.0),
        ("2023-11-14T23:13:20+01:00", NOW),
    ],
)
def test_a_time_is_absolute_or_ago(text, expected):
    assert parse_query({"since": text}, NOW).wanted.since == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("since", "yesterday"),
        ("since", "nan"),
        ("until", "1e999"),
        ("until", "1700000000000"),
        ("since", "999999999w"),
        ("min_runtime", "999999999w"),
        ("cursor", "1e300~x"),
        ("min_runtime", "-"),
        ("min_runtime", "inf"),
        ("limit", "0"),
        ("limit", "501"),
        ("limit", "x"),
        ("cursor", "12.5"),
        ("cursor", "inf~x"),
        ("state", "DONE"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_taken(name, text):
    with pytest.raises(BadQueryError, match=f"^{name}: got '{text[:300]}'; it takes "):
        parse_query({name: text}, NOW)


def test_an_unknown_parameter_is_refused_with_those_that_exist():
    with pytest.raises(BadQueryError, match="'states' is no parameter; it takes name, state, queue"):
        parse_query({"states": "FAILURE"}, NOW)


@pytest.mark.parametrize("cursor", [Cursor(0.1 + 0.2, "u"), Cursor(NOW, "~"), Cursor(1e-9, "a b&c")])
def test_a_cursor_survives_its_text(cursor):
    assert parse_query({"cursor": cursor_text(cursor)}, NOW).before == cursor
