"""`Services` of a hybrid with coroutine functions as backends `here` and `there`.

Dispatches are recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.plugin import LinkSample, Result, Task

Side = Callable[[Task], Awaitable[Result]]
HERE, THERE = "here", "there"


async def squares(task: Task) -> Result:
    await asyncio.sleep(0)
    return Result(json={"result": [n * n for n in task.json["items"]]})


async def never(task: Task) -> Result:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def raises(error: Exception) -> Side:
    async def side(task: Task) -> Result:
        raise error

    return side


def answers(result: Result) -> Side:
    async def side(task: Task) -> Result:
        return result

    return side


def takes(seconds: float, then: Side) -> Side:
    """Run `then` after a delay of `seconds`."""

    async def side(task: Task) -> Result:
        await asyncio.sleep(seconds)
        return await then(task)

    return side


def serialised(per_item_s: float, overhead_s: float = 0.0) -> Side:
    """Square numbers, one group after the other."""
    turn = asyncio.Lock()

    async def side(task: Task) -> Result:
        await asyncio.sleep(overhead_s)
        async with turn:
            await asyncio.sleep(per_item_s * len(task.json["items"]))
        return await squares(task)

    return side


class EventLog:
    """Records the events."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.keys: list[dict[str, Any]] = []

    def info(self, event: str, **keys: Any) -> None:
        self.events.append(event)
        self.keys.append(keys)

    debug = warning = error = info


class Predictions:
    """A view with fixed predictions.

    They are seconds per backend, or a function of the task that returns seconds.
    """

    def __init__(self, *, slots: int = 1, p95: float = 2.0, **seconds: float | Callable[[Task], float]) -> None:
        self._seconds, self._slots, self._p95 = seconds, slots, p95

    def seconds(self, backend: str, task: Task) -> float | None:
        known = self._seconds.get(backend)
        return known(task) if callable(known) else known

    def p95_s(self, backend: str, task: Task) -> float | None:
        known = self.seconds(backend, task)
        return None if known is None else self._p95 * known

    def slots(self, backend: str) -> int:
        return self._slots


class HybridServices:
    """Services with two coroutine functions as backends."""

    name = "both"

    def __init__(self, edge: Side = squares, cloud: Side = squares, view: Predictions | None = None) -> None:
        self.sides = {HERE: edge, THERE: cloud}
        self.view = view or Predictions()
        self.log = EventLog()
        self.dispatched: list[Task] = []
        self.cancelled = 0

    async def dispatch(self, task: Task) -> Result:
        self.dispatched.append(task)
        assert task.pin is not None
        try:
            return await self.sides[task.pin](task)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def observe(self, sample: LinkSample) -> None: ...

    def dispatched_to(self, side: str) -> list[Task]:
        return [task for task in self.dispatched if task.pin == side]
