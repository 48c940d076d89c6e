"""Asking the system for a name's addresses, in a thread that nobody has to wait for.

getaddrinfo(3) cannot be stopped, and where the name servers are silent it takes up to a minute. asyncio asks it in
threads that others of the process need, and that Python waits for when it ends.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class SystemResolver(AbstractResolver):
    """Asks the system's resolver; each lookup is a daemon thread."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of `host`. Raises OSError where there is none."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def settle(how: Callable[[Any], None], what: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(lambda: None if found.done() else how(what))

        def work() -> None:
            try:
                settle(found.set_result, addresses(host, port, family))
            except Exception as exc:
                settle(found.set_exception, exc)

        threading.Thread(target=work, name=f"lookup of {host}", daemon=True).start()
        return await found

    async def close(self) -> None:
        """Nothing is held."""


def addresses(host: str, port: int, family: int) -> list[ResolveResult]:
    """The addresses of `host`, of kinds that this host has. Blocks. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(hostname=host, host=_name(address), port=port, family=kind, proto=proto, flags=_NUMERIC)
        for kind, _, proto, _, address in found
        if kind in (socket.AF_INET, socket.AF_INET6)
    ]


def _name(address: Any) -> str:
    if len(address) == 4 and address[3]:  # a link-local one means nothing without its interface
        return socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    return str(address[0])
