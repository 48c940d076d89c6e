"""The HTTP transport, on aiohttp's low-level server.

aiohttp leaves these to us: the Host check (DNS rebinding), the Origin check (cross-site requests from browsers),
framing that it accepts and other parsers read differently (request smuggling), a time limit for the body (slowloris),
and parser errors in our error format. The private parts of aiohttp in use: a connection's `_waiter`, `_request_count`
and `_manager` (`server.py`), and a request's `_version`. `response.py` writes the responses.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from aiohttp import HttpVersion11, web

from gateway.ingress.handler import RequestHandler
from gateway.ingress.http.body import read_body
from gateway.ingress.http.cors import check_origin, preflight_of
from gateway.ingress.http.request_checks import check_framing, check_headers, check_host, headers_of, is_local, names_in
from gateway.ingress.http.response_writer import HttpResponseWriter
from gateway.ingress.http.server import log_rejected
from gateway.ingress.transport import IncomingRequest
from gateway.plugin import GatewayError

_EXPOSED_HEADERS = (
    "retry-after, retry-after-ms, server-timing, x-gateway-attempts, x-gateway-backend, x-gateway-reason, "
    "x-gateway-site, x-request-id, x-should-retry"
)


class HttpTransport:
    """Converts aiohttp's requests to the handler's, and the handler's responses to HTTP."""

    def __init__(
        self, handler: RequestHandler, *, allowed_hosts: frozenset[str], allowed_origins: frozenset[str]
    ) -> None:
        self._handler, self._hosts, self._origins = handler, allowed_hosts, allowed_origins
        self.is_draining = False
        self._serving: set[asyncio.Task[Any]] = set()

    def allow(self, hosts: frozenset[str], origins: frozenset[str]) -> None:
        """Replace the allowed hosts and origins."""
        self._hosts, self._origins = hosts, origins

    async def drain(self, until: float) -> None:
        """Close each connection after its response; return when the requests open now are done.

        until: the loop's time at which the requests that are still open get an error.
        """
        self.is_draining = True
        await self._wait(until)
        if _time_left_s(until) <= 0:
            self._handler.stop()

    async def finish(self, until: float) -> None:
        """Drain the requests that arrived during `drain`. Call it when no connection is accepted any more."""
        while self._serving and _time_left_s(until) > 0:
            await self._wait(until)
        self._handler.stop()

    async def _wait(self, until: float) -> None:
        if self._serving:
            await asyncio.wait(set(self._serving), timeout=max(0.0, _time_left_s(until)))

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
        # Close after a request with Upgrade: bytes of the other protocol may follow (request smuggling).
        writer = HttpResponseWriter(
            request, self._cors(request), close_after="Upgrade" in request.headers, is_draining=self._is_draining
        )
        try:
            check_framing(request)
        except GatewayError as exc:
            request_id = log_rejected(exc.message, request.transport and request.transport.get_extra_info("peername"))
            request._version = HttpVersion11  # a response with the request's unknown version would be invalid
            await writer.reject(exc, request_id)
            return writer.response
        await self._handler.serve(self._incoming(request, writer), writer)
        return writer.response

    def _is_draining(self) -> bool:
        return self.is_draining

    def _incoming(self, request: web.BaseRequest, writer: HttpResponseWriter) -> IncomingRequest:
        headers = headers_of(request)
        is_preflight = request.method == "OPTIONS" and "origin" in headers
        return IncomingRequest(
            door="http",
            method=request.method,
            target=_path_of(request.raw_path),
            headers=headers,
            read=lambda limit: read_body(request, writer, limit, self._handler.shedding.bodies),
            is_trusted=is_local(request),
            check=partial(self._check, request, writer),
            preflight=preflight_of(request) if is_preflight else None,
            certificate_names=tuple(names_in(request.get_extra_info("peercert") or {})),
        )

    def _check(self, request: web.BaseRequest, writer: HttpResponseWriter) -> None:
        try:
            check_host(request, self._hosts)
            check_headers(request)
        except GatewayError:
            writer.close_after = True  # the rest of the connection may be a smuggled request
            raise
        check_origin(request, self._origins)

    def _cors(self, request: web.BaseRequest) -> dict[str, str]:
        origin = request.headers.get("Origin")
        if origin is None or origin not in self._origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _EXPOSED_HEADERS,
            "Vary": "Origin",
        }


def _path_of(target: str) -> str:
    """The path of a request target, which may be a whole URL (RFC 9112 §3.2.2)."""
    if target.startswith("/") or "://" not in target:
        return target
    return "/" + target.partition("://")[2].partition("/")[2]


def _time_left_s(until: float) -> float:
    return until - asyncio.get_running_loop().time()
