"""Processes whose clock is wrong, by libfaketime; what they measure time spans with stays right."""

import subprocess

from harness.processes import need


def off_by(seconds: int, time_zone: str) -> dict[str, str]:
    """Return the environment of a process whose clock is so many seconds ahead, in a time zone."""
    printed = subprocess.run(
        [need("faketime"), "-f", "+0s", "env"], capture_output=True, text=True, check=True
    )
    variables = dict(line.split("=", 1) for line in printed.stdout.splitlines() if "=" in line)
    return {
        "LD_PRELOAD": variables["LD_PRELOAD"],
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "TZ": time_zone,
    }
