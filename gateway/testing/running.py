"""A complete gateway in the test's own process, on free ports, with its log lines."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from gateway.service import Service
from gateway.settings import load
from gateway.telemetry import configure


class Lines(io.RawIOBase):
    """A stream that collects the lines of the log. all: the lines so far, decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[dict[str, Any]] = []
        self._partial = b""
        self._written = asyncio.Event()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Decode the complete lines in `data`."""
        *lines, self._partial = (self._partial + bytes(data)).split(b"\n")
        self.all += [msgspec.json.decode(line) for line in lines if line]
        self._written.set()
        return len(data)

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of `event` so far."""
        return [line for line in self.all if line["event"] == event]

    async def wait(self, event: str, count: int = 1, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """Wait for `count` lines of `event` and return its lines so far. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while len(self.of(event)) < count:
                self._written.clear()
                await self._written.wait()
        return self.of(event)


class RunningGateway:
    """A gateway that serves on loopback.

    url, admin_url: its base URLs, without a trailing slash. service: the gateway itself. lines: its log.
    """

    def __init__(self, service: Service, lines: Lines) -> None:
        self.service, self.lines = service, lines
        self.url, self.admin_url = f"http://{service.bound[0]}", f"http://{service.admin_bound[0]}"

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """Return a client session with these options; close it, or use it as a context manager."""
        return aiohttp.ClientSession(**options)

    async def line(self, event: str = "request.finished", **keys: object) -> dict[str, Any]:
        """Wait for a line of `event` with these keys and return the newest. Raises TimeoutError after 10 s."""
        async with asyncio.timeout(10):
            while True:
                for line in self.lines.of(event)[::-1]:
                    if all(line.get(key) == value for key, value in keys.items()):
                        return line
                count = len(self.lines.of(event)) + 1
                await self.lines.wait(event, count)


@asynccontextmanager
async def running_gateway(
    *, adjust: Callable[[Service], None] = lambda service: None, **environ: str
) -> AsyncIterator[RunningGateway]:
    """Run a complete gateway in this process, on free loopback ports.

    environ: its environment variables, as an operator sets them. adjust: called with the service before it starts.
    """
    with tempfile.TemporaryDirectory(prefix="edge-gateway-") as state:
        lines = Lines()
        defaults = {
            "GATEWAY_LISTEN": "127.0.0.1:0",
            "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0",
            "GATEWAY_STATE_DIR": state,
        }
        loaded = load(defaults | environ)
        configure("json", "debug", lines)  # type: ignore[arg-type]
        service = Service(loaded.settings, loaded.backends, loaded.keys)
        adjust(service)
        await service.start()
        try:
            yield RunningGateway(service, lines)
        finally:
            await service.stop()
