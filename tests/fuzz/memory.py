"""Measures the growth of resident memory."""

from pathlib import Path

_SELF = Path("/proc/self")


def _bytes(field: str) -> int:
    line = next(line for line in (_SELF / "status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


class Watch:
    """Measures from its creation on."""

    def __init__(self) -> None:
        (_SELF / "clear_refs").write_text("5")  # resets the peak; see proc(5)
        self._before = _bytes("VmRSS")

    def growth(self) -> int:
        """Return the growth of the peak resident memory in bytes."""
        return max(0, _bytes("VmHWM") - self._before)
