"""Memory and time for one message, whatever is in it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from harness.processes import TESTS

from celery_exporter.broker.codecs import MAX_BODY

from . import budget
from .worst import CASES, FEW

#: A body as large as one may be; a copy of it, which a decompressor makes in the end; and its texts, in which
#: a byte may become four. What was measured is in docs/explanation/resilience.md.
BOUND = 6 * MAX_BODY
#: Seconds of a processor: some five times as long as on the reference box.
SLOWEST = 15.0


@pytest.mark.parametrize("name", CASES if budget.SECONDS > budget.USUAL else FEW)
def test_one_message_takes_bounded_memory_and_time(name, request):
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.worst", name], cwd=TESTS, capture_output=True, text=True, check=True
    )
    took = json.loads(done.stdout)
    _, good, malformed = CASES[name]
    well = {
        "good": good in (None, took["good"]),
        "malformed": malformed in (None, took["malformed"]),
        "growth": took["growth"] < BOUND,
        "seconds": took["seconds"] < SLOWEST,
    }
    budget.add_row(request.node, 1, took["seconds"], took["growth"], failed=not all(well.values()))
    assert well == dict.fromkeys(well, True), took
