"""Socket options of new connections, and the 503 response for excess connections."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway.ingress.http import listener
from gateway.ingress.http.listener import TooManyConnections
from gateway.ingress.http.response_writer import MAX_UNSENT_BYTES, WRITE_TIMEOUT_S, limit_unsent


async def _goodbye() -> tuple[asyncio.BaseTransport, socket.socket]:
    near, far = socket.socketpair()
    far.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(TooManyConnections, sock=near)
    return transport, far


async def test_only_a_limited_number_of_excess_connections_get_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_REFUSALS", 2)
    loop = asyncio.get_running_loop()
    held = [await _goodbye() for _ in range(3)]
    told = [await loop.sock_recv(far, 100) for _, far in held]
    assert [bytes(words[:12]) for words in told] == [b"HTTP/1.1 503", b"HTTP/1.1 503", b""]
    for transport, far in held:
        transport.close()
        far.close()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while TooManyConnections.open_count:  # noqa: ASYNC110 - transports remove themselves when closed
            await asyncio.sleep(0)


async def test_kernel_timeout_and_unsent_limit_are_set_for_stalled_clients() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        sock, _ = listener.accept()
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=sock)
        limit_unsent(transport)
        found = transport.get_extra_info("socket")
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == WRITE_TIMEOUT_S * 1000
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == MAX_UNSENT_BYTES
        transport.close()
        client.close()
