"""Getting to the upstream: names, sockets, certificates, the pool.

SITE=edge is enforced where a socket is made, so that no name, no changed DNS answer and no second
address can lead anywhere else.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from ..settings import HttpSettings, is_private
from .connection import Connector, Response
from .resolver import SystemResolver

CONNECT_S = 3.0
RESOLVE_S = 3.0
DNS_TTL_S = 30.0
IDLE_S = 60.0
USER_TIMEOUT_MS = 10_000  # a peer that acknowledges nothing for this long is gone
PROBES_BESIDE_SLOTS = 2
MAX_HEADER_LINE_BYTES = 8190
MAX_HEADERS = 128

SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
)

AddrInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]


class Resolver(AbstractResolver):
    """Names to addresses: one lookup at a time, kept 30 s, and beyond that while no lookup succeeds.

    A lookup is a thread that nothing can stop; waiting for it ends after 3 s, and the next request waits
    for the same one, so that a silent name server costs one thread and not all of them.
    """

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner
        self._found: dict[tuple[str, int, int], tuple[float, list[ResolveResult]]] = {}
        self._looking: dict[tuple[str, int, int], asyncio.Task[list[ResolveResult]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of `host`. Raises OSError where there is none."""
        key = (host, port, int(family))
        known = self._found.get(key)
        if known is not None and time.monotonic() - known[0] < DNS_TTL_S:
            return known[1]
        try:
            async with asyncio.timeout(RESOLVE_S):
                return await asyncio.shield(self._lookup(key, family))
        except (OSError, TimeoutError) as exc:
            if known is not None:
                return known[1]
            if isinstance(exc, TimeoutError):
                raise OSError(None, f"the name server did not answer in {RESOLVE_S:g} s") from exc
            raise

    def _lookup(self, key: tuple[str, int, int], family: socket.AddressFamily) -> asyncio.Task[list[ResolveResult]]:
        task = self._looking.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._look(key, family))
            self._looking[key] = task
            task.add_done_callback(lambda done: self._settle(key, done))
        return task

    async def _look(self, key: tuple[str, int, int], family: socket.AddressFamily) -> list[ResolveResult]:
        return await self._inner.resolve(key[0], key[1], family)

    def _settle(self, key: tuple[str, int, int], done: asyncio.Task[list[ResolveResult]]) -> None:
        self._looking.pop(key, None)
        if not done.cancelled() and done.exception() is None:
            self._found[key] = (time.monotonic(), done.result())

    async def close(self) -> None:
        """Wait for nobody."""
        for task in tuple(self._looking.values()):
            task.cancel()
        await self._inner.close()


def socket_factory(*, only_private: bool) -> Callable[[AddrInfo], socket.socket]:
    """Makes sockets; with `only_private`, none toward any other address."""

    def make(address: AddrInfo) -> socket.socket:
        family, kind, protocol, _, where = address
        if only_private and not is_private(where[0]):
            raise OSError(None, f"SITE=edge, but {where[0]} is not a loopback or private address")
        sock = socket.socket(family, kind, protocol)
        for level, option, value in SOCKET_OPTIONS:
            sock.setsockopt(level, option, value)
        return sock

    return make


def tls_context(ca_file: Path | None, client_cert_file: Path | None) -> ssl.SSLContext:
    """Certificates always checked, names too. Blocks: reads files. Raises OSError naming the file."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise OSError(f"CA_FILE {ca_file}: {_reason(exc)}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if client_cert_file is not None:
        try:
            context.load_cert_chain(client_cert_file)
        except (OSError, ssl.SSLError) as exc:
            raise OSError(f"CLIENT_CERT_FILE {client_cert_file}: {_reason(exc)}") from exc
    return context


def _reason(exc: OSError) -> str:
    return exc.strerror or str(exc) or "holds no certificate"


async def open_session(settings: HttpSettings, *, slots: int, only_private: bool) -> aiohttp.ClientSession:
    """The upstream's pool. Connects to nothing yet."""
    context = await asyncio.to_thread(tls_context, settings.ca_file, settings.client_cert_file)
    connector = Connector(
        limit=slots + PROBES_BESIDE_SLOTS,
        keepalive_timeout=IDLE_S,
        ssl=context,
        resolver=Resolver(SystemResolver()),
        use_dns_cache=False,
        socket_factory=socket_factory(only_private=only_private),
    )
    headers = {"User-Agent": "edge-gateway", "Accept-Encoding": "identity"}
    if settings.api_key is not None:
        headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        response_class=Response,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        auto_decompress=False,
        trust_env=False,
        proxy=settings.proxy.get_secret_value() if settings.proxy else None,
        max_line_size=MAX_HEADER_LINE_BYTES,
        max_field_size=MAX_HEADER_LINE_BYTES,
        max_headers=MAX_HEADERS,
    )
