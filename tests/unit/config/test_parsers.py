"""Texts of options become values, or a ValueError."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from celery_exporter.config import parsers
from celery_exporter.core.task_names import QUEUE_NAME_RULES


@pytest.mark.parametrize(
    ("parser", "text", "value"),
    [
        (parsers.number(1, 3), "2.5", 2.5),
        (parsers.whole(1, 3), "3", 3),
        (parsers.seconds_or_off, "0", None),
        (parsers.seconds_or_off, "7", 7.0),
        (parsers.buckets, "0.1, 1,+Inf", (0.1, 1.0)),
        (parsers.one_of(("json", "yaml")), "JSON", "json"),
        (parsers.list_of(("json", "yaml")), "yaml, json,", ("yaml", "json")),
        (parsers.list_of(("json",), least=0), "", ()),
        (parsers.names, ("a, b", "", "c"), ("a", "b", "c")),
        (parsers.pairs, ("a=1", " b =x=y", "c="), {"a": "1", "b": "x=y", "c": ""}),
        (parsers.json_pairs, ("a=1", "b=yes", 'c={"d": []}'), {"a": 1, "b": "yes", "c": {"d": []}}),
        (parsers.prefix, "celery_", "celery_"),
        (parsers.prefix, "", ""),
        (parsers.name, "Läden", "Läden"),
        (parsers.path, "/run/state", Path("/run/state")),
        (parsers.url, "redis://h", "redis://h"),
        (parsers.switch, " Yes ", True),
        (parsers.switch, "", False),
    ],
)
def test_a_valid_text_is_parsed(parser, text, value):
    assert parser(text) == value


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        (parsers.number(1, 3), "0.9"),
        (parsers.number(1), "inf"),
        (parsers.number(1), "nan"),
        (parsers.whole(1, 3), "4"),
        (parsers.whole(1, 3), "1.5"),
        (parsers.seconds_or_off, "-1"),
        (parsers.buckets, "1,1"),
        (parsers.buckets, "2,1"),
        (parsers.buckets, "+Inf"),
        (parsers.one_of(("json",)), "yaml"),
        (parsers.list_of(("json",)), " , "),
        (parsers.pairs, ("a",)),
        (parsers.pairs, (" =1",)),
        (parsers.prefix, "1x"),
        (parsers.name, " "),
        (parsers.name, "\udcff"),
        (parsers.path, "redis://:hunter2@h"),
        (parsers.url, "localhost"),
        (parsers.switch, "maybe"),
        (parsers.pattern, "("),
        (parsers.name_rules, ("job=",)),
        (parsers.name_rules, (r"job=\1",)),
    ],
)
def test_an_invalid_text_is_a_value_error(parser, text):
    with pytest.raises(ValueError):  # noqa: PT011  the caller writes the message
        parser(text)


def test_a_number_without_an_upper_limit_may_be_large():
    assert math.isfinite(parsers.number(0)("1e300"))


def test_the_last_equals_sign_of_a_name_rule_separates():
    ((pattern, replacement),) = parsers.name_rules((r"job=\w+=work",))
    assert (pattern.pattern, replacement) == (r"job=\w+", "work")


def test_patterns_are_matched_in_time_whatever_the_name_is():
    """The `re` module needs exponential time for this one, and blocks every thread meanwhile."""
    pattern = parsers.pattern(r"([a-z_]+\.?)+[0-9]+")
    assert pattern.fullmatch("a" * 10_000 + "!") is None
    assert pattern.fullmatch("shop.pay1")


@pytest.mark.parametrize("rule", [r"(?P<app>\w+)-\d+=\g<app>", r"(\w+)-(\d+)(x)?=\1\3"])
def test_a_replacement_names_groups_as_in_python(rule):
    ((pattern, replacement),) = parsers.name_rules((rule,))
    assert pattern.fullmatch("job-17").expand(replacement) == "job"


def test_rules_for_queues_end_with_the_built_in_ones_unless_one_is_empty():
    assert parsers.queue_name_rules(()) == ()
    assert parsers.queue_name_rules(("",)) == ()
    assert parsers.queue_name_rules(("a=b",))[1:] == QUEUE_NAME_RULES
    assert len(parsers.queue_name_rules(("a=b", ""))) == 1
