"""The HTTP door, on aiohttp's low-level server.

What aiohttp leaves to us is here: who may call us what (Host), browsers (Origin), framing it lets pass, the limit
it has not on a body that comes too slowly, and errors of the parser in our envelope instead of its own text. Of its
private parts we lean on `_waiter`, `_request_count` and `_manager` of a connection (`_Connection`), and on a request's
`_version`. How answers go out is in `http_reply.py`.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from aiohttp import HttpVersion11, web

from gateway.ingress.handler import RequestHandler
from gateway.ingress.http.body import read_body
from gateway.ingress.http.checks import (
    check_framing,
    check_headers,
    check_host,
    check_origin,
    headers_of,
    is_local,
    names_in,
    preflight_of,
)
from gateway.ingress.http.response import HttpResponseWriter
from gateway.ingress.http.server import log_rejected
from gateway.ingress.transport import IncomingRequest
from gateway.plugin import GatewayError


def time_left(until: float) -> float:
    """Seconds until then, of the loop's time."""
    return until - asyncio.get_running_loop().time()


class HttpTransport:
    """Turns aiohttp's requests into the door's, and the door's answers into HTTP."""

    def __init__(self, door: RequestHandler, *, allowed_hosts: frozenset[str], allowed_origins: frozenset[str]) -> None:
        self._door, self._hosts, self._origins = door, allowed_hosts, allowed_origins
        self.is_draining = False
        self._serving: set[asyncio.Task[Any]] = set()

    def allow(self, hosts: frozenset[str], origins: frozenset[str]) -> None:
        """Other hosts and origins from now on."""
        self._hosts, self._origins = hosts, origins

    async def drain(self, until: float) -> None:
        """Close each connection after its answer; returns when what is being served now is done.

        until: the loop's time at which what is not done is told that it will not be.
        """
        self.is_draining = True
        await self._wait(until)
        if time_left(until) <= 0:
            self._door.give_up()

    async def finish(self, until: float) -> None:
        """The same for all who came meanwhile, when nobody can come any more."""
        while self._serving and time_left(until) > 0:
            await self._wait(until)
        self._door.give_up()

    async def _wait(self, until: float) -> None:
        if self._serving:
            await asyncio.wait(set(self._serving), timeout=max(0.0, time_left(until)))

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            return await self._serve(request)
        finally:
            self._serving.discard(task)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        # Behind an Upgrade, which nobody here knows, there may be bytes of another protocol.
        reply = HttpResponseWriter(
            request, self._cors(request), close_after="Upgrade" in request.headers, draining=self._drains
        )
        try:
            check_framing(request)
        except GatewayError as exc:
            log_rejected(exc.message, request.transport and request.transport.get_extra_info("peername"))
            request._version = HttpVersion11  # an answer in the version of the request would be no HTTP
            await reply.reject(exc)
            return reply.response
        await self._door.serve(self._incoming(request, reply), reply)
        return reply.response

    def _drains(self) -> bool:
        return self.is_draining

    def _incoming(self, request: web.BaseRequest, reply: HttpResponseWriter) -> IncomingRequest:
        headers = headers_of(request)
        is_preflight = request.method == "OPTIONS" and "origin" in headers
        return IncomingRequest(
            door="http",
            method=request.method,
            target=_path_of(request.raw_path),
            headers=headers,
            read=lambda limit: read_body(request, reply, limit, self._door.room),
            is_trusted=is_local(request),
            check=partial(self._check, request, reply),
            preflight=preflight_of(request) if is_preflight else None,
            certified=tuple(names_in(request.get_extra_info("peercert") or {})),
        )

    def _check(self, request: web.BaseRequest, reply: HttpResponseWriter) -> None:
        try:
            check_host(request, self._hosts)
            check_headers(request)
        except GatewayError:
            reply.close_after = True  # who mixes up whose request it is, is not to go on with the connection
            raise
        check_origin(request, self._origins)

    def _cors(self, request: web.BaseRequest) -> dict[str, str]:
        origin = request.headers.get("Origin")
        if origin is None or origin not in self._origins:
            return {}
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED, "Vary": "Origin"}


_EXPOSED = (
    "retry-after, retry-after-ms, server-timing, x-gateway-attempts, x-gateway-backend, x-gateway-reason, "
    "x-gateway-site, x-request-id, x-should-retry"
)


def _path_of(target: str) -> str:
    if target.startswith("/") or "://" not in target:
        return target
    return "/" + target.partition("://")[2].partition("/")[2]
