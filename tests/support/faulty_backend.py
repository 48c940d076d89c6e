"""A backend that blocks the loop, ignores cancellation and raises."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, Self

from gateway.plugin import Backend, BackendSettings, Result, Task, TaskRefused, View


class Panic(BaseException):
    """An exception outside the Exception tree, as some extension modules raise."""


class FaultyBackend(Backend[BackendSettings]):
    tasks = ("block", "cancels", "exit", "hang", "hang_on", "ignore", "interrupt", "panic", "raise", "refuse", "serve")
    slots = 2
    may_end: ClassVar[asyncio.Event]
    ignoring: ClassVar[asyncio.Event]

    async def __aenter__(self) -> Self:
        FaultyBackend.may_end, FaultyBackend.ignoring = asyncio.Event(), asyncio.Event()
        return self

    async def run(self, task: Task) -> Result:
        return Result(json={"result": await getattr(self, f"_{task.name}")(task)})

    async def _block(self, task: Task) -> str:
        time.sleep(0.4)  # noqa: ASYNC251 (this blocks the loop)
        return "blocked"

    async def _hang(self, task: Task) -> str:
        while True:
            _touch(task)
            time.sleep(0.1)  # noqa: ASYNC251

    async def _hang_on(self, task: Task) -> str:
        await FaultyBackend.may_end.wait()
        return "at last"

    async def _ignore(self, task: Task) -> str:
        FaultyBackend.ignoring.set()
        _touch(task)
        while not FaultyBackend.may_end.is_set():
            try:
                await FaultyBackend.may_end.wait()
            except asyncio.CancelledError:
                continue
        return "ended"

    async def _raise(self, task: Task) -> Any:
        raise LookupError("a bug")

    async def _cancels(self, task: Task) -> Any:
        inner = asyncio.ensure_future(asyncio.Event().wait())
        inner.cancel()
        await inner

    async def _panic(self, task: Task) -> Any:
        raise Panic

    async def _refuse(self, task: Task) -> Any:
        raise TaskRefused("busy")

    async def _exit(self, task: Task) -> Any:
        sys.exit(0)

    async def _interrupt(self, task: Task) -> Any:
        raise KeyboardInterrupt

    async def _serve(self, task: Task) -> str:
        return "served"


def _touch(task: Task) -> None:
    """Append a byte to the file named in the request.

    It signals a test in another process.
    """
    if "file" in task.json:
        with Path(task.json["file"]).open("ab") as file:
            file.write(b".")


class ExitsInEstimate(Backend[BackendSettings]):
    """Ends the process, by its own intent, in each method that the policy calls beside `run`."""

    tasks = ("serve",)

    async def run(self, task: Task) -> Result:
        return Result(json={"result": "served"})

    def size(self, task: Task) -> float:
        sys.exit(3)

    def estimate(self, task: Task, view: View) -> float | None:
        sys.exit(3)

    def plan(self, task: Task, view: View) -> dict[str, Any] | None:
        sys.exit(3)
