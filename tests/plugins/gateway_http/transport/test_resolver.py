"""Name lookups by the system resolver; cancelled lookups block nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway_http.transport.resolver import CachingResolver, SystemResolver
from support.documents import ROOT

SILENT = """
import asyncio, socket, threading
from gateway_http.transport.resolver import SystemResolver

socket.getaddrinfo = lambda *_, **__: threading.Event().wait()

async def ask():
    try:
        async with asyncio.timeout(0.1):
            await SystemResolver().resolve("host")
    except TimeoutError:
        print("gave up")
    print(await asyncio.to_thread(lambda: "others go on"))

asyncio.run(ask())
"""


async def test_system_resolver_returns_addresses_and_raises_its_errors() -> None:
    (found,) = await SystemResolver().resolve("127.0.0.1", 80)
    assert (found["host"], found["port"], found["family"]) == ("127.0.0.1", 80, socket.AF_INET)
    with pytest.raises(OSError, match=r"\S"):
        await SystemResolver().resolve("no-such-host.invalid", 80)


async def test_link_local_address_includes_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    local = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 80, 0, 1))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [local])
    (found,) = await SystemResolver().resolve("printer.local", 80)
    assert found["host"] == f"fe80::1%{socket.if_indextoname(1)}"


def test_hung_lookup_blocks_neither_other_threads_nor_process_exit() -> None:
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
    done = subprocess.run(
        [sys.executable, "-c", SILENT], env=environ, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split("\n") == ["gave up", "others go on", ""]


class ScriptedResolver(AbstractResolver):
    """Returns `address`, or waits while `is_silent`; counts the lookups."""

    def __init__(self) -> None:
        self.address, self.is_silent, self.fails, self.lookups = "10.0.0.1", False, False, 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.lookups += 1
        if self.is_silent:
            await asyncio.Event().wait()
        if self.fails:
            raise OSError(None, "SERVFAIL")
        return [ResolveResult(hostname=host, host=self.address, port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None: ...


async def address_of(resolver: CachingResolver) -> str:
    (found,) = await resolver.resolve("cloud.test", 80)
    return found["host"]


async def test_expired_name_is_looked_up_again_and_keeps_its_address_while_lookups_fail() -> None:
    inner = ScriptedResolver()
    resolver = CachingResolver(inner)
    assert await address_of(resolver) == "10.0.0.1"
    inner.address = "10.0.0.2"
    assert await address_of(resolver) == "10.0.0.1"
    resolver.expire()
    inner.fails = True
    assert await address_of(resolver) == "10.0.0.1"
    inner.fails = False
    assert await address_of(resolver) == "10.0.0.2"


async def test_known_address_is_used_within_a_second_while_the_name_server_is_silent() -> None:
    inner = ScriptedResolver()
    resolver = CachingResolver(inner)
    await address_of(resolver)
    inner.is_silent = True
    resolver.expire()
    async with asyncio.timeout(1.0):
        assert await address_of(resolver) == "10.0.0.1"
    await resolver.close()


async def test_hung_lookup_does_not_hold_up_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway_http.transport.resolver.RESOLVE_S", 0.05)
    inner = ScriptedResolver()
    resolver = CachingResolver(inner)
    inner.is_silent = True
    with pytest.raises(OSError, match="did not answer"):
        await address_of(resolver)
    inner.is_silent = False
    assert await address_of(resolver) == "10.0.0.1"
    for _ in range(10):
        await address_of(resolver)
    assert inner.lookups == 2
    await resolver.close()
