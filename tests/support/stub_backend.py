"""A backend with a task for every way to end, and a model.

The model answers or streams.

It runs in the gateway's event loop, so a test can hold its work and release it. Task `wait` waits for the event
`StubBackend.open`. While it waits, `StubBackend.waiting` is set, and `StubBackend.callers[NAME]` for a request with the
member `"who": NAME`. Afterwards `StubBackend.left` is set. With `{"then": "down"}` the task fails after the wait.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Self

from pydantic import Field

from gateway.plugin import (
    Backend,
    BackendFailed,
    BackendSettings,
    BackendUnavailable,
    Part,
    Result,
    Task,
    TaskInvalid,
    TaskRefused,
)


class StubSettings(BackendSettings):
    refuses_to_open: bool = Field(False, description="raise while starting")


class StubBackend(Backend[StubSettings]):
    tasks = (
        "say",
        "count",
        "boom",
        "wait",
        "breaks",
        "refuse",
        "invalid",
        "fail",
        "down",
        "squares",
        "meet",
        "shapeless",
        "pause",
    )
    models = ("clerk",)
    kinds = frozenset({"chat", "completion", "transcription"})
    slots = 64
    open: ClassVar[asyncio.Event]
    waiting: ClassVar[asyncio.Event]
    left: ClassVar[asyncio.Event]
    callers: ClassVar[defaultdict[Any, asyncio.Event]]

    async def __aenter__(self) -> Self:
        if self.settings.refuses_to_open:
            raise BackendUnavailable("the desk is locked; set REFUSES_TO_OPEN=false")
        StubBackend.open, StubBackend.waiting, StubBackend.left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        StubBackend.callers = defaultdict(asyncio.Event)
        return self

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        name = "chat" if task.kind in ("chat", "completion") else task.name
        async for item in getattr(self, f"_{name}")(task):
            yield item

    async def _chat(self, task: Task) -> AsyncIterator[Part | Result]:
        for word in ("to ", "be ", "or ", "not"):
            yield Part(word)
        yield Part({"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}})

    async def _say(self, task: Task) -> AsyncIterator[Result]:
        yield Result(json={"result": task.json})

    async def _squares(self, task: Task) -> AsyncIterator[Result]:
        yield Result(json={"result": [item * item for item in task.json["items"]]})

    async def _meet(self, task: Task) -> AsyncIterator[Result]:
        """Return squares after `open` is set."""
        StubBackend.waiting.set()
        await StubBackend.open.wait()
        async for result in self._squares(task):
            yield result

    async def _count(self, task: Task) -> AsyncIterator[Part]:
        for n in range(3):
            yield Part(n)

    async def _pause(self, task: Task) -> AsyncIterator[Part]:
        yield Part(1)
        await StubBackend.open.wait()
        yield Part(2)

    async def _wait(self, task: Task) -> AsyncIterator[Result]:
        StubBackend.waiting.set()
        StubBackend.callers[task.json.get("who")].set()
        try:
            await StubBackend.open.wait()
        finally:
            StubBackend.left.set()
        if task.json.get("then") == "down":
            raise BackendUnavailable("the desk has closed meanwhile")
        yield Result(json={"result": "waited"})

    async def _breaks(self, task: Task) -> AsyncIterator[Part]:
        yield Part(0)
        raise BackendFailed("the desk broke in the middle")

    async def _gone(self, task: Task) -> AsyncIterator[Part]:
        yield Part(0)
        raise BackendUnavailable("the desk became unavailable in the middle")

    async def _boom(self, task: Task) -> AsyncIterator[Any]:
        raise RuntimeError("a secret of the plugin")
        yield

    async def _refuse(self, task: Task) -> AsyncIterator[Any]:
        raise TaskRefused("the desk is busy", retry_after_s=2.5)
        yield

    async def _invalid(self, task: Task) -> AsyncIterator[Any]:
        raise TaskInvalid("unknown argument `colour`", param="colour")
        yield

    async def _fail(self, task: Task) -> AsyncIterator[Any]:
        raise BackendFailed("the desk cannot do this")
        yield

    async def _down(self, task: Task) -> AsyncIterator[Any]:
        raise BackendUnavailable("the desk is closed for today")
        yield

    async def _shapeless(self, task: Task) -> AsyncIterator[Any]:
        yield {"neither": "Result nor Part"}
