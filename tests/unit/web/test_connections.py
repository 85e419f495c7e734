"""What asyncio's transports do to a connection."""

from __future__ import annotations

import asyncio
import socket
import ssl

import trustme

from celery_exporter.web.connections import _layers, buffered


def test_a_tls_transport_that_was_closed_twice_has_nothing_to_send():
    """That is what uvicorn and a shutdown do to one whose client does not read."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)

    async def close_twice() -> list[int]:
        here, there = socket.socketpair()
        loop = asyncio.get_running_loop()
        (transport, _), (other, _) = await asyncio.gather(
            loop.connect_accepted_socket(asyncio.Protocol, here, ssl=server),
            loop.create_connection(asyncio.Protocol, sock=there, ssl=client, server_hostname="localhost"),
        )
        other.pause_reading()
        transport.write(bytes(10_000_000))
        found = [sum(map(buffered, _layers(transport)))]
        transport.close()
        transport.close()
        found.append(buffered(transport))
        other.abort()
        return found

    before, after = asyncio.run(close_twice())
    assert before > 0
    assert after == 0
