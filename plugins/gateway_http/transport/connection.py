"""The connection itself: when its bytes moved, whether it was used before, and what the kernel says of it.

aiohttp's own account begins and ends at its API. Terms of the contract begin and end at the socket, so
its protocol, response and payload classes are taught here to write down the instants. This is the one
file that leans on aiohttp's insides (`TCPConnector._factory`); tests/plugins/gateway_http/transport/test_connection.py
fails when a release moves them.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import termios
import time
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError

from gateway.plugin import Terms

READ_BYTES = 32768  # at once; the parsing of one read is a stall of the event loop
WRITE_BYTES = 65536
ACKED_ABOVE_BYTES = 65536  # contract §4: above this an upload ends when the kernel has it acknowledged
MAX_INTERIM_ANSWERS = 32  # 1xx; more is a flood
POLL_S = 0.002
TCP_INFO_RTT_OFFSET = 68  # linux/tcp.h: struct tcp_info, tcpi_rtt in microseconds


class UpstreamConnection(ResponseHandler):
    """One connection. `first_byte_at` is of the answer being waited for, interim answers apart."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.requests = 0
        self.asked_at = 0.0
        self.received = 0  # bytes of this answer, head and framing too
        self.first_byte_at: float | None = None
        self._busy = False
        self._reads = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take smaller reads than asyncio's 256 KiB, where the transport has that knob."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES

    def set_response_params(self, **params: Any) -> None:
        """Begin another request."""
        self.requests += 1
        self.asked_at = time.monotonic()
        self.received = 0
        self.first_byte_at = None
        self._busy = True
        self._reads = 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Stamp the first byte. Bytes nobody asked for end the connection: they would answer the next request."""
        if not self._busy:
            if data:
                self.abort()
            return
        if self.first_byte_at is None and data:
            self.first_byte_at = time.monotonic()
        self.received += len(data)
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """A reset is no end, not even of a body that ends where its connection does."""
        if exc is not None and self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientPayloadError(f"the connection was lost: {exc}"))
        super().connection_lost(exc)

    def is_connected(self) -> bool:
        """Asked of an idle connection before it is used again: closed, or something to read, is no."""
        return super().is_connected() and (self._busy or not self._has_input())

    def _has_input(self) -> bool:
        sock = _socket(self.transport)
        if sock is None:
            return True
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def read(self) -> Any:
        """The next head of an answer; called again after each interim one."""
        self._reads += 1
        if self._reads > MAX_INTERIM_ANSWERS:
            raise HttpProcessingError(code=400, message="too many interim answers")
        if self._reads > 1:
            self.first_byte_at = None
        return await super().read()

    def finish(self, request: int) -> None:
        """The answer to that request (counted from 1) is whole; a later one may have begun already."""
        if request == self.requests:
            self._busy = False

    def tcp_rtt_s(self) -> float | None:
        """The kernel's smoothed round-trip time, or None."""
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
        """The IP address at the other end, or None."""
        sock = _socket(self.transport)
        try:
            return None if sock is None else str(sock.getpeername()[0])
        except OSError:
            return None

    def has_unacked(self) -> bool:
        """Whether bytes written are not yet acknowledged by the other side's kernel."""
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
    """An answer that knows its wire, also when it arrived whole and gave the connection back."""

    wire: UpstreamConnection

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Wait for the head."""
        protocol = connection.protocol
        assert isinstance(protocol, UpstreamConnection)
        self.wire = protocol
        return await super().start(connection)


class Connector(aiohttp.TCPConnector):
    """A pool whose connections are `UpstreamConnection`s."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        loop = asyncio.get_running_loop()
        self._factory: Any = lambda: UpstreamConnection(loop)


class StampedBody(aiohttp.Payload):
    """A request body that charges `upload` while it is written, and `cloud` from its last byte on."""

    def __init__(self, data: bytes, content_type: str, terms: Terms) -> None:
        super().__init__(data, content_type=content_type)
        self._size = len(data)
        self._terms = terms
        self._transport: asyncio.Transport | None = None
        self.wire: UpstreamConnection | None = None
        self.began_at: float | None = None
        self.ended_at: float | None = None
        self.is_written = False  # all of it has left our hands
        self.over = False  # the answer has begun: the account is no longer ours

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text."""
        return str(self._value, encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send it all."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Send it all, piece by piece so that no copy of it waits in the transport."""
        wire = self._begin(writer)
        view = memoryview(self._value)
        for offset in range(0, len(view), WRITE_BYTES):
            await writer.write(view[offset : offset + WRITE_BYTES])
        if len(view) > ACKED_ABOVE_BYTES:
            await writer.drain()
            self.is_written = True
            while wire.first_byte_at is None and wire.has_unacked():  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(POLL_S)
        self._end()

    def _begin(self, writer: Any) -> UpstreamConnection:
        wire = writer.protocol
        assert isinstance(wire, UpstreamConnection)
        self.wire, self._transport = wire, writer.transport
        self.began_at = time.monotonic()
        if not self.over:
            self._terms.enter("upload", at=self.began_at)
        return wire

    def _end(self) -> None:
        self.ended_at = time.monotonic()
        if not self.over:
            self._terms.enter("cloud", at=self.ended_at)
            self._terms.uploaded()

    def answered(self, first_byte_at: float) -> float:
        """The answer has begun, and the account is no longer ours; return when the upload was over, for it."""
        self.over = True
        if self.ended_at is None and self.is_written:
            self.ended_at = first_byte_at  # within one poll
        return first_byte_at if self.ended_at is None else min(self.ended_at, first_byte_at)

    def abort(self) -> None:
        """Drop the connection now, unsent bytes included."""
        self.over = True
        if self._transport is not None:
            self._transport.abort()
