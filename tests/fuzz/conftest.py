"""Adds a row to the table for each test."""

import time
from pathlib import Path
from typing import Any

import pytest

from . import budget, memory

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set a timeout that includes the time to shrink a failing input."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(1_200 + budget.SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    budget.inputs, failed = 0, True
    begin, watch = time.monotonic(), memory.Watch()
    try:
        result = yield
        failed = False
        return result
    finally:
        if budget.inputs > 1:  # a test with one input adds its own row
            seconds = time.monotonic() - begin
            budget.add_row(item, budget.inputs, seconds, watch.growth(), failed=failed)
