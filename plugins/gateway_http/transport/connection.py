"""The connection: when its bytes move, its reuse, and the kernel's figures.

aiohttp measures from call to call of its API. The terms of the contract begin and end at the socket, so the classes
here extend aiohttp's protocol, response and payload to record those instants. This is the only file that depends on
private parts of aiohttp (`TCPConnector._factory`); tests/plugins/gateway_http/transport/test_connection.py fails when a
release changes them.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import termios
import time
import weakref
from collections.abc import Iterable
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError

from gateway.plugin import Terms

from .resolver import CachingResolver

READ_BYTES = 32768  # per read; the event loop stalls while aiohttp parses one
WRITE_BYTES = 65536
ACKED_ABOVE_BYTES = 65536  # contract §4: a larger upload ends when the kernel has it acknowledged
MAX_INTERIM_RESPONSES = 32  # 1xx; more of them are a flood
POLL_S = 0.002
TCP_INFO_RTT_OFFSET = 68  # linux/tcp.h: struct tcp_info, tcpi_rtt in microseconds


class UpstreamConnection(ResponseHandler):
    """One connection to the upstream, used for one request after the other.

    requests: how many it has carried. began_at, received_bytes: start of the current request, and bytes of its
    response including head and framing. first_byte_at: of the final response; interim responses do not count.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.requests = 0
        self.began_at = 0.0
        self.received_bytes = 0
        self.first_byte_at: float | None = None
        self._is_busy = False
        self._heads = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Read less at once than asyncio's 256 KiB, if the transport allows that."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES

    def set_response_params(self, **params: Any) -> None:
        """Begin another request."""
        self.requests += 1
        self.began_at = time.monotonic()
        self.received_bytes = 0
        self.first_byte_at = None
        self._is_busy = True
        self._heads = 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Record the time of the first byte.

        Bytes that arrive between requests end the connection: response splitting would make them the response to the
        next request.
        """
        if not self._is_busy:
            if data:
                self.abort()
            return
        if self.first_byte_at is None and data:
            self.first_byte_at = time.monotonic()
        self.received_bytes += len(data)
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Treat a reset as a failure, even of a body that ends where its connection ends."""
        if exc is not None and self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientPayloadError(f"the connection was lost: {exc}"))
        super().connection_lost(exc)

    def is_connected(self) -> bool:
        """Return whether the pool may reuse the connection.

        It must be open and, while idle, without unread input.
        """
        return super().is_connected() and (self._is_busy or not self._has_input())

    def _has_input(self) -> bool:
        sock = _socket(self.transport)
        if sock is None:
            return True
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def read(self) -> Any:
        """Return the next response head.

        aiohttp calls it again after each interim response.
        """
        self._heads += 1
        if self._heads > MAX_INTERIM_RESPONSES:
            raise HttpProcessingError(code=400, message=f"more than {MAX_INTERIM_RESPONSES} interim (1xx) responses")
        if self._heads > 1:
            self.first_byte_at = None
        return await super().read()

    def finish_response(self, request: int) -> None:
        """Mark the response to that request (counted from 1) as complete.

        A later request may have begun already.
        """
        if request == self.requests:
            self._is_busy = False

    @property
    def is_idle(self) -> bool:
        """Whether it waits in the pool for its next request."""
        return self.requests > 0 and not self._is_busy

    def tcp_rtt_s(self) -> float | None:
        """Return the kernel's smoothed round-trip time in seconds, or None."""
        sock = _socket(self.transport)
        if sock is None:
            return None
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            (rtt_us,) = struct.unpack_from("=I", info, TCP_INFO_RTT_OFFSET)
        except (OSError, struct.error):
            return None
        return rtt_us / 1e6 or None

    def peer(self) -> str | None:
        """Return the IP address at the other end, or None."""
        sock = _socket(self.transport)
        try:
            return None if sock is None else str(sock.getpeername()[0])
        except OSError:
            return None

    def has_unacked(self) -> bool:
        """Return whether the other side has yet to acknowledge bytes written here."""
        transport = self.transport
        sock = _socket(transport)
        if transport is None or sock is None:
            return False
        if transport.get_write_buffer_size():
            return True
        try:
            queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        except OSError:
            return False
        return any(queued)


def _socket(transport: asyncio.BaseTransport | None) -> Any:
    return transport.get_extra_info("socket") if transport is not None else None


class Response(aiohttp.ClientResponse):
    """A response that keeps its `UpstreamConnection`.

    aiohttp forgets the connection when it returns that to the pool.
    """

    upstream_connection: UpstreamConnection

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Wait for the head."""
        protocol = connection.protocol
        assert isinstance(protocol, UpstreamConnection)
        self.upstream_connection = protocol
        return await super().start(connection)

    def printable_headers(self, names: Iterable[str]) -> dict[str, str]:
        """Return the named headers that can be sent on.

        Drops values with control characters, which could inject headers into the gateway's own response.
        """
        found = {name: self.headers.get(name) for name in names}
        return {name: value for name, value in found.items() if value is not None and value.isprintable()}


class Connector(aiohttp.TCPConnector):
    """A pool of `UpstreamConnection`s."""

    def __init__(self, *, resolver: CachingResolver, **options: Any) -> None:
        super().__init__(resolver=resolver, **options)
        self._addresses = resolver
        self._loop_of_connections = asyncio.get_running_loop()
        self._made: weakref.WeakSet[UpstreamConnection] = weakref.WeakSet()
        self._factory: Any = self._make

    def _make(self) -> UpstreamConnection:
        connection = UpstreamConnection(self._loop_of_connections)
        self._made.add(connection)
        return connection

    def forget_path(self) -> None:
        """Close the connections that wait in the pool, and look the name up again before the next is made.

        Call it when the upstream is silent: a connection may have been forgotten by a NAT, or belong to an address that
        the name no longer has, and then swallows the next request.
        """
        self._addresses.expire()
        for connection in tuple(self._made):
            if connection.is_idle:
                connection.abort()


class StampedBody(aiohttp.Payload):
    """A request body that charges `upload` while it is written.

    From its last byte on it charges `cloud`.
    """

    def __init__(self, data: bytes, content_type: str, terms: Terms) -> None:
        super().__init__(data, content_type=content_type)
        self._size = len(data)
        self._terms = terms
        self._transport: asyncio.Transport | None = None
        self.connection: UpstreamConnection | None = None
        self.began_at: float | None = None
        self.ended_at: float | None = None
        self.is_written = False  # the transport has passed all of it to the kernel
        self.over = False  # the response has begun, or the request was aborted: the terms belong to the exchange

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text."""
        return str(self._value, encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send it all."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Send all of it in pieces: the transport never holds a copy of the whole body."""
        connection = self._begin(writer)
        view = memoryview(self._value)
        for offset in range(0, len(view), WRITE_BYTES):
            await writer.write(view[offset : offset + WRITE_BYTES])
        if len(view) > ACKED_ABOVE_BYTES:
            await writer.drain()
            self.is_written = True
            while connection.first_byte_at is None and connection.has_unacked():  # noqa: ASYNC110 - no kernel event
                await asyncio.sleep(POLL_S)
        self._end()

    def _begin(self, writer: Any) -> UpstreamConnection:
        connection = writer.protocol
        assert isinstance(connection, UpstreamConnection)
        self.connection, self._transport = connection, writer.transport
        self.began_at = time.monotonic()
        if not self.over:
            self._terms.enter("upload", at=self.began_at)
        return connection

    def _end(self) -> None:
        self.ended_at = time.monotonic()
        if not self.over:
            self._terms.enter("cloud", at=self.ended_at)
            self._terms.uploaded()

    def on_response(self, first_byte_at: float) -> float:
        """Stop charging the terms, and return when the upload ended.

        It ended at the response's first byte at the latest.
        """
        self.over = True
        if self.ended_at is None and self.is_written:
            self.ended_at = first_byte_at  # accurate to one POLL_S
        return first_byte_at if self.ended_at is None else min(self.ended_at, first_byte_at)

    def abort(self) -> None:
        """Drop the connection now, with the bytes that are still unsent."""
        self.over = True
        if self._transport is not None:
            self._transport.abort()
