"""A worker's standard output and error as lines of bounded length, and the rate at which they are logged."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

MAX_LINE_CHARS = 500
MAX_UTF8_BYTES = 4  # of one character
_LINE_END = re.compile(rb"[\r\n]")  # progress bars end their lines in \r only


class LineReader(asyncio.Protocol):
    """Reads a pipe and calls `on_line` with each line that is not empty, truncated to MAX_LINE_CHARS."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._line = bytearray()
        self._closed = asyncio.Event()
        self._transport: asyncio.ReadTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.ReadTransport, transport)

    def data_received(self, data: bytes) -> None:
        first, *more = _LINE_END.split(data)
        self._append(first)
        for piece in more:
            self._flush()
            self._append(piece)

    def _append(self, piece: bytes) -> None:
        self._line += piece[: MAX_LINE_CHARS * MAX_UTF8_BYTES - len(self._line)]

    def _flush(self) -> None:
        line = self._line.decode(errors="replace").rstrip()
        self._line.clear()
        if line:
            self._on_line(line[:MAX_LINE_CHARS])

    def connection_lost(self, exc: Exception | None) -> None:
        self._flush()
        self._closed.set()

    async def finish(self, within_s: float) -> None:
        """Read the rest of the output for at most `within_s` seconds, then close the pipe."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._closed.wait()
        self.close()
        await self._closed.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class TokenBucket:
    """A rate limit: `burst` at once, `per_s` per second on average.

    `telemetry` has a limiter too, but importing it would load all of telemetry into each worker process.
    """

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._tokens, self._updated_at = float(burst), time.monotonic()

    def try_take(self) -> bool:
        """Take a token. Returns False if the bucket is empty."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._updated_at) * self._per_s)
        self._updated_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
