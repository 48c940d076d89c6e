"""`gateway.plugin.Services` for a backend under test, without a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.plugin import LinkSample, Result, Task

Dispatch = Callable[[Task], Awaitable[Result]]


class FakeLog:
    """A log that records its events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def debug(self, event: str, **keys: Any) -> None:
        self.events.append((event, keys))

    info = warning = error = debug


class FakeView:
    """A view in which every backend has one slot, takes 0.1 s for a task, and 0.2 s at the 95th percentile."""

    def seconds(self, backend: str, task: Task) -> float | None:
        return 0.1

    def p95_s(self, backend: str, task: Task) -> float | None:
        return 0.2

    def slots(self, backend: str) -> int:
        return 1


@dataclass
class FakeServices:
    """Services that pass subtasks to `on_subtask` and record log events and link samples."""

    name: str
    on_subtask: Dispatch
    log: FakeLog = field(default_factory=FakeLog)
    samples: list[LinkSample] = field(default_factory=list)

    async def dispatch(self, task: Task) -> Result:
        return await self.on_subtask(task)

    def observe(self, sample: LinkSample) -> None:
        self.samples.append(sample)

    @property
    def view(self) -> FakeView:
        return FakeView()


async def echo_subtask(task: Task) -> Result:
    """Answer a subtask with the first list in its JSON object, or with its whole JSON body."""
    await asyncio.sleep(0)
    body = task.json
    lists = [value for value in body.values() if isinstance(value, list)] if isinstance(body, dict) else []
    return Result(json={"result": lists[0] if lists else body}, backend=task.pin, site="edge")
