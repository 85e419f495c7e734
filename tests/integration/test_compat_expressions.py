"""A real Prometheus answers from our numbers what it answers from an original's: by each of its labels."""

from __future__ import annotations

import re

import pytest
from data.compat.expressions import ANSWERED, CASE, ORIGINALS, compared
from data.compat.streams import HERE

SAMPLE = re.compile(r"(\w+)\{(.*)\} \S+")


@pytest.mark.parametrize("family", ORIGINALS)
def test_whatever_the_original_has_can_be_asked_of_ours(family):
    page = (HERE / ORIGINALS[family] / f"{CASE}.txt").read_text()
    labels: dict[str, set[str]] = {}
    for name, pairs in SAMPLE.findall(page):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', pairs))
    expressions = [f"sum({name})" for name in labels]
    expressions += [f"sum by ({label}) (increase({name}[5m]))" for name in labels for label in labels[name]]
    found = compared(family, expressions)
    assert len(found) > 20
    assert {each: said for each, said in found.items() if said != [ANSWERED, ANSWERED]} == {}
