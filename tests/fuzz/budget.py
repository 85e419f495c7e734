"""The number of inputs of each test, from the available time, and a row of the table for each."""

import os

import pytest
from harness import tables
from hypothesis import HealthCheck, settings

#: Approximate duration of the tests in this folder.
DEFAULT_SECONDS = 40.0
SECONDS = float(os.environ.get("FUZZ_SECONDS", DEFAULT_SECONDS))

#: Inputs of the running test.
inputs = 0


def count(number: int = 1) -> None:
    """Add to the number of inputs."""
    global inputs  # noqa: PLW0603  hypothesis supports no fixtures
    inputs += number


def examples(by_default: int, **more: object) -> settings:
    """Return settings with this number of examples in the default time, and in proportion in other times."""
    return settings(
        max_examples=max(1, round(by_default * SECONDS / DEFAULT_SECONDS)),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        **more,
    )


def add_row(item: pytest.Item, count: int, seconds: float, growth: int, *, failed: bool) -> None:
    """Add a row to the table; `growth` is that of the resident memory in bytes."""
    row = {
        "target": item.name,
        "inputs": f"{count:,}",
        "seconds": f"{seconds:.1f}",
        "peak RSS": f"{growth / 2**20:+.0f} MB",
        "failures": int(failed),
    }
    tables.add_row(item, "fuzz", row)
