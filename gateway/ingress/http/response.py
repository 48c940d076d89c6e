"""How answers reach a client by HTTP: whole or as a stream, to one who reads slowly, to one who does not read.

aiohttp has no deadline for writing. Here an answer goes out piece by piece, and each piece has WRITE_TIMEOUT_S to be
taken: who reads slowly gets everything, who does not read is let go, with a reset, so that what it has of the answer
cannot pass for the whole. Where MANY do not read at once they have CROWDED_S each: one reader that pauses is a person,
a crowd of them is an attack on our memory.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import HttpVersion10, web

from gateway.api.errors import envelope, error_headers, status_of
from gateway.plugin import GatewayError, new_id

WRITE_TIMEOUT_S = 30.0
CROWDED_S, MANY = 20.0, 32
PIECE_BYTES = 32_768
MAX_UNSENT_BYTES = 131_072  # in the kernel, per connection; its own limit is megabytes
LAST_WORDS_S = 0.2  # for an error to leave the kernel before the reset that throws away what has not
NEVER_WAITS_BYTES = 32_768  # what is less than asyncio's high-water mark is taken at once

SERVER = {"Server": "edge-gateway"}  # not the versions of what we are made of
_RESET = struct.pack("ii", 1, 0)


class WriteTimeouts:
    """How long clients may not read. Knows who is being waited for, so that a crowd is seen."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Timeout, float] = {}

    @asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Bounds what is done inside. Raises TimeoutError."""
        began = asyncio.get_running_loop().time()
        crowded = len(self._waiting) >= MANY  # those who come later begin with less; only the crossing shortens others
        async with asyncio.timeout_at(began + (CROWDED_S if crowded else WRITE_TIMEOUT_S)) as deadline:
            self._waiting[deadline] = began
            try:
                if len(self._waiting) == MANY and not crowded:
                    self._shorten()
                yield
            finally:
                del self._waiting[deadline]

    def _shorten(self) -> None:
        for deadline, began in self._waiting.items():
            if not deadline.expired():
                deadline.reschedule(min(began + CROWDED_S, deadline.when() or began))


_patience = WriteTimeouts()


def bound_unread(transport: asyncio.BaseTransport) -> None:
    """What the kernel holds for a client is little; where nothing of it is taken for so long, the connection goes."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_TIMEOUT_S * 1000))


class HttpResponseWriter:
    """`door.Reply` over one aiohttp request. Raises ConnectionError once the client is gone, or was let go."""

    def __init__(
        self,
        request: web.BaseRequest,
        headers: Mapping[str, str],
        *,
        close_after: bool,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._request, self._headers, self.close_after, self._draining = request, headers, close_after, draining
        self.response: web.StreamResponse = web.StreamResponse()
        self.body_is_read = False

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """A complete answer."""
        everything = {**SERVER, **self._headers, **headers}
        is_large = len(body) > PIECE_BYTES and self._request.method != "HEAD"
        if is_large:
            everything["Content-Length"] = str(len(body))
            self.response = web.StreamResponse(status=status, headers=everything)
        else:
            self.response = web.Response(status=status, body=body, headers=everything)
        unread = status >= 400 and not self.body_is_read and self._request.can_read_body
        if self.close_after or self._draining() or unread:
            self.response.force_close()
        await self._in_time(self.response.prepare(self._request))
        if is_large:
            await self.write(body)
        await self.end()

    async def reject(self, error: GatewayError) -> None:
        """An answer for bytes that are no request; where the next one would begin, nobody knows."""
        self.response = error_response(error, new_id())
        self.response.force_close()
        await self._in_time(self.response.prepare(self._request))
        await self.end()

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of a stream."""
        self.response = web.StreamResponse(status=status, headers={**SERVER, **self._headers, **headers})
        if self.close_after or self._draining():
            self.response.force_close()
        await self._in_time(self.response.prepare(self._request))

    async def write(self, data: bytes) -> None:
        """More of a stream; waits while the client does not read."""
        transport = self._request.transport
        if transport is not None and transport.get_write_buffer_size() + len(data) < NEVER_WAITS_BYTES:
            await self.response.write(data)
            return
        rest = memoryview(data)
        for at in range(0, len(rest), PIECE_BYTES):
            await self._in_time(self.response.write(rest[at : at + PIECE_BYTES]))
            await self._taken()

    async def end(self) -> None:
        """A stream's proper end."""
        await self._in_time(self.response.write_eof())
        await self._taken()

    async def _taken(self) -> None:
        """Wait until the transport holds little; aiohttp waits by what one answer has written, not by what is there."""
        transport = self._request.transport
        if transport is not None and transport.get_write_buffer_size() >= NEVER_WAITS_BYTES:
            await self._in_time(self._request.writer.drain())

    async def abort(self, data: bytes) -> None:
        """Write `data`, then close without the last chunk, so that nobody takes it for complete."""
        if data:  # none would be the last chunk
            await self.write(data)
        self.response.force_close()
        if self._request.version == HttpVersion10:  # has no chunks: to it, an orderly end is a complete answer
            await asyncio.sleep(LAST_WORDS_S)
            self._let_go()
        elif self._request.transport is not None:
            self._request.transport.close()

    async def _in_time(self, writing: Awaitable[Any]) -> None:
        try:
            async with _patience.wait():
                await writing
        except TimeoutError:
            self._let_go()
            raise ConnectionResetError("the client does not read") from None

    def _let_go(self) -> None:
        transport = self._request.transport
        if transport is None:
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:  # what it has not read is gone, for us and for the kernel
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()


def last_words(error: GatewayError) -> bytes:
    """An error as the bytes of a whole answer, for a connection that no request has come on, and that goes."""
    response = error_response(error, new_id())
    assert isinstance(response.body, bytes)
    headers = {**response.headers, "Content-Length": str(len(response.body)), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {response.status} {response.reason}\r\n{head}\r\n".encode() + response.body


def error_response(error: GatewayError, request_id: str) -> web.Response:
    """An error in our envelope, for bytes that no door has seen."""
    return web.Response(
        status=status_of(error),
        body=msgspec.json.encode(envelope(error, request_id)),
        content_type="application/json",
        headers={**SERVER, "x-request-id": request_id, **error_headers(error, 0)},
    )
