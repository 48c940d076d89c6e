"""The data listeners and the admin listener: opening, TLS, allowed hosts, pausing, draining."""

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
from gateway.service.sockets import (
    bind,
    host_of,
    name_of,
    refuse_tls_removal,
    refuse_unauthenticated_public,
    remove_socket_file,
    socket_file_of,
)
from gateway.settings import Settings
from gateway.telemetry import log_bug, log_exceptions

FINISH_S = 1.0  # for the last responses to be sent; a client that does not read has twice this time
MAX_ADMIN_CONNECTIONS = 64


class Listeners:
    """All listening sockets: bound by the settings, or passed by systemd and then held until `accept_held`.

    bound, admin_bound: the addresses, written as in GATEWAY_LISTEN. sites: the data listeners.
    """

    def __init__(self, handler: RequestHandler, gate: Gate, tls: ssl.SSLContext | None) -> None:
        self._handler, self._gate, self._tls = handler, gate, tls
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
        """Listen. slots: the backends' slots, which need file descriptors too.

        Raises SettingsError, OSError.
        """
        passed = systemd.passed_sockets()
        self._is_activated = bool(passed)
        refuse_unauthenticated_public(passed, settings)
        group = settings.socket_group
        self._sockets = passed or [bind(listener, "GATEWAY_LISTEN", group) for listener in settings.listen]
        admin = bind(settings.admin_listen, "GATEWAY_ADMIN_LISTEN", group)
        own = [admin] if passed else [*self._sockets, admin]
        self._files = [file for sock in own if (file := socket_file_of(sock)) is not None]
        self.bound, self.admin_bound = [name_of(sock) for sock in self._sockets], [name_of(admin)]
        self._bound_to = [host_of(sock) for sock in [*self._sockets, admin]]
        hosts = own_hosts(self._bound_to)
        self.http = HttpTransport(self._handler, allowed_hosts=hosts, allowed_origins=frozenset())
        self._admin = Admin(self._handler, hosts, None if settings.admin_listen.is_local else self._gate)
        self.update_allowed_hosts(settings)
        limit = max_connections(raise_descriptor_limit(), slots)
        self.sites = await self._serve(self.http, self._sockets, limit, tls=self._tls, held=self._is_activated)
        await self._serve(self._admin, [admin], MAX_ADMIN_CONNECTIONS)

    async def _serve(
        self,
        handler: Any,
        sockets: list[socket.socket],
        connections: int,
        *,
        tls: ssl.SSLContext | None = None,
        held: bool = False,
    ) -> list[HttpListener]:
        runner = web.ServerRunner(Server(handler, connections), handle_signals=False, shutdown_timeout=FINISH_S)
        await runner.setup()
        share = max_handshakes(connections) // len(sockets)
        sites = [HttpListener(runner, sock, tls, handshakes=share, held=held) for sock in sockets]
        for site in sites:
            await site.start()
        self._runners.append(runner)
        return sites

    def update_allowed_hosts(self, settings: Settings) -> None:
        """Set the allowed Host names and browser origins.

        Call it after a reload and after a network change: without GATEWAY_ALLOWED_HOSTS the host's own addresses count.
        """
        assert self.http is not None
        assert self._admin is not None
        own = own_hosts(self._bound_to)
        hosts = frozenset(settings.allowed_hosts) if settings.allowed_hosts is not None else own
        self.http.allow(hosts, frozenset(settings.allowed_origins))
        self._admin.allow(own)

    def refuse_exposure(self, before: Settings, after: Settings) -> None:
        """Raise SettingsError if the settings `after` would leave a public listener without API keys or TLS."""
        refuse_unauthenticated_public(self._sockets, after)
        refuse_tls_removal(self._sockets, before, after)

    def replace_tls(self, tls: ssl.SSLContext | None) -> None:
        """Use other certificates for new connections, which wait in the kernel until `accept_after_tls`."""
        if tls is None and self._tls is None:
            return
        self._tls = tls
        for site in self.sites:
            site.renew(tls)

    async def accept_after_tls(self) -> None:
        """Accept connections again after `replace_tls`. A failure is logged; each memory check tries again."""
        for site in self.sites:
            with log_exceptions(f"accepting again on {site.name}"):
                await site.resume("renewing")

    async def accept_held(self) -> None:
        """Accept connections that arrived during a restart and wait in the sockets passed by systemd."""
        if self._is_activated:
            for site in self.sites:
                await site.resume("starting")

    def hold(self) -> None:
        """Stop accepting on sockets passed by systemd: new connections wait there for the next process."""
        if self._is_activated:
            for site in self.sites:
                site.pause("stopping")

    async def drain(self, until: float) -> None:
        """Finish requests in flight; each connection is closed after its current response. until: in loop time."""
        if self.http is not None:
            await self.http.drain(until)

    async def close(self, until: float) -> None:
        """Stop listening, finish the remaining requests until `until`, then abort those that still run.

        The files of Unix sockets are removed, except those of sockets passed by systemd.
        """
        for site in self.sites:
            site.pause("stopping")
        for file in self._files:
            remove_socket_file(file)
        if self.http is not None:
            await self.http.finish(until)
        await run_all("closing a listener", *(runner.cleanup() for runner in self._runners))


async def run_all(label: str, *steps: Coroutine[Any, Any, None]) -> None:
    """Run the steps concurrently, each to its end; log those that fail. label: names the steps in the log."""
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(result, BaseException):
            log_bug(label, result)
