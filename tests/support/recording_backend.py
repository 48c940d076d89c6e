"""A backend that records its tasks, and can fail them to trigger failover."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import ClassVar

from pydantic import Field

from gateway.plugin import Backend, BackendSettings, BackendUnavailable, Part, Result, Task


class RecordingSettings(BackendSettings):
    fails: bool = Field(False, description="fail every task")


class RecordingBackend(Backend[RecordingSettings]):
    tasks = ("sing", "hum")
    models = ("bird", "wren")
    slots = 4
    received: ClassVar[list[tuple[str, Task]]] = []

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        RecordingBackend.received.append((self.site, task))
        if self.settings.fails:
            raise BackendUnavailable("fails as configured")
        if task.kind == "task":
            yield Result(json={"result": "tweet"})
        else:
            yield Part("tweet")


class DispatchingBackend(Backend[BackendSettings]):
    """Dispatches a newly created task for every task it receives."""

    tasks = ("made",)

    async def run(self, task: Task) -> Result:
        made = Task(kind="task", name="sing", path="/v1/tasks/sing", deadline=math.inf, parent_id=task.id, body=b"{}")
        return await self.services.dispatch(made)
