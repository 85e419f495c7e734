"""How many inputs are tried, and how many were."""

import os

import pytest
from harness import tables
from hypothesis import HealthCheck, settings

#: About how long the tests of this folder take.
USUAL = 40.0
SECONDS = float(os.environ.get("FUZZ_SECONDS", USUAL))

#: Inputs of the test that runs.
inputs = 0


def count(number: int = 1) -> None:
    global inputs  # noqa: PLW0603  hypothesis takes no fixtures
    inputs += number


def tries(usually: int, **more: object) -> settings:
    """Return settings for so many examples in the usual time, and more in more."""
    return settings(
        max_examples=max(1, round(usually * SECONDS / USUAL)),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        **more,
    )


def add_row(item: pytest.Item, tried: int, seconds: float, growth: int, *, failed: bool) -> None:
    """Add a row to the table below the run; `growth` of the resident set, in bytes."""
    row = {
        "target": item.name,
        "inputs": f"{tried:,}",
        "seconds": f"{seconds:.1f}",
        "peak RSS": f"{growth / 2**20:+.0f} MB",
        "failures": int(failed),
    }
    tables.add_row(item, "fuzz", row)
