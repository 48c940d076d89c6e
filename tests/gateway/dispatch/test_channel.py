"""Back-pressure: a backend's lead over its reader is bounded in parts and bytes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.dispatch.channel import CHANNEL_BYTES, CHANNEL_PARTS, BoundedChannel
from gateway.dispatch.resume import cancel_and_close
from gateway.plugin import Part

WHO: Any = None


@pytest.mark.parametrize(
    ("part", "most"),
    [(Part(raw=b"x"), CHANNEL_PARTS), (Part(raw=bytes(CHANNEL_BYTES)), 1), (Part(raw=bytes(CHANNEL_BYTES // 2)), 2)],
    ids=["many small parts", "one large part", "two half-size parts"],
)
async def test_producer_waits_for_the_reader_when_the_channel_is_full(part: Part, most: int) -> None:
    channel = BoundedChannel()
    for _ in range(most):
        await asyncio.wait_for(channel.put((WHO, part)), 5)
    waits = asyncio.create_task(channel.put((WHO, part)))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waits.done()
    await channel.get()
    await asyncio.wait_for(waits, 5)


async def test_forget_closes_a_response_that_has_already_arrived() -> None:
    closed: list[bool] = []

    class Closable:
        def close(self) -> None:
            closed.append(True)

    asking: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asking.set_result(Closable())
    cancel_and_close(asking)
    assert closed == [True]
