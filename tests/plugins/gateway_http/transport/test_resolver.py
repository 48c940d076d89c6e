"""Name lookups by the system resolver; cancelled lookups block nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from gateway_http.transport.resolver import SystemResolver
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
