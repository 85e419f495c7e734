"""The signals that end the exporter in good order, with its state saved."""

from __future__ import annotations

import signal


def ending() -> set[signal.Signals]:
    """Return them. A terminal that is closed sends SIGHUP, which is none of them under nohup."""
    found = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
    return found if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else {*found, signal.SIGHUP}
