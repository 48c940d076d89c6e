"""Wraps a function that is there already: the task `quartiles`, by Python's own statistics module."""

from __future__ import annotations

from statistics import StatisticsError, quantiles
from typing import ClassVar

from gateway.plugin import Backend, BackendSettings, Result, Task, TaskInvalid


class Quartiles(Backend[BackendSettings]):
    """Where a quarter, a half and three quarters of the numbers lie."""

    isolation = "process"  # it computes; in a worker process that keeps nobody else waiting
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
        """Its duration grows with the body's length, which is what is assumed where nothing is said."""
        return float(len(task.body))
