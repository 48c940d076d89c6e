"""A backend that holds whoever stands before it until its own gate is opened, by the backend's name."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from gateway.plugin import Backend, BackendSettings, Result, Task


class GatedBackend(Backend[BackendSettings]):
    """Task `stand` waits for `GatedBackend.gates[name]`, `walk` does not; both say where they were."""

    tasks = ("stand", "walk")
    gates: ClassVar[dict[str, asyncio.Event]] = {}
    waiting: ClassVar[set[str]] = set()

    async def run(self, task: Task) -> Result:
        name = self.services.name
        if task.name == "stand":
            GatedBackend.waiting.add(name)
            await GatedBackend.gates.setdefault(name, asyncio.Event()).wait()
        return Result(json={"result": {"at": name}})
