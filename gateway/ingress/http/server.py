"""The HTTP server: aiohttp's, with limits on connections, time for request heads, and unread bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.ingress.http.listener import TooManyConnections
from gateway.ingress.http.response_writer import error_bytes, error_response, limit_unsent
from gateway.ingress.response import internal_error
from gateway.plugin import GatewayError, TaskInvalid, new_id
from gateway.telemetry import RateLimitedEvent

HEAD_TIMEOUT_S = 15.0  # aiohttp's keep-alive timeout is also its only time limit for a request's head (slowloris)
LINGER_S = 2.0  # reads on for this long after an early response: a reset would discard the response

_rejected = RateLimitedEvent("http.rejected", per_s=1.0, burst=10)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Connection(RequestHandler):
    """aiohttp's connection, with errors in our format instead of its own text."""

    __slots__ = ("_body", "_has_partial_head")
    _body: StreamReader | None  # the body that the parser fills, or filled last

    def data_received(self, data: bytes) -> None:
        """Record for `force_close` whether an idle connection has received part of a request head.

        If the framing of a body is invalid, its reader gets an error: aiohttp only queues the error behind the request.
        """
        was_idle, count = self._waiter is not None and not self._waiter.done(), self._request_count
        super().data_received(data)
        has_new_head = self._request_count != count
        self._has_partial_head = was_idle and not has_new_head
        if has_new_head:
            message, payload = self._messages[-1]
            if isinstance(message, _ErrInfo):
                _fail(self._body)
            else:
                self._body = payload

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Forget the body: from here on it is only discarded, so invalid framing does not matter."""
        if request.content is self._body:
            self._body = None
        return await super().finish_response(request, resp, start_time)

    def force_close(self) -> None:
        """Close an idle connection after aiohttp's keep-alive timeout; status 408 if part of a head was received."""
        if getattr(self, "_has_partial_head", False) and self.transport is not None:
            request_id = log_rejected("the request head came too slowly", self.peername)
            message = f"the request head did not arrive within {HEAD_TIMEOUT_S:g} s"
            self.transport.write(error_bytes(GatewayError(message, code="request_timeout"), request_id))
        super().force_close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the connection, or send 503 if there are too many."""
        server = self._manager
        if isinstance(server, Server) and server.is_full:
            refusal = TooManyConnections()
            transport.set_protocol(refusal)
            refusal.connection_made(transport)
            return
        limit_unsent(transport)
        self._body = None
        super().connection_made(transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer an invalid request, or a bug of ours. Neither the client nor the log gets a traceback."""
        error: GatewayError
        if exc is not None and status >= 500:
            request_id = new_id()
            error = internal_error(exc, request_id)
        else:
            why = (message or (type(exc).__name__ if exc else "")).splitlines()[0:1]
            request_id = log_rejected((why or ["malformed request"])[0], self.peername)
            error = TaskInvalid("the request is not valid HTTP: check its request line, headers and framing")
        response = error_response(error, request_id)
        response.force_close()
        return response


def _fail(body: StreamReader | None) -> None:
    if body is not None and not body.is_eof():
        body.set_exception(web.RequestPayloadError("its chunks are malformed"))
        body.feed_eof()


def log_rejected(why: str, peer: Any) -> str:
    """Log a request that is not valid HTTP; return its id. peer: an address of getpeername()."""
    address = str(peer[0] if isinstance(peer, tuple) else "unix")
    return _rejected.warning_with_id(request_id=new_id(), why=why[:200], peer=address)


class Server(web.Server):
    """Accepts connections and calls `handler` for each request; cancels it when the client leaves.

    max_connections: a client above this number gets 503, and its connection is closed.
    """

    def __init__(self, handler: Handler, max_connections: int) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._max, self._count = max_connections, 0

    @property
    def is_full(self) -> bool:
        return self._count >= self._max

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        self._count += 1
        super().connection_made(handler, transport)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        self._count -= 1
        super().connection_lost(handler, exc)

    def __call__(self) -> RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=HEAD_TIMEOUT_S,
            lingering_time=LINGER_S,
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
        )


def check_parser() -> None:
    """Raise RuntimeError for aiohttp's pure-Python parser: it accepts framing that the compiled parser refuses."""
    if HttpRequestParser is HttpRequestParserPy:
        raise RuntimeError(
            "aiohttp uses its pure-Python HTTP parser, which is weaker against request smuggling; "
            "install aiohttp from a wheel with its C extensions, and unset AIOHTTP_NO_EXTENSIONS"
        )
