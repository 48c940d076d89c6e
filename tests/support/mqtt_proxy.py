"""A proxy to the broker that can be cut or stalled, and that records packet ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PUBLISH, PUBACK = 3, 4


class Sniffer:
    """Finds the packet ids of one packet type in a stream of MQTT packets.

    It supports PUBLISH with QoS 1 only.
    """

    def __init__(self, kind: int) -> None:
        self.kind, self.ids = kind, list[int]()
        self._rest = b""

    def feed(self, data: bytes) -> None:
        self._rest += data
        while (packet := self._packet()) is not None:
            head, body = packet
            if head >> 4 == self.kind == PUBACK:
                self.ids.append(int.from_bytes(body[:2], "big"))
            elif head >> 4 == self.kind == PUBLISH and head & 0b110:
                at = 2 + int.from_bytes(body[:2], "big")
                self.ids.append(int.from_bytes(body[at : at + 2], "big"))

    def _packet(self) -> tuple[int, bytes] | None:
        length = shift = 0
        for at, byte in enumerate(self._rest[1:5], start=2):
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                if len(self._rest) < at + length:
                    return None
                head, body, self._rest = self._rest[0], self._rest[at : at + length], self._rest[at + length :]
                return head, body
        return None


class Proxy:
    """Forwards `port` to the broker.

    handed: ids of the broker's messages. acknowledged: ids of the client's PUBACKs.
    """

    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._writers: set[asyncio.StreamWriter] = set()
        self.flows = asyncio.Event()
        self.flows.set()
        self.connections = 0
        self.port = 0
        self.handed, self.acknowledged = Sniffer(PUBLISH), Sniffer(PUBACK)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, onward = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        self._writers |= {writer, onward}
        self.handed, self.acknowledged = Sniffer(PUBLISH), Sniffer(PUBACK)
        await asyncio.gather(
            self._pass_on(reader, onward, self.acknowledged), self._pass_on(there, writer, self.handed)
        )
        self._writers -= {writer, onward}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sniffer: Sniffer) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                await self.flows.wait()
                sniffer.feed(data)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def cut(self) -> None:
        """Abort every connection, as a router restart does."""
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def proxy_to(broker_port: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(broker_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        proxy.flows.set()
        proxy.cut()
        server.close()
