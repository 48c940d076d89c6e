"""Open the session to an upstream: sockets, certificates, the connection pool.

SITE=edge is enforced where a socket is created. So DNS rebinding, or a second address of a name, cannot take a
connection off the site.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohttp

from ..settings import HttpSettings, is_private
from .connection import Connector, Response
from .resolver import CachingResolver, SystemResolver

CONNECT_S = 3.0
CONNECT_RTTS = 4.0  # on a slow path connecting may take longer: TCP, TLS 1.2, and some variation
IDLE_S = 60.0
USER_TIMEOUT_MS = 10_000  # a peer that acknowledges no data for this long is gone
PROBES_BESIDE_SLOTS = 14  # health probes (several while answers are missing) and a model list
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


def socket_factory(*, only_private: bool) -> Callable[[AddrInfo], socket.socket]:
    """Return a factory of sockets.

    With `only_private` the factory raises OSError for an address that is neither loopback nor private.
    """

    def make(address: AddrInfo) -> socket.socket:
        family, kind, protocol, _, destination = address
        if only_private and not is_private(destination[0]):
            raise OSError(None, f"SITE=edge, but {destination[0]} is not a loopback or private address")
        sock = socket.socket(family, kind, protocol)
        for level, option, value in SOCKET_OPTIONS:
            sock.setsockopt(level, option, value)
        return sock

    return make


TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)


def timeout_for(rtt_s: float | None) -> aiohttp.ClientTimeout:
    """Return the timeout for connecting on a path with this round trip."""
    if rtt_s is None or CONNECT_RTTS * rtt_s <= CONNECT_S:
        return TIMEOUT
    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_RTTS * rtt_s)


def tls_context(ca_file: Path | None, client_cert_file: Path | None) -> ssl.SSLContext:
    """Return a context that always checks certificates and host names.

    Blocks: reads files. Raises OSError that names the setting and the file.
    """
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
    """Return the session of one upstream; it connects at the first request."""
    context = await asyncio.to_thread(tls_context, settings.ca_file, settings.client_cert_file)
    connector = Connector(
        limit=slots + PROBES_BESIDE_SLOTS,
        keepalive_timeout=IDLE_S,
        ssl=context,
        resolver=CachingResolver(SystemResolver()),
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
        timeout=TIMEOUT,
        auto_decompress=False,
        trust_env=False,
        proxy=settings.proxy.get_secret_value() if settings.proxy else None,
        max_line_size=MAX_HEADER_LINE_BYTES,
        max_field_size=MAX_HEADER_LINE_BYTES,
        max_headers=MAX_HEADERS,
    )
