#!/usr/bin/env python3
"""tcp_delay_proxy.py - delay, rate, stall and break TCP on loopback.

It needs no root and is one file.

In a test's own event loop:
    async with DelayProxy("127.0.0.1", upstream_port, delay=0.02, rate=10e6) as proxy:
        ... connect to 127.0.0.1:proxy.port ...
        proxy.delay = 0.2                 # one-way seconds; applies to data read from now on
        proxy.stall(); proxy.resume()     # hold all data; connections stay open
        proxy.reset()                     # RST to every client now
        proxy.refuse = True               # new connections get a RST: the cloud is down
        proxy.blackhole = True            # new connections are swallowed: a lost route
    `refuse` and `blackhole` do not touch open connections: call reset() as well.  An HTTP
    client may retry a GET once by itself when a kept-alive connection breaks (aiohttp does).
Command line:
    tcp_delay_proxy.py LISTEN_PORT HOST:PORT --delay 20 --rate 10

asyncio rounds timers up to whole milliseconds, so each direction is 0.3-0.9 ms late.
Not emulated (use netlink_emulator.py for these): the kernel's handshake with the
proxy is local, so connect() takes microseconds and TCP_INFO rtt is the loopback's; there
is no packet loss, no congestion control over the delay, and no UDP or QUIC.
`handshake=True` (the default) delays a new connection's data by one further round trip,
so that a first request costs 2 RTT and a reused connection costs 1 RTT, as over a WAN.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import struct


class DelayProxy:
    def __init__(
        self,
        host: str,
        port: int,
        *,
        delay: float = 0.0,
        rate: float | None = None,
        listen: str = "127.0.0.1",
        listen_port: int = 0,
        handshake: bool = True,
        window: int = 1 << 20,
    ):
        self.host, self.upstream_port = host, port
        self.delay, self.rate, self.handshake = delay, rate, handshake  # s, bit/s
        self.listen, self.port, self.window = listen, listen_port, window
        self.refuse = self.blackhole = False
        self.connections = 0
        self._go = asyncio.Event()
        self._go.set()
        self._free = {"up": 0.0, "down": 0.0}  # the link's transmitters, shared by connections
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self) -> DelayProxy:
        self._server = await asyncio.start_server(self._accept, self.listen, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def stall(self) -> None:
        self._go.clear()

    def resume(self) -> None:
        self._go.set()

    def reset(self) -> None:
        for writer in list(self._writers):
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        up = None
        try:
            if self.refuse:
                self.reset()
                return
            if self.blackhole:
                await asyncio.Event().wait()
            if self.handshake:
                await asyncio.sleep(2 * self.delay)
            up_reader, up = await asyncio.open_connection(self.host, self.upstream_port)
            for w in (up, writer):
                w.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.gather(self._pipe(reader, up, "up"), self._pipe(up_reader, writer, "down"))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            for w in (writer, up):
                if w is not None:
                    w.close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        """Forward one direction: a task reads and stamps, another delivers.

        At most `window` bytes are in flight.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue = asyncio.Queue()
        room, held = asyncio.Event(), 0
        room.set()

        async def deliver() -> None:
            nonlocal held
            while True:
                due, data = await queue.get()
                await asyncio.sleep(due - loop.time())
                await self._go.wait()
                if not data:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
                held -= len(data)
                if held < self.window:
                    room.set()

        task = asyncio.ensure_future(deliver())
        try:
            while True:
                await room.wait()
                data = await reader.read(16384)
                sent = loop.time()
                if self.rate:
                    sent = self._free[way] = max(sent, self._free[way]) + len(data) * 8 / self.rate
                queue.put_nowait((sent + self.delay, data))
                held += len(data)
                if held >= self.window:
                    room.clear()
                if not data:
                    break
            await task
        finally:
            task.cancel()


async def _main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("listen_port", type=int)
    p.add_argument("upstream", metavar="HOST:PORT")
    p.add_argument("--delay", type=float, default=0, help="one-way ms")
    p.add_argument("--rate", type=float, help="Mbit/s per direction")
    a = p.parse_args()
    host, _, port = a.upstream.rpartition(":")
    async with DelayProxy(
        host, int(port), delay=a.delay / 1e3, rate=a.rate and a.rate * 1e6, listen_port=a.listen_port
    ) as proxy:
        print(f"127.0.0.1:{proxy.port} -> {a.upstream}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
