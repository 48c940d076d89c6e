"""A backend that remembers what it ran, and can be held up; in the gateway's own loop."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Self

from gateway.plugin import Backend, BackendFailed, BackendSettings, Part, Result, Task

TALLY = {"GATEWAY_BACKENDS__T__PLUGIN": "support.mqtt_backend:Tally"}


class Tally(Backend[BackendSettings]):
    """Task `tally` counts its runs by `id`; `hold` waits until `Tally.open`; the others are for streams."""

    tasks = ("tally", "hold", "dawdle", "parts", "breaks", "huge")
    slots = 256
    runs: ClassVar[Counter[Any]]
    open: ClassVar[asyncio.Event]
    held: ClassVar[asyncio.Event]
    active: ClassVar[int] = 0
    most_active: ClassVar[int] = 0

    async def __aenter__(self) -> Self:
        Tally.active = Tally.most_active = 0
        Tally.runs, Tally.open, Tally.held = Counter(), asyncio.Event(), asyncio.Event()
        return self

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        async for item in getattr(self, f"_{task.name}")(task.json):
            yield item

    async def _tally(self, asked: Any) -> AsyncIterator[Result]:
        Tally.runs[asked["id"]] += 1
        yield Result(json={"result": Tally.runs[asked["id"]]})

    async def _dawdle(self, asked: Any) -> AsyncIterator[Result]:
        Tally.runs[asked["id"]] += 1
        Tally.active += 1
        Tally.most_active = max(Tally.most_active, Tally.active)
        await asyncio.sleep(random.uniform(0.0, 0.03))  # work, not synchronisation: answers get out of order
        Tally.active -= 1
        yield Result(json={"result": asked["id"]})

    async def _hold(self, asked: Any) -> AsyncIterator[Result]:
        Tally.runs[asked["id"]] += 1
        Tally.held.set()
        await Tally.open.wait()
        yield Result(json={"result": "held"})

    async def _parts(self, asked: Any) -> AsyncIterator[Part]:
        for n in range(asked["n"]):
            yield Part(n)
            await asyncio.sleep(0)

    async def _breaks(self, asked: Any) -> AsyncIterator[Part]:
        yield Part(0)
        raise BackendFailed("it broke in the middle")

    async def _huge(self, asked: Any) -> AsyncIterator[Result]:
        yield Result(json={"result": "x" * asked["bytes"]})
