"""Sockets we listen on: with TLS or without, as many connections as there are descriptors for, and a pause.

Above the most connections a client is told 503 at once and let go: nobody waits for a descriptor that the gateway needs
to ask a backend. While it pauses, the kernel keeps those who come waiting, and no memory is spent on them.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Any, Literal

from aiohttp import web

from gateway.ingress.http.response import last_words
from gateway.plugin import TaskRefused
from gateway.telemetry import RateLimitedEvent, metrics

BACKLOG = 1024
AT_ONCE = 16  # connections taken in one go: those too many are told so before the next go
HANDSHAKE_S = 10.0
HANDSHAKES_SHARE = 8
RESERVED_FDS = 128  # for backends, workers, files and the log; each slot of a backend beside it
WANTED_FDS = 65_536
GOODBYE_S = 1.0
MAX_GOODBYES = 64  # at once; others are let go without a word

_full = RateLimitedEvent("http.full", per_s=1.0, burst=1)


def raise_descriptor_limit() -> int:
    """Let the process open as many files as it may, or all we ever want; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FDS if hard == resource.RLIM_INFINITY else min(hard, WANTED_FDS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return WANTED_FDS if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a sandbox that lets nobody ask
        return soft
    return wanted


def max_connections(descriptors: int, slots: int) -> int:
    """How many clients may be connected, so that the gateway never lacks a descriptor for its own work."""
    available = descriptors - RESERVED_FDS - 2 * slots
    return max(16, available - max_handshakes(available))


def max_handshakes(connections: int) -> int:
    """How many clients may be in the middle of their TLS handshake, beside those who are connected."""
    return max(4 * AT_ONCE, connections // HANDSHAKES_SHARE)


class Handshakes:
    """Makes connections for one listener, so many at once that have not ended their TLS handshake.

    asyncio takes each connection in a task of its own, which asks for its protocol and ends with its handshake,
    whichever way that ends; of one that fails the protocol never hears.
    """

    def __init__(self, make: Callable[[], asyncio.BaseProtocol], most: int) -> None:
        self._make, self._most = make, most
        self._under_way: set[asyncio.Task[Any]] = set()

    def __call__(self) -> asyncio.BaseProtocol:
        """One more. Raises ConnectionAbortedError, upon which asyncio lets it go: there is no word for it yet."""
        if len(self._under_way) >= self._most:
            raise ConnectionAbortedError("too many are in the middle of their handshake")
        taking = asyncio.current_task()
        assert taking is not None
        self._under_way.add(taking)
        taking.add_done_callback(self._under_way.discard)
        return self._make()


Why = Literal["starting", "memory", "renewing", "stopping"]


class Site(web.BaseSite):
    """One listening socket. It accepts while nobody has a reason that it should not; stopping closes the socket itself.

    handshakes: how many TLS handshakes at once. held: begin with a pause, until the gateway has started.
    """

    def __init__(
        self,
        runner: web.BaseRunner,
        sock: socket.socket,
        tls: ssl.SSLContext | None = None,
        *,
        handshakes: int = 4 * AT_ONCE,
        held: bool = False,
    ) -> None:
        super().__init__(runner, ssl_context=tls, backlog=BACKLOG)
        self._is_unix = sock.family == socket.AF_UNIX  # what stays on this host stays plain
        self._sock, self._tls = sock, None if self._is_unix else tls
        assert runner.server is not None
        self._plain, self._shaking_hands = runner.server, Handshakes(runner.server, handshakes)
        self._pauses: set[Why] = {"starting"} if held else set()
        self._resuming = asyncio.Lock()

    @property
    def name(self) -> str:
        """For people."""
        return str(self._sock.getsockname())

    @property
    def is_accepting(self) -> bool:
        """Whether who connects now is served."""
        return self._server is not None

    async def start(self) -> None:
        """Listen, and unless held, accept."""
        await super().start()
        await self._accept()

    def renew(self, tls: ssl.SSLContext | None) -> None:
        """Other TLS for those who connect from now on. It pauses (`renewing`): who comes until then waits."""
        self._tls = None if self._is_unix else tls
        self.pause("renewing")

    async def resume(self, why: Why) -> None:
        """This is no reason any more. Where there is no other, accept again; nothing where it does. Raises OSError."""
        self._pauses.discard(why)
        await self._accept()

    async def _accept(self) -> None:
        async with self._resuming:
            if self.is_accepting or self._pauses:
                return
            self._server = await self._new_server()
            if self._pauses:  # since then
                self._break_off()

    async def _new_server(self) -> asyncio.Server:
        """It listens on a duplicate, so that it can be closed while the socket goes on listening."""
        sock = self._sock.dup()
        try:
            server = await asyncio.get_running_loop().create_server(
                self._shaking_hands if self._tls else self._plain,
                sock=sock,
                ssl=self._tls,
                backlog=AT_ONCE,
                ssl_handshake_timeout=HANDSHAKE_S if self._tls else None,
            )
        except BaseException:
            sock.close()
            raise
        self._sock.listen(BACKLOG)  # asyncio has one number for how many may wait, and how many it takes in one go
        return server

    def pause(self, why: Why) -> None:
        """Accept nobody until this is no reason any more; connections there are go on."""
        self._pauses.add(why)
        self._break_off()

    def _break_off(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def stop(self) -> None:
        """Close the socket."""
        await super().stop()
        self._sock.close()


class Goodbye(asyncio.Protocol):
    """Serves a connection too many: 503, and the connection goes."""

    now = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say so, whatever they ask; a moment later break off."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        metrics.SHED.inc(reason="connections")
        peer = transport.get_extra_info("peername")
        _full.warning(peer=str(peer[0]) if isinstance(peer, tuple) else "unix")
        Goodbye.now += 1
        if Goodbye.now > MAX_GOODBYES:
            transport.abort()
            return
        error = TaskRefused("as many clients are connected as there can be; come back later", retry_after_s=1.0)
        transport.write(last_words(error))
        if transport.can_write_eof():
            transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(GOODBYE_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Read and forget, lest a reset overtakes the answer."""

    def connection_lost(self, exc: Exception | None) -> None:
        """They have read it, or a moment has passed."""
        Goodbye.now -= 1
        if timer := getattr(self, "_timer", None):
            timer.cancel()
