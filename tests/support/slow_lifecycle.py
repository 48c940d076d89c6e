"""A backend with a start and a stop that last until the test releases them."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import ClassVar, Self

from gateway.plugin import Backend, BackendSettings, Result, Task


class Settings(BackendSettings):
    opens_at_once: bool = False
    closes_at_once: bool = True


class SlowLifecycle(Backend[Settings]):
    tasks = ("late",)
    opening: ClassVar[asyncio.Event]
    may_open: ClassVar[asyncio.Event]
    closed: ClassVar[asyncio.Event]

    async def __aenter__(self) -> Self:
        SlowLifecycle.opening, SlowLifecycle.may_open, SlowLifecycle.closed = (
            asyncio.Event(),
            asyncio.Event(),
            asyncio.Event(),
        )
        SlowLifecycle.opening.set()
        if not self.settings.opens_at_once:
            await SlowLifecycle.may_open.wait()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        while not self.settings.closes_at_once:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue
        SlowLifecycle.closed.set()

    async def run(self, task: Task) -> Result:
        return Result(json={"result": os.getpid()})
