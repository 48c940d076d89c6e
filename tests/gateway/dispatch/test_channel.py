"""Back-pressure: a backend is so far ahead of who listens, in number and in bytes, and no further."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.dispatch.channel import CHANNEL_BYTES, CHANNEL_PARTS, Channel
from gateway.dispatch.resume import cancel_and_close
from gateway.plugin import Part

WHO: Any = None


@pytest.mark.parametrize(
    ("part", "most"),
    [(Part(raw=b"x"), CHANNEL_PARTS), (Part(raw=bytes(CHANNEL_BYTES)), 1), (Part(raw=bytes(CHANNEL_BYTES // 2)), 2)],
    ids=["many", "one that is large", "two of half the size"],
)
async def test_who_is_ahead_waits_for_who_listens(part: Part, most: int) -> None:
    channel = Channel()
    for _ in range(most):
        await asyncio.wait_for(channel.put((WHO, part)), 5)
    waits = asyncio.create_task(channel.put((WHO, part)))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waits.done()
    await channel.get()
    await asyncio.wait_for(waits, 5)


async def test_an_answer_that_came_when_nobody_wanted_it_any_more_is_closed() -> None:
    closed: list[bool] = []

    class Closable:
        def close(self) -> None:
            closed.append(True)

    asking: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asking.set_result(Closable())
    cancel_and_close(asking)
    assert closed == [True]
