"""Notifies systemd that the service is ready, alive or stopping: sd_notify(3).

A notification is a datagram to a socket that an environment variable names, so no library is needed. Without
the variable, as everywhere but under systemd, nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)

READY, WATCHDOG, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"

#: Seconds for systemd to accept a datagram. The thread that sends it has requests to answer as well.
SEND_TIMEOUT_SECONDS = 0.2


class SystemdNotifier:
    """Sends notifications to the socket that the environment names.

    `watchdog_interval` is the seconds between two WATCHDOG notifications, None if systemd wants none.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.watchdog_interval = _watchdog_interval(environ)
        self._address = _address(environ)
        self._socket: socket.socket | None = None
        if self._address is not None:
            # Opened once: the watchdog must also work when the process has no free file descriptor.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(SEND_TIMEOUT_SECONDS)

    def send(self, state: str) -> None:
        """Send a notification. An error is only logged: systemd acts on a missing notification itself."""
        if self._socket is None or self._address is None:
            return
        try:
            self._socket.sendto(state.encode(), self._address)
        except OSError as error:
            log.warning("cannot notify systemd of %s: %s", state, error)


def _address(environ: Mapping[str, str]) -> str | None:
    """Return the socket's address; a leading @ (an abstract socket) is replaced by a null byte."""
    name = environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return None  # not set, or that of a virtual machine (vsock:), which no service manager reads
    return name if name.startswith("/") else f"\0{name[1:]}"


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Return half of systemd's watchdog timeout in seconds, as sd_watchdog_enabled(3) recommends."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    process = environ.get("WATCHDOG_PID") or str(os.getpid())  # the variables may be meant for a parent
    if not microseconds.isdecimal() or int(microseconds) == 0 or process != str(os.getpid()):
        return None
    return int(microseconds) / 1_000_000 / 2
