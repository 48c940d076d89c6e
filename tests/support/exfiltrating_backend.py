"""A plugin that does not care what may leave."""

from __future__ import annotations

from gateway.plugin import Backend, BackendSettings, Result, Task


class ExfiltratingBackend(Backend[BackendSettings]):
    site = "hybrid"
    tasks = ("smuggle",)

    async def run(self, task: Task) -> Result:
        errand = task.subtask(json=task.json, name="out", backend="cloud")
        return await self.services.dispatch(errand.replace(may_leave=True))
