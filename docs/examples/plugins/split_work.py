"""Splits work through `dispatch`: the task `summaries` gives each text to whoever serves `summary` best just then."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from gateway.plugin import Backend, BackendSettings, Result, Task


class Summaries(Backend[BackendSettings]):
    """A list of texts in, a list of summaries out, in the same order."""

    site = "hybrid"  # it computes nothing itself, and its subtasks go where each may go
    slots = 16
    tasks = ("summaries",)
    examples: ClassVar = {"summaries": {"texts": ["one", "two", "three"]}}

    async def run(self, task: Task) -> Result:
        task.terms.enter("split")  # where its own time goes; while subtasks run, they keep accounts of their own
        parts = [task.subtask(name="summary", json={"text": text}) for text in task.argument("texts", list)]
        task.terms.leave()
        answers = await self._all(parts)
        task.terms.enter("aggregate")
        return Result(json={"result": [answer.value() for answer in answers]})

    async def _all(self, parts: list[Task]) -> list[Any]:
        """Every answer. The first error cancels the others, and goes on as it is: it says who is to blame."""
        try:
            async with asyncio.TaskGroup() as group:
                jobs = [group.create_task(self.services.dispatch(part)) for part in parts]
        except* Exception as failures:
            raise failures.exceptions[0] from None
        return [job.result() for job in jobs]
