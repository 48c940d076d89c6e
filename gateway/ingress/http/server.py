"""The HTTP server: aiohttp's, with limits on connections, request heads and unread bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.ingress.handler import report_bug
from gateway.ingress.http.listener import Goodbye
from gateway.ingress.http.response import bound_unread, error_response, last_words
from gateway.plugin import GatewayError, TaskInvalid, new_id
from gateway.telemetry import RateLimitedEvent

HEAD_TIMEOUT_S = 15.0  # aiohttp's keep-alive timeout is also its only deadline for a request's head
LINGER_S = 2.0  # what is still sent after an early answer is read this long, lest a reset overtakes the answer

_rejected = RateLimitedEvent("http.rejected", per_s=1.0, burst=10)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Connection(RequestHandler):
    """aiohttp's connection, answering in our envelope what it would have answered in its own words."""

    __slots__ = ("_fed", "_has_part")
    _fed: StreamReader | None  # the body the parser is at, or was at last

    def data_received(self, data: bytes) -> None:
        """Note whether what has come while nobody was served is the part of a head, for `force_close`.

        And tell whoever reads a body that its framing has broken: aiohttp only queues that, behind the request.
        """
        was_idle, count = self._waiter is not None and not self._waiter.done(), self._request_count
        super().data_received(data)
        is_part = self._request_count == count
        self._has_part = was_idle and is_part
        if not is_part:
            message, payload = self._messages[-1]
            if isinstance(message, _ErrInfo):
                _break(self._fed)
            else:
                self._fed = payload

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """From here on nobody reads its body but to throw it away, and need not hear of its framing."""
        if request.content is self._fed:
            self._fed = None
        return await super().finish_response(request, resp, start_time)

    def force_close(self) -> None:
        """The end of an idle connection: aiohttp's keep-alive timeout. Whose head is half there is told why."""
        if getattr(self, "_has_part", False) and self.transport is not None:
            log_rejected("its head came too slowly", self.peername)
            message = f"the request's head was not there within {HEAD_TIMEOUT_S:g} s"
            self.transport.write(last_words(GatewayError(message, code="request_timeout")))
        super().force_close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve it; where it is one too many, tell it so."""
        server = self._manager
        if isinstance(server, Server) and server.is_full:
            goodbye = Goodbye()
            transport.set_protocol(goodbye)
            goodbye.connection_made(transport)
            return
        bound_unread(transport)
        self._fed = None
        super().connection_made(transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Bytes that are no request, or a bug of ours. Never a traceback, neither to the client nor into the log."""
        request_id = new_id()
        error: GatewayError
        if exc is not None and status >= 500:
            report_bug(exc, request_id)
            error = GatewayError("the gateway failed on this request; its log says where")
        else:
            why = (message or (type(exc).__name__ if exc else "")).splitlines()[0:1]
            log_rejected((why or ["malformed request"])[0], self.peername)
            error = TaskInvalid("the request is not valid HTTP: check its request line, headers and framing")
        response = error_response(error, request_id)
        response.force_close()
        return response


def _break(body: StreamReader | None) -> None:
    if body is not None and not body.is_eof():
        body.set_exception(web.RequestPayloadError("its chunks are malformed"))
        body.feed_eof()  # there is no more of it


def log_rejected(why: str, peer: Any) -> None:
    _rejected.warning(why=why[:200], peer=str(peer[0] if isinstance(peer, tuple) else "unix"))


class Server(web.Server):
    """Accepts connections and hands each request to `handler`; the handler is cancelled when its client leaves.

    most: how many may be connected; one more is told so, and let go.
    """

    def __init__(self, handler: Handler, most: int) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._most, self._count = most, 0

    @property
    def is_full(self) -> bool:
        """Whether as many are connected as may be."""
        return self._count >= self._most

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """One more."""
        self._count += 1
        super().connection_made(handler, transport)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """One less."""
        self._count -= 1
        super().connection_lost(handler, exc)

    def __call__(self) -> RequestHandler:
        """One more connection, before it is made."""
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=HEAD_TIMEOUT_S,
            lingering_time=LINGER_S,
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
        )


def check_parser() -> None:
    """Refuse aiohttp's pure-Python parser: it lets pass what the compiled one does not."""
    if HttpRequestParser is HttpRequestParserPy:
        raise RuntimeError(
            "aiohttp runs on its pure-Python HTTP parser, which is weaker against smuggled requests; "
            "install aiohttp from a wheel with its C extensions, and unset AIOHTTP_NO_EXTENSIONS"
        )
