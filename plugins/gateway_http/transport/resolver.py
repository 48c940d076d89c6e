"""Name resolution: the system's resolver in daemon threads, behind a cache.

getaddrinfo(3) cannot be interrupted and takes up to a minute if the name servers are silent. asyncio runs it in a
shared thread pool, which other code of the process needs and which Python joins at exit. Here each lookup is a daemon
thread of its own.
"""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

RESOLVE_S = 3.0
REFRESH_S = 0.5  # if an earlier result is known, a lookup that takes longer is used by the next caller
MAX_LOOKUPS = 4
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

    Runs one lookup of a name at a time, and a further one, up to 4, beside one that has taken 3 s: a lookup that began
    while the network was down may take much longer than a new one. A caller waits for a lookup for at most 3 s, or
    0.5 s if earlier addresses are known. A silent name server occupies four threads, not all of them.
    """

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner
        self._cache: dict[_Key, tuple[float, list[ResolveResult]]] = {}
        self._lookups: dict[_Key, list[tuple[float, asyncio.Task[list[ResolveResult]]]]] = {}

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
            async with asyncio.timeout(RESOLVE_S if cached is None else REFRESH_S):
                return await asyncio.shield(self._lookup(key, family))
        except (OSError, TimeoutError) as exc:
            if cached is not None:
                return cached[1]
            if isinstance(exc, TimeoutError):
                raise OSError(None, f"the name server did not answer in {RESOLVE_S:g} s") from exc
            raise

    def expire(self) -> None:
        """Look every name up again before its next use; the known addresses remain in case that fails."""
        self._cache = {key: (-math.inf, found) for key, (_, found) in self._cache.items()}

    def _lookup(self, key: _Key, family: socket.AddressFamily) -> asyncio.Task[list[ResolveResult]]:
        running = self._lookups.setdefault(key, [])
        if running and (len(running) >= MAX_LOOKUPS or time.monotonic() - running[-1][0] < RESOLVE_S):
            return running[-1][1]
        lookup = asyncio.get_running_loop().create_task(self._inner.resolve(key[0], key[1], family))
        entry = (time.monotonic(), lookup)
        running.append(entry)
        lookup.add_done_callback(lambda done: self._on_done(key, entry))
        return lookup

    def _on_done(self, key: _Key, entry: tuple[float, asyncio.Task[list[ResolveResult]]]) -> None:
        running, (began, lookup) = self._lookups[key], entry
        running.remove(entry)
        if not running:
            del self._lookups[key]
        if not lookup.cancelled() and lookup.exception() is None:
            cached = self._cache.get(key)
            if cached is None or began > cached[0]:  # not older than what a later lookup has found
                self._cache[key] = (time.monotonic(), lookup.result())

    async def close(self) -> None:
        """Cancel the lookups without waiting for them."""
        for running in tuple(self._lookups.values()):
            for _, lookup in running:
                lookup.cancel()
        await self._inner.close()
