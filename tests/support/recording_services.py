"""`Services` for a backend under test: they record logs and samples.

They cannot dispatch.
"""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.plugin import BackendFailed, LinkSample, Result, Task


class RecordingLog:
    """A log that records events as `(event, keys)`; a test can wait for an event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._more = asyncio.Event()

    def debug(self, event: str, **keys: Any) -> None:
        self.events.append((event, keys))
        self._more.set()

    info = warning = error = debug

    def of(self, event: str) -> list[dict[str, Any]]:
        return [keys for name, keys in self.events if name == event]

    async def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        async with asyncio.timeout(10):
            while len(found := self.of(event)) < count:
                self._more.clear()
                await self._more.wait()
        return found


class RecordingServices:
    """Services of a backend named `name`."""

    def __init__(self, name: str = "here") -> None:
        self.name = name
        self.log = RecordingLog()
        self.samples: list[LinkSample] = []

    async def dispatch(self, task: Task) -> Result:
        raise BackendFailed("no backend to dispatch to in this test")

    def observe(self, sample: LinkSample) -> None:
        self.samples.append(sample)
