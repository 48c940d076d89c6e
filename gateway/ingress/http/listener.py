"""Listening sockets: TLS, a limit on connections, and a pause.

The limit on connections keeps file descriptors for the gateway's own work (backends, workers, files). A client above it
gets 503 at once. While a listener pauses, new connections wait in the kernel and use no memory of the gateway.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from aiohttp import web

from gateway.ingress.http.response_writer import error_bytes
from gateway.plugin import TaskRefused, new_id
from gateway.telemetry import RateLimitedEvent, metrics

BACKLOG = 1024
MAX_ACCEPTS = 16  # connections accepted in one turn of the loop; those above the limit get 503 before the next turn
HANDSHAKE_S = 10.0  # against clients that do not finish their TLS handshake (slowloris)
HANDSHAKES_SHARE = 8
RESERVED_FDS = 128  # for backends, workers, files and the log; two more for each slot of a backend
WANTED_FDS = 65_536
REFUSAL_S = 1.0  # for the client to read its 503
MAX_REFUSALS = 64  # at once; more connections are closed without a response

_full = RateLimitedEvent("http.full", per_s=1.0, burst=1)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of file descriptors to the hard limit, at most WANTED_FDS; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FDS if hard == resource.RLIM_INFINITY else min(hard, WANTED_FDS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return WANTED_FDS if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a sandbox forbids it
        return soft
    return wanted


def max_connections(descriptors: int, slots: int) -> int:
    """The limit of connections that keeps enough descriptors for the gateway's own work."""
    available = descriptors - RESERVED_FDS - 2 * slots
    return max(16, available - max_handshakes(available))


def max_handshakes(connections: int) -> int:
    """The limit of TLS handshakes in progress, in addition to the connections."""
    return max(4 * MAX_ACCEPTS, connections // HANDSHAKES_SHARE)


class HandshakeLimiter:
    """Protocol factory of one listener that limits the TLS handshakes in progress.

    asyncio accepts each connection in its own task. The task calls the factory and ends with the handshake, whether it
    succeeds or fails; the protocol is not called if it fails.
    """

    def __init__(self, make: Callable[[], asyncio.BaseProtocol], max_handshakes: int) -> None:
        self._make, self._max = make, max_handshakes
        self._in_progress: set[asyncio.Task[Any]] = set()

    def __call__(self) -> asyncio.BaseProtocol:
        """Make a protocol. Raises ConnectionAbortedError above the limit, upon which asyncio closes the connection.

        An HTTP response is impossible before the handshake has ended.
        """
        if len(self._in_progress) >= self._max:
            raise ConnectionAbortedError("too many TLS handshakes are in progress")
        accepting = asyncio.current_task()
        assert accepting is not None
        self._in_progress.add(accepting)
        accepting.add_done_callback(self._in_progress.discard)
        return self._make()


PauseReason = Literal["starting", "memory", "renewing", "stopping"]


class HttpListener(web.BaseSite):
    """One listening socket. It accepts connections while it has no reason to pause. `stop` closes the socket.

    handshakes: the limit of TLS handshakes in progress. held: start with a pause, until the gateway has started.
    """

    def __init__(
        self,
        runner: web.BaseRunner,
        sock: socket.socket,
        tls: ssl.SSLContext | None = None,
        *,
        handshakes: int = 4 * MAX_ACCEPTS,
        held: bool = False,
    ) -> None:
        super().__init__(runner, ssl_context=tls, backlog=BACKLOG)
        self._is_unix = sock.family == socket.AF_UNIX  # no TLS: the bytes stay on this host
        self._sock, self._tls = sock, None if self._is_unix else tls
        assert runner.server is not None
        self._make_plain, self._make_tls = runner.server, HandshakeLimiter(runner.server, handshakes)
        self._pause_reasons: set[PauseReason] = {"starting"} if held else set()
        self._resuming = asyncio.Lock()

    @property
    def name(self) -> str:
        """The address, for messages."""
        return str(self._sock.getsockname())

    @property
    def is_accepting(self) -> bool:
        """Whether new connections are accepted."""
        return self._server is not None

    async def start(self) -> None:
        """Listen; accept unless held."""
        await super().start()
        await self._accept()

    def renew(self, tls: ssl.SSLContext | None) -> None:
        """Use another TLS context for new connections, and pause (`renewing`) until `resume`."""
        self._tls = None if self._is_unix else tls
        self.pause("renewing")

    async def resume(self, reason: PauseReason) -> None:
        """Withdraw one reason to pause. Without another reason, accept again. Raises OSError."""
        self._pause_reasons.discard(reason)
        await self._accept()

    async def _accept(self) -> None:
        async with self._resuming:
            if self.is_accepting or self._pause_reasons:
                return
            self._server = await self._new_server()
            if self._pause_reasons:  # added during the await
                self._stop_accepting()

    async def _new_server(self) -> asyncio.Server:
        """Accept on a duplicate, which `pause` can close while the socket itself keeps listening."""
        sock = self._sock.dup()
        try:
            server = await asyncio.get_running_loop().create_server(
                self._make_tls if self._tls else self._make_plain,
                sock=sock,
                ssl=self._tls,
                backlog=MAX_ACCEPTS,
                ssl_handshake_timeout=HANDSHAKE_S if self._tls else None,
            )
        except BaseException:
            sock.close()
            raise
        self._sock.listen(BACKLOG)  # asyncio uses one number for the backlog and for the accepts in one turn
        return server

    def pause(self, reason: PauseReason) -> None:
        """Accept no connections until `resume` with the same reason. Open connections continue."""
        self._pause_reasons.add(reason)
        self._stop_accepting()

    def _stop_accepting(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def stop(self) -> None:
        """Close the socket."""
        await super().stop()
        self._sock.close()


class TooManyConnections(asyncio.Protocol):
    """Serves a connection above the limit: sends 503 and closes it."""

    open_count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send 503 before any request arrives; close REFUSAL_S later."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        metrics.SHED.inc(reason="connections")
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else "unix"
        request_id = _full.warning_with_id(request_id=new_id(), peer=address)
        TooManyConnections.open_count += 1
        if TooManyConnections.open_count > MAX_REFUSALS:
            transport.abort()
            return
        error = TaskRefused("the gateway has as many connections as it can serve; try again later", retry_after_s=1.0)
        transport.write(error_bytes(error, request_id))
        if transport.can_write_eof():
            with suppress(OSError):  # the client has reset the connection since the write
                transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(REFUSAL_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Discard it: closing with unread bytes would send a reset, which discards the response."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection out."""
        TooManyConnections.open_count -= 1
        if timer := getattr(self, "_timer", None):
            timer.cancel()
