"""Memory and time for one message with any content."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from harness.processes import TESTS

from celery_exporter.broker.codecs import MAX_BODY

from . import budget
from .worst import CASES, SHORT_RUN

#: A body of maximum size, a copy of it by a decompressor, and its texts, in which a byte may become four.
#: docs/explanation/resilience.md has measured values.
MAX_GROWTH_BYTES = 6 * MAX_BODY
#: CPU time: about five times that of the reference machine.
MAX_CPU_SECONDS = 15.0


@pytest.mark.parametrize("name", CASES if budget.SECONDS > budget.DEFAULT_SECONDS else SHORT_RUN)
def test_one_message_takes_bounded_memory_and_time(name, request):
    result = subprocess.run(
        [sys.executable, "-m", "fuzz.worst", name], cwd=TESTS, capture_output=True, text=True, check=True
    )
    figures = json.loads(result.stdout)
    _, valid, malformed = CASES[name]
    checks = {
        "valid": valid in (None, figures["valid"]),
        "malformed": malformed in (None, figures["malformed"]),
        "growth": figures["growth"] < MAX_GROWTH_BYTES,
        "seconds": figures["seconds"] < MAX_CPU_SECONDS,
    }
    budget.add_row(request.node, 1, figures["seconds"], figures["growth"], failed=not all(checks.values()))
    assert checks == dict.fromkeys(checks, True), figures
