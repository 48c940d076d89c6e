"""A whole gateway in the test's own process, on free ports, and its log lines."""

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
    """Collects log lines as they are written, and wakes who waits for one."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[dict[str, Any]] = []
        self._rest = b""
        self._news = asyncio.Event()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Take bytes; whole lines become dictionaries."""
        *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
        self.all += [msgspec.json.decode(line) for line in lines if line]
        self._news.set()
        return len(data)

    def of(self, event: str) -> list[dict[str, Any]]:
        """The lines of one event so far."""
        return [line for line in self.all if line["event"] == event]

    async def wait(self, event: str, count: int = 1, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """At least `count` lines of `event`, waiting for them. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while len(self.of(event)) < count:
                self._news.clear()
                await self._news.wait()
        return self.of(event)


class RunningGateway:
    """A gateway that serves on loopback; `url` and `admin_url` have no trailing slash."""

    def __init__(self, service: Service, lines: Lines) -> None:
        self.service, self.lines = service, lines
        self.url, self.admin_url = f"http://{service.bound[0]}", f"http://{service.admin_bound[0]}"

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """A client session; close it, or use it as a context manager."""
        return aiohttp.ClientSession(**options)

    async def line(self, event: str = "request.finished", **wanted: object) -> dict[str, Any]:
        """The newest line of `event`, once there is one with these keys. Raises TimeoutError."""
        async with asyncio.timeout(10):
            while True:
                for line in self.lines.of(event)[::-1]:
                    if all(line.get(key) == value for key, value in wanted.items()):
                        return line
                count = len(self.lines.of(event)) + 1
                await self.lines.wait(event, count)


@asynccontextmanager
async def running_gateway(
    *, adjust: Callable[[Service], None] = lambda service: None, **environ: str
) -> AsyncIterator[RunningGateway]:
    """A whole gateway in this process, on free loopback ports, configured by variables as an operator would."""
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
