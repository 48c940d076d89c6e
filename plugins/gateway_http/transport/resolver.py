"""Name resolution: the system's resolver in daemon threads, behind a cache.

getaddrinfo(3) cannot be interrupted and takes up to a minute if the name servers are silent. asyncio runs it in a
shared thread pool, which other code of the process needs and which Python joins at exit. Here each lookup is a daemon
thread of its own.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

RESOLVE_S = 3.0
DNS_TTL_S = 30.0
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV

_Key = tuple[str, int, int]


class SystemResolver(AbstractResolver):
    """Calls the system's resolver, in a daemon thread for each lookup."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`. Raises OSError if the lookup fails."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def settle(setter: Callable[[Any], None], outcome: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(lambda: None if found.done() else setter(outcome))

        def look_up() -> None:
            try:
                settle(found.set_result, addresses(host, port, family))
            except Exception as exc:
                settle(found.set_exception, exc)

        threading.Thread(target=look_up, name=f"lookup of {host}", daemon=True).start()
        return await found

    async def close(self) -> None:
        """Do nothing: a running lookup cannot be interrupted."""


def addresses(host: str, port: int, family: int) -> list[ResolveResult]:
    """Return the addresses of `host` in the families of this machine.

    Blocks. Raises OSError.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(hostname=host, host=_numeric(address), port=port, family=kind, proto=proto, flags=_NUMERIC)
        for kind, _, proto, _, address in found
        if kind in (socket.AF_INET, socket.AF_INET6)
    ]


def _numeric(address: Any) -> str:
    if len(address) == 4 and address[3]:  # a link-local address is useless without its interface
        return socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    return str(address[0])


class CachingResolver(AbstractResolver):
    """Keeps addresses for 30 s, and longer while lookups fail.

    Runs one lookup of a name at a time.
    A caller waits for a lookup for at most 3 s. The next caller waits for the same lookup, so a silent name server
    occupies one thread, not all of them.
    """

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner
        self._cache: dict[_Key, tuple[float, list[ResolveResult]]] = {}
        self._lookups: dict[_Key, asyncio.Task[list[ResolveResult]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`.

        Raises OSError if the lookup fails and the cache does not hold the name.
        """
        key = (host, port, int(family))
        cached = self._cache.get(key)
        if cached is not None and time.monotonic() - cached[0] < DNS_TTL_S:
            return cached[1]
        try:
            async with asyncio.timeout(RESOLVE_S):
                return await asyncio.shield(self._lookup(key, family))
        except (OSError, TimeoutError) as exc:
            if cached is not None:
                return cached[1]
            if isinstance(exc, TimeoutError):
                raise OSError(None, f"the name server did not answer in {RESOLVE_S:g} s") from exc
            raise

    def _lookup(self, key: _Key, family: socket.AddressFamily) -> asyncio.Task[list[ResolveResult]]:
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = asyncio.get_running_loop().create_task(self._inner.resolve(key[0], key[1], family))
            self._lookups[key] = lookup
            lookup.add_done_callback(lambda done: self._on_done(key, done))
        return lookup

    def _on_done(self, key: _Key, lookup: asyncio.Task[list[ResolveResult]]) -> None:
        self._lookups.pop(key, None)
        if not lookup.cancelled() and lookup.exception() is None:
            self._cache[key] = (time.monotonic(), lookup.result())

    async def close(self) -> None:
        """Cancel the lookups without waiting for them."""
        for lookup in tuple(self._lookups.values()):
            lookup.cancel()
        await self._inner.close()
