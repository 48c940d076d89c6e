"""A backend that holds its tasks until the gate of its name opens."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from gateway.plugin import Backend, BackendSettings, Result, Task


class GatedBackend(Backend[BackendSettings]):
    """Task `stand` waits for `GatedBackend.gates[name]`, `walk` does not.

    Both return the name.
    """

    tasks = ("stand", "walk")
    gates: ClassVar[dict[str, asyncio.Event]] = {}
    waiting: ClassVar[set[str]] = set()

    async def run(self, task: Task) -> Result:
        name = self.services.name
        if task.name == "stand":
            GatedBackend.waiting.add(name)
            await GatedBackend.gates.setdefault(name, asyncio.Event()).wait()
        return Result(json={"result": {"at": name}})
