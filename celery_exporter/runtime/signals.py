"""The signals that stop the exporter, which saves its state first."""

from __future__ import annotations

import signal


def stop_signals() -> set[signal.Signals]:
    """Return the signals that stop the process.

    SIGHUP, which a closed terminal sends, is one of them except under nohup.
    """
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
    return signals if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else {*signals, signal.SIGHUP}
