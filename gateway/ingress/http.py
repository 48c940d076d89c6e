"""The HTTP door, on aiohttp's low-level server.

What aiohttp leaves to us is here: who may call us what (Host), browsers (Origin), framing it lets pass, the limit
it has not on a body that comes too slowly, and errors of the parser in our envelope instead of its own text. Of its
private parts we lean on `_waiter`, `_request_count` and `_manager` of a connection (`_Connection`), and on a request's
`_version`. How answers go out is in `http_reply.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.ingress.access import CREDENTIAL_HEADERS
from gateway.ingress.door import Door, report_bug
from gateway.ingress.hosts import host_of
from gateway.ingress.http_reply import HttpReply, bound_unread, error_response, last_words
from gateway.ingress.incoming import Incoming
from gateway.ingress.listening import Goodbye
from gateway.ingress.room import Reading, Room
from gateway.ingress.routes import MethodNotAllowed
from gateway.plugin import GatewayError, TaskInvalid, new_id
from gateway.telemetry import Limited

HEAD_TIMEOUT_S = 15.0  # aiohttp's keep-alive timeout is also its only deadline for a request's head
BODY_TIMEOUT_S = 20.0
BODY_S_PER_BYTE = 1.0 / 1000
LINGER_S = 2.0  # what is still sent after an early answer is read this long, lest a reset overtakes the answer

_rejected = Limited("http.rejected", per_s=1.0, burst=10)

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
            _reject("its head came too slowly", self.peername)
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
            _reject((why or ["malformed request"])[0], self.peername)
            error = TaskInvalid("the request is not valid HTTP: check its request line, headers and framing")
        response = error_response(error, request_id)
        response.force_close()
        return response


def _break(body: StreamReader | None) -> None:
    if body is not None and not body.is_eof():
        body.set_exception(web.RequestPayloadError("its chunks are malformed"))
        body.feed_eof()  # there is no more of it


def _reject(why: str, peer: Any) -> None:
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


def time_left(until: float) -> float:
    """Seconds until then, of the loop's time."""
    return until - asyncio.get_running_loop().time()


def check_parser() -> None:
    """Refuse aiohttp's pure-Python parser: it lets pass what the compiled one does not."""
    if HttpRequestParser is HttpRequestParserPy:
        raise RuntimeError(
            "aiohttp runs on its pure-Python HTTP parser, which is weaker against smuggled requests; "
            "install aiohttp from a wheel with its C extensions, and unset AIOHTTP_NO_EXTENSIONS"
        )


def check_host(request: web.BaseRequest, allowed: frozenset[str]) -> None:
    """Raises GatewayError unless the request is for us by a name of ours."""
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1:
        raise TaskInvalid(f"a request needs one Host header; this one has {len(hosts)}")
    named = host_of(hosts[0])
    if not request.raw_path.startswith("/") and request.raw_path != "*":
        authority = request.raw_path.partition("://")[2].partition("/")[0]
        if host_of(authority) != named:
            raise GatewayError("the request line and the Host header name different hosts", code="misdirected_request")
    if named not in allowed and "*" not in allowed:
        raise GatewayError(
            f"this gateway is not called {named!r}; add it to GATEWAY_ALLOWED_HOSTS if it should be",
            code="misdirected_request",
        )


def check_origin(request: web.BaseRequest, allowed: frozenset[str]) -> None:
    """Raises GatewayError for a browser's page of an origin that may not ask."""
    origin = request.headers.get("Origin")
    if origin is not None and origin not in allowed:
        raise GatewayError(
            f"pages of {origin[:80]!r} may not use this gateway; see GATEWAY_ALLOWED_ORIGINS", code="forbidden"
        )


def headers_of(request: web.BaseRequest) -> dict[str, str]:
    """Its headers by lower-cased name; those of one that came twice are one list (RFC 9110 §5.3)."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


def check_framing(request: web.BaseRequest) -> None:
    """Raises GatewayError for what another parser might read differently, so that nobody knows where it ends."""
    if request.version not in (HttpVersion10, HttpVersion11):
        raise TaskInvalid("the only versions of HTTP spoken here are 1.1 and 1.0")
    if request.method in ("CONNECT", "TRACE"):
        raise MethodNotAllowed(f"{request.method} is not for gateways", allow=("GET", "HEAD", "POST"))
    coding = request.headers.getall("Transfer-Encoding", [])
    if coding and [c.strip().lower() for c in coding] != ["chunked"]:
        raise TaskInvalid("the only Transfer-Encoding understood is `chunked`, once")
    if coding and "Content-Length" in request.headers:
        raise TaskInvalid("a request has either Content-Length or Transfer-Encoding, not both")
    if coding and request.version == HttpVersion10:  # RFC 9112 §6.1
        raise TaskInvalid("HTTP/1.0 has no Transfer-Encoding; send a Content-Length, or HTTP/1.1")


def check_headers(request: web.BaseRequest) -> None:
    """Raises GatewayError where another server might read another's header, or another of two."""
    for name in CREDENTIAL_HEADERS:
        if len(request.headers.getall(name, [])) > 1:
            raise TaskInvalid(f"the header {name} came twice; send it once")
    for name in request.headers:
        if "_" in name and name.lower().replace("_", "-") in _NEVER_UNDERSCORED:
            raise TaskInvalid(f"the header {name!r} is one that some servers take for another; write it with hyphens")


_NEVER_UNDERSCORED = frozenset({"host", "content-length", "transfer-encoding", *CREDENTIAL_HEADERS})


class HttpDoor:
    """Turns aiohttp's requests into the door's, and the door's answers into HTTP."""

    def __init__(self, door: Door, *, allowed_hosts: frozenset[str], allowed_origins: frozenset[str]) -> None:
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
        reply = HttpReply(request, self._cors(request), close_after="Upgrade" in request.headers, draining=self._drains)
        try:
            check_framing(request)
        except GatewayError as exc:
            _reject(exc.message, request.transport and request.transport.get_extra_info("peername"))
            request._version = HttpVersion11  # an answer in the version of the request would be no HTTP
            await reply.reject(exc)
            return reply.response
        await self._door.serve(self._incoming(request, reply), reply)
        return reply.response

    def _drains(self) -> bool:
        return self.is_draining

    def _incoming(self, request: web.BaseRequest, reply: HttpReply) -> Incoming:
        headers = headers_of(request)
        is_preflight = request.method == "OPTIONS" and "origin" in headers
        return Incoming(
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

    def _check(self, request: web.BaseRequest, reply: HttpReply) -> None:
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
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]{1,60}(\s*,\s*[A-Za-z0-9-]{1,60}){0,60}")


def preflight_of(request: web.BaseRequest) -> dict[str, str]:
    """What a page of an allowed origin may send: any header, since SDKs add their own."""
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    return {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": wanted if _HEADER_NAMES.fullmatch(wanted) else "authorization, content-type",
        "Access-Control-Max-Age": "600",
    }


def _path_of(target: str) -> str:
    if target.startswith("/") or "://" not in target:
        return target
    return "/" + target.partition("://")[2].partition("/")[2]


def is_local(request: web.BaseRequest) -> bool:
    """Whether the client is on this host."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return not isinstance(peer, tuple) or peer[0] in ("127.0.0.1", "::1") or peer[0].startswith("127.")


def names_in(certificate: Mapping[str, Any]) -> Iterator[str]:
    """The names in a client certificate that TLS has checked, as ssl.SSLSocket.getpeercert() tells it.

    Those of its subjectAltName; where it has none, the common name of its subject (RFC 6125 §6.4.4).
    """
    names = certificate.get("subjectAltName", ())
    yield from (name for _, name in names if isinstance(name, str))
    if not names:
        subject = (pair for part in certificate.get("subject", ()) for pair in part)
        yield from (name for field, name in subject if field == "commonName")


async def read_body(request: web.BaseRequest, reply: HttpReply, limit: int, room: Room) -> bytes:
    """The whole body. Raises GatewayError when it is larger than `limit` or there is `room`, or comes too slowly."""
    declared = request.content_length
    if declared is not None and declared > limit:
        raise _too_large(limit)
    with room.reading(declared or 0) as reading:
        return await _read(request, reply, limit, reading)


async def _read(request: web.BaseRequest, reply: HttpReply, limit: int, reading: Reading) -> bytes:
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    pieces: list[bytes] = []
    size = 0
    until = asyncio.get_running_loop().time() + BODY_TIMEOUT_S
    try:
        async with asyncio.timeout_at(until) as deadline:
            async for piece in request.content.iter_any():
                size += len(piece)
                if size > limit:
                    raise _too_large(limit)
                reading.took(len(piece))
                pieces.append(piece)
                deadline.reschedule(until + size * BODY_S_PER_BYTE)
    except TimeoutError:
        raise GatewayError(
            f"the body came too slowly: {size} bytes in the time allowed (20 s and 1 s for each kB)",
            code="request_timeout",
        ) from None
    except web.RequestPayloadError as exc:
        reply.close_after = True  # where the next request would begin, nobody knows
        raise TaskInvalid("the body's framing is broken: check the lengths of its chunks and their line ends") from exc
    finally:
        reply.body_is_read = request.content.is_eof()
    return b"".join(pieces)


def _too_large(limit: int) -> GatewayError:
    return GatewayError(
        f"the body is larger than {limit} bytes, which is the limit of GATEWAY_MAX_BODY_BYTES or of the API key",
        code="body_too_large",
    )
