"""An emulated link: a TCP proxy on loopback with a delay, a rate, stalls and outages that can change while it runs.

Theory of operation: each chunk read from one end gets an arrival time, which is the time when the transmitter (shared
by all connections) has sent it, plus the delay. The chunk is delivered at that time, in order. A new connection waits
one further round trip, as for TCP's handshake, because the handshake with the proxy takes no time.

Not emulated: packet loss, the kernel's own estimates (TCP_INFO sees loopback), and delays finer than the event loop's
whole milliseconds. tests/support/netlink_emulator.py emulates all of these, as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 16 * 1024
_MAX_IN_FLIGHT_BYTES = 1 << 20  # per connection and direction; then reading from the sender pauses
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends a RST


@dataclass(slots=True)
class Direction:
    """One direction of the link. `delay_s` is one-way; `bytes_per_s` None is unlimited."""

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    _free_at: float = 0.0

    def arrival(self, now: float, size: int) -> float:
        """The arrival time of `size` bytes that are sent at `now`."""
        if self.bytes_per_s:
            now = self._free_at = max(now, self._free_at) + size / self.bytes_per_s
        return now + self.delay_s


class EmulatedLink:
    """Connects `127.0.0.1:port`, after entry, with `host:upstream_port`. `up` and `down` can change at any time."""

    def __init__(self, host: str, upstream_port: int) -> None:
        self.up, self.down = Direction(), Direction()
        self.is_down = False
        self.connections = 0
        self._upstream = (host, upstream_port)
        self._may_deliver = asyncio.Event()
        self._may_deliver.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._reserved = _bound(0)  # holds the port while the link is down
        self.port: int = self._reserved.getsockname()[1]
        await self._listen()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.take_down()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._reserved.close()

    def set_rtt(self, rtt_s: float) -> None:
        """Set half of `rtt_s` as delay of each direction, from the next chunk on."""
        self.up.delay_s = self.down.delay_s = rtt_s / 2

    def set_rate(self, bytes_per_s: float | None) -> None:
        """Set the rate of each direction; None is unlimited."""
        self.up.bytes_per_s = self.down.bytes_per_s = bytes_per_s

    def take_down(self) -> None:
        """Reset every connection and refuse new ones."""
        self.is_down = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            _reset(writer)

    async def bring_up(self) -> None:
        """Accept connections again."""
        if self.is_down:
            self.is_down = False
            await self._listen()

    @property
    def is_stalled(self) -> bool:
        return not self._may_deliver.is_set()

    def stall(self) -> None:
        """Stop all delivery; connections stay open, and neither end is notified."""
        self._may_deliver.clear()

    def resume(self) -> None:
        """Deliver the delayed data, and continue."""
        self._may_deliver.set()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=_bound(self.port))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            # A connection that breaks, or is cut at the end of the demo, is expected and not reported.
            with contextlib.suppress(OSError, asyncio.CancelledError, BaseExceptionGroup):
                await self._forward_both(reader, writer)
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _forward_both(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.up.delay_s + self.down.delay_s)
        far_reader, far_writer = await asyncio.open_connection(*self._upstream)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, far_writer, self.up))
                group.create_task(self._forward(far_reader, writer, self.down))
        finally:
            far_writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
        """Forward one direction of one connection until the sender closes it."""
        clock = asyncio.get_running_loop().time
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_IN_FLIGHT_BYTES // _CHUNK_BYTES)
        delivery = asyncio.create_task(self._deliver(chunks, writer))
        try:
            while data := await reader.read(_CHUNK_BYTES):
                await chunks.put((direction.arrival(clock(), len(data)), data))
            await chunks.put((direction.arrival(clock(), 0), b""))
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(self, chunks: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await chunks.get()
            await asyncio.sleep(due - clock())
            await self._may_deliver.wait()
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()


def _bound(port: int) -> socket.socket:
    """A socket bound to a loopback port; several may be bound to the port while one of them listens."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
