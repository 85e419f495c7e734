"""Assumptions about asyncio's transports that connections rely on."""

from __future__ import annotations

import asyncio
import socket
import ssl

import trustme

from celery_exporter.web.connections import _layers, unsent_bytes


def test_tls_transport_that_was_closed_twice_has_no_unsent_bytes():
    """uvicorn and a shutdown close the transport of a client that does not read twice."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)

    async def close_twice() -> list[int]:
        server_socket, client_socket = socket.socketpair()
        loop = asyncio.get_running_loop()
        (transport, _), (client_transport, _) = await asyncio.gather(
            loop.connect_accepted_socket(asyncio.Protocol, server_socket, ssl=server),
            loop.create_connection(
                asyncio.Protocol, sock=client_socket, ssl=client, server_hostname="localhost"
            ),
        )
        client_transport.pause_reading()
        transport.write(bytes(10_000_000))
        sizes = [sum(map(unsent_bytes, _layers(transport)))]
        transport.close()
        transport.close()
        sizes.append(unsent_bytes(transport))
        client_transport.abort()
        return sizes

    before, after = asyncio.run(close_twice())
    assert before > 0
    assert after == 0
