"""Code that depends on internals of aiohttp and the kernel.

These tests fail when a release changes them.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway_http.transport.connection import Connector, Response, UpstreamConnection
from gateway_http.transport.resolver import MAX_LOOKUPS, CachingResolver, SystemResolver
from gateway_http.transport.session import socket_factory
from support.http_backend import chat, opened, result
from support.upstream import Upstream, answer

GOOD = {"choices": [{"message": {}}]}


async def test_every_connection_is_a_wire_with_socket_options_and_request_count() -> None:
    async with Upstream(answer(json={})) as upstream:
        connector = Connector(
            resolver=CachingResolver(SystemResolver()), socket_factory=socket_factory(only_private=True)
        )
        async with aiohttp.ClientSession(connector=connector, response_class=Response) as session:
            for count in (1, 2):
                response = await session.get(upstream.url)
                assert isinstance(response, Response)
                assert isinstance(response.upstream_connection, UpstreamConnection)
                assert await response.read() == b"{}"
                connection = response.upstream_connection
                connection.finish_response(count)
                assert connection.requests == count
                assert connection.first_byte_at is not None
                assert connection.first_byte_at >= connection.began_at
                assert connection.tcp_rtt_s() is not None
                assert connection.has_unacked() is False
                assert connection.transport is not None
                sock = connection.transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000


async def test_aiohttp_runs_on_its_c_parser() -> None:
    from aiohttp import http_parser

    assert http_parser.HttpResponseParser is not http_parser.HttpResponseParserPy


class Slow(AbstractResolver):
    """A name server that answers when `answer` is set."""

    def __init__(self) -> None:
        self.lookups = 0
        self.answer = asyncio.Event()
        self.fails = False

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        self.lookups += 1
        await self.answer.wait()
        if self.fails:
            raise OSError("no server")
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        pass


async def test_concurrent_lookups_are_shared_and_stale_answers_serve_when_dns_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow()
    resolver = CachingResolver(slow)
    waiting = [asyncio.create_task(resolver.resolve("host", 80)) for _ in range(5)]
    await asyncio.sleep(0)
    slow.answer.set()
    found = await asyncio.gather(*waiting)
    assert {answer[0]["host"] for answer in found} == {"127.0.0.1"}
    await resolver.resolve("host", 80)
    assert slow.lookups == 1
    monkeypatch.setattr("gateway_http.transport.resolver.DNS_TTL_S", 0.0)
    slow.fails = True
    assert (await resolver.resolve("host", 80))[0]["host"] == "127.0.0.1"
    assert slow.lookups == 2
    with pytest.raises(OSError, match="no server"):
        await resolver.resolve("other", 80)


async def test_silent_name_server_times_out_and_is_queried_again_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway_http.transport.resolver.RESOLVE_S", 0.01)
    slow = Slow()
    resolver = CachingResolver(slow)
    for _ in range(8):
        with pytest.raises(OSError, match="name server did not answer"):
            await resolver.resolve("host", 80)
    assert slow.lookups == MAX_LOOKUPS
    await resolver.close()


async def test_connections_are_pooled_up_to_the_slots_and_reused() -> None:
    async with Upstream(answer(json=GOOD)) as upstream, opened(upstream.url, slots=4) as (backend, _):
        for _ in range(3):
            await asyncio.gather(*(result(backend, chat()) for _ in range(4)))
        assert upstream.connections == 4
