"""How many inputs are tried, and how many were."""

import os

from hypothesis import HealthCheck, settings

#: About how long the tests of this folder take.
USUAL = 40.0
SECONDS = float(os.environ.get("FUZZ_SECONDS", USUAL))

#: Inputs of the test that runs.
inputs = 0
#: Target, inputs, seconds, bytes by which the resident set grew, failures: conftest.py shows them.
rows: list[tuple[str, int, float, int, int]] = []


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
