"""Prometheus evaluates an expression on our metrics as on those of the original exporter, for each label."""

from __future__ import annotations

import re

import pytest
from data.compat.expressions import CASE, HAS_RESULT, ORIGINALS, compare
from data.compat.streams import HERE

SAMPLE = re.compile(r"(\w+)\{(.*)\} \S+")


@pytest.mark.parametrize("family", ORIGINALS)
def test_expressions_on_the_metrics_of_an_original_have_results_on_ours(family):
    page = (HERE / ORIGINALS[family] / f"{CASE}.txt").read_text()
    labels: dict[str, set[str]] = {}
    for name, pairs in SAMPLE.findall(page):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', pairs))
    expressions = [f"sum({name})" for name in labels]
    expressions += [f"sum by ({label}) (increase({name}[5m]))" for name in labels for label in labels[name]]
    found = compare(family, expressions)
    assert len(found) > 20
    assert {
        expression: results for expression, results in found.items() if results != [HAS_RESULT, HAS_RESULT]
    } == {}
