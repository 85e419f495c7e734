"""Notifications to a socket as systemd's. For a real service see tests/distribution/test_sdnotify.py."""

from __future__ import annotations

import os
import socket

import pytest

from celery_exporter.runtime.systemd import READY, SystemdNotifier


@pytest.mark.parametrize("is_abstract", [False, True], ids=["path", "abstract"])
def test_notification_is_a_datagram(tmp_path, is_abstract):
    address = f"\0celery-exporter-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        receiver.bind(address)
        SystemdNotifier({"NOTIFY_SOCKET": address.replace("\0", "@")}).send(READY)
        assert receiver.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative"])
def test_other_addresses_are_ignored(address, caplog):
    SystemdNotifier({"NOTIFY_SOCKET": address}).send(READY)
    assert caplog.messages == []


def test_error_is_logged(tmp_path, caplog):
    SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "missing")}).send(READY)
    assert caplog.messages == ["cannot notify systemd of READY=1: [Errno 2] No such file or directory"]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval_is_half_of_the_timeout_for_this_process(environ, seconds):
    assert SystemdNotifier(environ).watchdog_interval == seconds
