"""What the gateway listens on, for data and for its admin, and whom it lets in."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from gateway.admin import Admin
from gateway.admit import Gate
from gateway.ingress.handler import RequestHandler
from gateway.ingress.http.adapter import HttpTransport
from gateway.ingress.http.hosts import own_hosts
from gateway.ingress.http.listener import HttpListener, max_connections, max_handshakes, raise_descriptor_limit
from gateway.ingress.http.server import Server
from gateway.service import systemd
from gateway.service.sockets import bind, file_of, host_of, name_of, refuse_less_tls, refuse_public, remove
from gateway.settings import Settings
from gateway.telemetry import log_bug, log_exceptions

FINISH_S = 1.0  # for the last answers to leave; who does not read theirs has it twice
ADMIN_CONNECTIONS = 64


class Listeners:
    """All listening sockets: bound by our settings, or passed by systemd, and then held until `go`.

    bound, admin_bound: what they are called. sites: those for data.
    """

    def __init__(self, door: RequestHandler, gate: Gate, tls: ssl.SSLContext | None) -> None:
        self._door, self._gate, self._tls = door, gate, tls
        self.bound: list[str] = []
        self.admin_bound: list[str] = []
        self.sites: list[HttpListener] = []
        self.http: HttpTransport | None = None
        self._admin: Admin | None = None
        self._is_activated = False
        self._sockets: list[socket.socket] = []
        self._files: list[tuple[str, int]] = []
        self._bound_to: list[str] = []
        self._runners: list[web.BaseRunner] = []

    async def open(self, settings: Settings, slots: int) -> None:
        """Listen; the backends' `slots` need descriptors too. Raises SettingsError, OSError."""
        passed = systemd.sockets()
        self._is_activated = bool(passed)
        refuse_public(passed, settings)
        group = settings.socket_group
        self._sockets = passed or [bind(listener, "GATEWAY_LISTEN", group) for listener in settings.listen]
        admin = bind(settings.admin_listen, "GATEWAY_ADMIN_LISTEN", group)
        own = [admin] if passed else [*self._sockets, admin]
        self._files = [file for sock in own if (file := file_of(sock)) is not None]
        self.bound, self.admin_bound = [name_of(sock) for sock in self._sockets], [name_of(admin)]
        self._bound_to = [host_of(sock) for sock in [*self._sockets, admin]]
        hosts = own_hosts(self._bound_to)
        self.http = HttpTransport(self._door, allowed_hosts=hosts, allowed_origins=frozenset())
        self._admin = Admin(self._door, hosts, None if settings.admin_listen.is_local else self._gate)
        self.allow(settings)
        most = max_connections(raise_descriptor_limit(), slots)
        self.sites = await self._serve(self.http, self._sockets, most=most, tls=self._tls, held=self._is_activated)
        await self._serve(self._admin, [admin], most=ADMIN_CONNECTIONS)

    async def _serve(
        self,
        handler: Any,
        sockets: list[socket.socket],
        *,
        most: int,
        tls: ssl.SSLContext | None = None,
        held: bool = False,
    ) -> list[HttpListener]:
        runner = web.ServerRunner(Server(handler, most), handle_signals=False, shutdown_timeout=FINISH_S)
        await runner.setup()
        share = max_handshakes(most) // len(sockets)
        sites = [HttpListener(runner, sock, tls, handshakes=share, held=held) for sock in sockets]
        for site in sites:
            await site.start()
        self._runners.append(runner)
        return sites

    def allow(self, settings: Settings) -> None:
        """Who may be asked for, and by which pages. Our own addresses come and go: this asks for them anew."""
        assert self.http is not None
        assert self._admin is not None
        own = own_hosts(self._bound_to)
        hosts = frozenset(settings.allowed_hosts) if settings.allowed_hosts is not None else own
        self.http.allow(hosts, frozenset(settings.allowed_origins))
        self._admin.allow(own)

    def refuse(self, before: Settings, after: Settings) -> None:
        """Raise SettingsError where what we listen on may not be reached by others under the settings `after`."""
        refuse_public(self._sockets, after)
        refuse_less_tls(self._sockets, before, after)

    def renew(self, tls: ssl.SSLContext | None) -> None:
        """Other certificates, for who connects from now on: all of them wait until `renewed`."""
        if tls is None and self._tls is None:
            return
        self._tls = tls
        for site in self.sites:
            site.renew(tls)

    async def renewed(self) -> None:
        """Accept again. A listener that cannot is told, and tried again with each look at the memory."""
        for site in self.sites:
            with log_exceptions(f"accepting again on {site.name}"):
                await site.resume("renewing")

    async def go(self) -> None:
        """Who came during a restart, and waits in systemd's socket, is served; nobody is told to come again."""
        if self._is_activated:
            for site in self.sites:
                await site.resume("starting")

    def hold(self) -> None:
        """Where systemd has the sockets, who comes now waits for the next process."""
        if self._is_activated:
            for site in self.sites:
                site.pause("stopping")

    async def drain(self, until: float) -> None:
        """Finish what is in flight; connections are closed after their present answer. until: of the loop's time."""
        if self.http is not None:
            await self.http.drain(until)

    async def close(self, until: float) -> None:
        """Listen no more, finish what came meanwhile, and break off who is left. systemd's sockets keep their files."""
        for site in self.sites:
            site.pause("stopping")
        for file in self._files:
            remove(file)
        if self.http is not None:
            await self.http.finish(until)
        await all_of("closing a listener", *(runner.cleanup() for runner in self._runners))


async def all_of(what: str, *steps: Coroutine[Any, Any, None]) -> None:
    """All of them at once, each to its end; those that fail are told."""
    for ended in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(ended, BaseException):
            log_bug(what, ended)
