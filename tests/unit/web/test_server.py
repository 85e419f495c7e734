"""Listening sockets: the errors of `bind`."""

from __future__ import annotations

import socket

import pytest

from celery_exporter.web.server import CannotListenError, bind


def test_socket_listens_and_its_port_is_free_after_close():
    with bind("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        socket.create_connection(address, timeout=5).close()
    bind(*address).close()


def test_used_port_is_an_error_in_one_line():
    with bind("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        with pytest.raises(CannotListenError) as caught:
            bind(host, port)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1 port {port}: Address already in use; "
        "choose another with --host and --port"
    )


@pytest.mark.parametrize(
    ("host", "reason"),
    [("192.0.2.1", "Cannot assign requested address"), ("a..b", "no such host"), ("é" * 80, "no such host")],
)
def test_unavailable_host_is_an_error_in_one_line(host, reason):
    with pytest.raises(CannotListenError, match=reason):
        bind(host, 0)
