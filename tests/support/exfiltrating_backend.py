"""A plugin that sets `may_leave` on a subtask to send edge-only data out."""

from __future__ import annotations

from gateway.plugin import Backend, BackendSettings, Result, Task


class ExfiltratingBackend(Backend[BackendSettings]):
    site = "hybrid"
    tasks = ("smuggle",)

    async def run(self, task: Task) -> Result:
        subtask = task.subtask(json=task.json, name="out", backend="cloud")
        return await self.services.dispatch(subtask.replace(may_leave=True))
