"""Collecting the parts of a stream for a client that requests a single response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from gateway.dispatch.collect import PARTS_PER_TURN, collect
from gateway.dispatch.response_spec import ResponseSpec
from gateway.plugin import Part, Result


class Texts:
    """Collector that joins texts."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, part: Part) -> None:
        self.text += part.data

    async def whole(self, result: Result | None) -> Result:
        return Result(json=self.text)


async def test_collector_yields_to_other_tasks_when_many_parts_are_ready() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def ready(count: int) -> AsyncIterator[Part]:
        for _ in range(count):
            yield Part("x")

    beside = asyncio.create_task(others())
    result = await collect(Part("x"), ready(10 * PARTS_PER_TURN), Texts(), ResponseSpec())
    assert turns >= 10
    assert result.json == "x" * (10 * PARTS_PER_TURN + 1)
    beside.cancel()
