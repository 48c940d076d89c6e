"""A backend that holds whoever stands before it until its own gate is opened, by the backend's name."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from gateway.plugin import Backend, BackendSettings, Result, Task


class Turnstile(Backend[BackendSettings]):
    """Task `stand` waits for `Turnstile.gates[name]`, `walk` does not; both say where they were."""

    tasks = ("stand", "walk")
    gates: ClassVar[dict[str, asyncio.Event]] = {}
    standing: ClassVar[set[str]] = set()

    async def run(self, task: Task) -> Result:
        name = self.services.name
        if task.name == "stand":
            Turnstile.standing.add(name)
            await Turnstile.gates.setdefault(name, asyncio.Event()).wait()
        return Result(json={"result": {"at": name}})
