"""Writes responses by HTTP, whole or as a stream, with a time limit for clients that do not read.

aiohttp has no time limit for writing. Here a response is written in pieces, and the client must take each piece within
WRITE_TIMEOUT_S. A slow reader gets the whole response. The connection of a stalled reader is reset, so that a truncated
response cannot look complete. If MANY clients stall at once, the limit is CROWDED_S: a single stalled reader may have
paused, many of them are an attack on the memory (slow read).
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
from gateway.plugin import GatewayError

WRITE_TIMEOUT_S = 30.0
CROWDED_S, MANY = 20.0, 32
PIECE_BYTES = 32_768
MAX_UNSENT_BYTES = 131_072  # in the kernel, per connection; the kernel's own limit is megabytes
LAST_ERROR_S = 0.2  # for an error to leave the kernel before the reset, which discards unsent bytes
NEVER_WAITS_BYTES = 32_768  # below asyncio's high-water mark: the transport takes it at once

SERVER = {"Server": "edge-gateway"}  # without versions: they help an attacker choose an exploit
_RESET = struct.pack("ii", 1, 0)


class WriteTimeouts:
    """Write timeouts of all connections; shortens them when many clients stall at once."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Timeout, float] = {}

    @asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Limit the time of the block. Raises TimeoutError."""
        began = asyncio.get_running_loop().time()
        is_crowded = len(self._waiting) >= MANY  # later writes start with the short limit; only the MANYth shortens all
        async with asyncio.timeout_at(began + (CROWDED_S if is_crowded else WRITE_TIMEOUT_S)) as deadline:
            self._waiting[deadline] = began
            try:
                if len(self._waiting) == MANY and not is_crowded:
                    self._shorten()
                yield
            finally:
                del self._waiting[deadline]

    def _shorten(self) -> None:
        for deadline, began in self._waiting.items():
            if not deadline.expired():
                deadline.reschedule(min(began + CROWDED_S, deadline.when() or began))


_write_timeouts = WriteTimeouts()


def limit_unsent(transport: asyncio.BaseTransport) -> None:
    """Bound the unsent bytes in the kernel, and the time for which the client may acknowledge nothing."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_TIMEOUT_S * 1000))


class HttpResponseWriter:
    """Implements `transport.ResponseWriter` for one aiohttp request.

    Raises ConnectionError once the client is gone, or was reset because it did not read.
    """

    def __init__(
        self,
        request: web.BaseRequest,
        headers: Mapping[str, str],
        *,
        close_after: bool,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._request, self._headers, self.close_after, self._is_draining = request, headers, close_after, is_draining
        self.response: web.StreamResponse = web.StreamResponse()
        self.is_body_read = False

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a whole response."""
        all_headers = {**SERVER, **self._headers, **headers}
        is_large = len(body) > PIECE_BYTES and self._request.method != "HEAD"
        if is_large:
            all_headers["Content-Length"] = str(len(body))
            self.response = web.StreamResponse(status=status, headers=all_headers)
        else:
            self.response = web.Response(status=status, body=body, headers=all_headers)
        has_unread_body = status >= 400 and not self.is_body_read and self._request.can_read_body
        if self.close_after or self._is_draining() or has_unread_body:
            self.response.force_close()
        await self._in_time(self.response.prepare(self._request))
        if is_large:
            await self.write(body)
        await self.end()

    async def reject(self, error: GatewayError, request_id: str) -> None:
        """Answer an invalid request and close: the start of the next request is unknown (request smuggling)."""
        self.response = error_response(error, request_id)
        self.response.force_close()
        await self._in_time(self.response.prepare(self._request))
        await self.end()

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head of a stream."""
        self.response = web.StreamResponse(status=status, headers={**SERVER, **self._headers, **headers})
        if self.close_after or self._is_draining():
            self.response.force_close()
        await self._in_time(self.response.prepare(self._request))

    async def write(self, data: bytes) -> None:
        """Send a piece. Waits while the client does not read (backpressure)."""
        transport = self._request.transport
        if transport is not None and transport.get_write_buffer_size() + len(data) < NEVER_WAITS_BYTES:
            await self.response.write(data)
            return
        rest = memoryview(data)
        for at in range(0, len(rest), PIECE_BYTES):
            await self._in_time(self.response.write(rest[at : at + PIECE_BYTES]))
            await self._wait_until_taken()

    async def end(self) -> None:
        """End the response properly."""
        await self._in_time(self.response.write_eof())
        await self._wait_until_taken()

    async def _wait_until_taken(self) -> None:
        """Wait until the transport's buffer is small. aiohttp looks at what one response wrote, not at the buffer."""
        transport = self._request.transport
        if transport is not None and transport.get_write_buffer_size() >= NEVER_WAITS_BYTES:
            await self._in_time(self._request.writer.drain())

    async def abort(self, data: bytes) -> None:
        """Send `data`, then close without the last chunk: the client sees that the stream is incomplete."""
        if data:  # an empty write would be the last chunk
            await self.write(data)
        self.response.force_close()
        if self._request.version == HttpVersion10:  # has no chunks: an orderly close would look complete
            await asyncio.sleep(LAST_ERROR_S)
            self._reset()
        elif self._request.transport is not None:
            self._request.transport.close()

    async def _in_time(self, writing: Awaitable[Any]) -> None:
        try:
            async with _write_timeouts.wait():
                await writing
        except TimeoutError:
            self._reset()
            raise ConnectionResetError("the client does not read") from None

    def _reset(self) -> None:
        transport = self._request.transport
        if transport is None:
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:  # SO_LINGER 0: the kernel discards unsent bytes and sends a reset
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()


def error_bytes(error: GatewayError, request_id: str) -> bytes:
    """An error as a whole response, for a connection without a request, which is closed after it."""
    response = error_response(error, request_id)
    assert isinstance(response.body, bytes)
    headers = {**response.headers, "Content-Length": str(len(response.body)), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {response.status} {response.reason}\r\n{head}\r\n".encode() + response.body


def error_response(error: GatewayError, request_id: str) -> web.Response:
    """An error in our format, for a request that does not reach the handler."""
    return web.Response(
        status=status_of(error),
        body=msgspec.json.encode(envelope(error, request_id)),
        content_type="application/json",
        headers={**SERVER, "x-request-id": request_id, **error_headers(error, 0)},
    )
