"""Processes with a wrong wall clock, by libfaketime. Their monotonic clock is right."""

import subprocess

from harness.processes import need


def clock_offset(seconds: int, time_zone: str) -> dict[str, str]:
    """Return the environment of a process whose clock is this many seconds ahead, in a time zone."""
    output = subprocess.run(
        [need("faketime"), "-f", "+0s", "env"], capture_output=True, text=True, check=True
    ).stdout
    variables = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    return {
        "LD_PRELOAD": variables["LD_PRELOAD"],
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "TZ": time_zone,
    }
