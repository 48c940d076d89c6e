"""Split work through `dispatch`: the task `summaries` sends each text to the best backend for `summary`."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from gateway.plugin import Backend, BackendSettings, Result, Task


class Summaries(Backend[BackendSettings]):
    """A list of texts in, a list of summaries out, in the same order."""

    site = "hybrid"  # it computes nothing itself; each subtask is checked and routed on its own
    slots = 16
    tasks = ("summaries",)
    examples: ClassVar = {"summaries": {"texts": ["one", "two", "three"]}}

    async def run(self, task: Task) -> Result:
        task.terms.enter("split")  # charge its own time; subtasks have time accounts of their own
        parts = [task.subtask(name="summary", json={"text": text}) for text in task.argument("texts", list)]
        task.terms.leave()
        answers = await self._all(parts)
        task.terms.enter("aggregate")
        return Result(json={"result": [answer.value() for answer in answers]})

    async def _all(self, parts: list[Task]) -> list[Any]:
        """Every result. The first error cancels the others and is raised unchanged, so that its backend is charged."""
        try:
            async with asyncio.TaskGroup() as group:
                jobs = [group.create_task(self.services.dispatch(part)) for part in parts]
        except* Exception as failures:
            raise failures.exceptions[0] from None
        return [job.result() for job in jobs]
