"""A backend that counts its runs and can be held.

It runs in the gateway's event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Self

from gateway.plugin import Backend, BackendFailed, BackendSettings, Part, Result, Task

COUNTING_BACKEND = {"GATEWAY_BACKENDS__T__PLUGIN": "support.mqtt_backend:CountingBackend"}


class CountingBackend(Backend[BackendSettings]):
    """Task `tally` counts its runs by `id`.

    `hold` waits until `CountingBackend.open`; the others are for streams.
    """

    tasks = ("tally", "hold", "dawdle", "parts", "breaks", "huge")
    slots = 256
    runs: ClassVar[Counter[Any]]
    open: ClassVar[asyncio.Event]
    held: ClassVar[asyncio.Event]
    active: ClassVar[int] = 0
    most_active: ClassVar[int] = 0

    async def __aenter__(self) -> Self:
        CountingBackend.active = CountingBackend.most_active = 0
        CountingBackend.runs, CountingBackend.open, CountingBackend.held = Counter(), asyncio.Event(), asyncio.Event()
        return self

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        async for item in getattr(self, f"_{task.name}")(task.json):
            yield item

    async def _tally(self, body: Any) -> AsyncIterator[Result]:
        CountingBackend.runs[body["id"]] += 1
        yield Result(json={"result": CountingBackend.runs[body["id"]]})

    async def _dawdle(self, body: Any) -> AsyncIterator[Result]:
        CountingBackend.runs[body["id"]] += 1
        CountingBackend.active += 1
        CountingBackend.most_active = max(CountingBackend.most_active, CountingBackend.active)
        await asyncio.sleep(random.uniform(0.0, 0.03))  # work, not synchronisation: reorders the answers
        CountingBackend.active -= 1
        yield Result(json={"result": body["id"]})

    async def _hold(self, body: Any) -> AsyncIterator[Result]:
        CountingBackend.runs[body["id"]] += 1
        CountingBackend.held.set()
        await CountingBackend.open.wait()
        yield Result(json={"result": "held"})

    async def _parts(self, body: Any) -> AsyncIterator[Part]:
        for n in range(body["n"]):
            yield Part(n)
            await asyncio.sleep(0)

    async def _breaks(self, body: Any) -> AsyncIterator[Part]:
        yield Part(0)
        raise BackendFailed("it broke in the middle")

    async def _huge(self, body: Any) -> AsyncIterator[Result]:
        yield Result(json={"result": "x" * body["bytes"]})
