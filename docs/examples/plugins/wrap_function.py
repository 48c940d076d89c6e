"""Wrap an existing function: the task `quartiles`, with Python's statistics module."""

from __future__ import annotations

from statistics import StatisticsError, quantiles
from typing import ClassVar

from gateway.plugin import Backend, BackendSettings, Result, Task, TaskInvalid


class Quartiles(Backend[BackendSettings]):
    """The three quartiles of a list of numbers."""

    isolation = "process"  # it computes; in a worker process it does not block other requests
    slots = 2
    tasks = ("quartiles",)
    examples: ClassVar = {"quartiles": {"numbers": [3, 1, 4, 1, 5, 9, 2, 6]}}

    async def run(self, task: Task) -> Result:
        numbers = task.argument("numbers", list)
        try:
            return Result(json={"result": quantiles(numbers, n=4)})
        except (StatisticsError, TypeError) as exc:
            raise TaskInvalid(f"`numbers` has to hold two numbers or more: {exc}", param="numbers") from exc

    def size(self, task: Task) -> float:
        """The duration grows with the length of the body, which is also the default."""
        return float(len(task.body))
