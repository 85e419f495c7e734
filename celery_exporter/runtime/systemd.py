"""What systemd is told of us: sd_notify(3), by which a service says that it serves, lives and ends.

It wants a datagram on a socket that an environment variable names, for which no library is needed. Without
the variable, as everywhere but under systemd, nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)

READY, WATCHDOG, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"

#: Seconds that systemd has to take a datagram in. Who sends the sign of life has requests to answer as well.
PATIENCE = 0.2


class Notifier:
    """Sends states to whom the environment names. `every` is how often WATCHDOG is wanted, None for never."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.every = _every(environ)
        self._address = _address(environ)
        self._socket: socket.socket | None = None
        if self._address is not None:
            # Once, and kept: a crowd that takes all descriptors must not make us look dead.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(PATIENCE)

    def send(self, state: str) -> None:
        """Send it; what goes wrong is logged, for systemd will act on the silence."""
        if self._socket is None or self._address is None:
            return
        try:
            self._socket.sendto(state.encode(), self._address)
        except OSError as error:
            log.warning("cannot tell systemd %s: %s", state, error)


def _address(environ: Mapping[str, str]) -> str | None:
    """Return the socket's address; one that begins with @ is abstract, which is a null byte in its place."""
    name = environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return None  # none; or that of a virtual machine (vsock:), where a service manager does not look
    return name if name.startswith("/") else f"\0{name[1:]}"


def _every(environ: Mapping[str, str]) -> float | None:
    """Return half of the time after which systemd takes us for dead, as sd_watchdog_enabled(3) advises."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    asked = environ.get("WATCHDOG_PID") or str(os.getpid())  # it may be a parent who was asked
    if not microseconds.isdecimal() or int(microseconds) == 0 or asked != str(os.getpid()):
        return None
    return int(microseconds) / 1_000_000 / 2
