"""Below the tests, a table of what was tried, when it is what one waited for."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from . import budget, memory

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One test gets a part of the time only, and some more for making a failing input small."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(240 + budget.SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    budget.inputs, failures = 0, 1
    begin, watch = time.monotonic(), memory.Watch()
    try:
        result = yield
        failures = 0
        return result
    finally:
        if budget.inputs:
            seconds = time.monotonic() - begin
            budget.rows.append((item.name, budget.inputs, seconds, watch.growth(), failures))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if budget.rows and "FUZZ_SECONDS" in os.environ:
        terminalreporter.section("fuzzed")
        width = max(len(name) for name, *_ in budget.rows)
        terminalreporter.write_line(
            f"{'target':{width}}  {'inputs':>10}  {'seconds':>8}  {'peak RSS':>9}  failures"
        )
        for name, inputs, seconds, growth, failures in budget.rows:
            terminalreporter.write_line(
                f"{name:{width}}  {inputs:>10,}  {seconds:>8.1f}  {growth / 2**20:>+6.0f} MB  {failures:>8}"
            )
