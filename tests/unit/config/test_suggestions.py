"""Errors suggest a known name that is like the unknown one."""

from __future__ import annotations

from celery_exporter.config.suggestions import suggestion


def test_the_most_similar_name_is_suggested():
    assert suggestion("evry", ["task", "every"]) == "; did you mean every?"
    assert suggestion("TTLL", ["TTL", "PORT"], "CE_") == "; did you mean CE_TTL?"


def test_nothing_is_suggested_for_a_name_that_is_like_none():
    assert suggestion("xyz", ["task", "every"]) == ""
