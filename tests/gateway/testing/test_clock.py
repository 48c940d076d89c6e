from __future__ import annotations

import asyncio

import pytest

from gateway.testing import FakeClock


async def test_fake_clock_wakes_sleepers_in_order_at_their_own_times() -> None:
    clock, woken = FakeClock(0.0), list[tuple[str, float]]()

    async def sleeper(name: str, *pauses_s: float) -> None:
        for pause_s in pauses_s:
            await clock.sleep(pause_s)
            woken.append((name, clock()))

    jobs = [asyncio.create_task(sleeper("a", 3, 1)), asyncio.create_task(sleeper("b", 2))]
    await clock.advance(3.5)
    assert woken == [("b", 2.0), ("a", 3.0)]
    await clock.advance(0.5)
    assert woken[-1] == ("a", 4.0)
    await asyncio.gather(*jobs)


async def test_cancelled_sleeper_does_not_affect_other_sleepers() -> None:
    clock = FakeClock(0.0)
    gone, stays = asyncio.create_task(clock.sleep(1)), asyncio.create_task(clock.sleep(1))
    await clock.settle()
    gone.cancel()
    await clock.advance(1)
    assert gone.cancelled()
    assert stays.done()


def test_moving_the_fake_clock_backwards_raises() -> None:
    clock = FakeClock(5.0)
    clock.move(0.25)
    assert clock() == 5.25
    with pytest.raises(ValueError, match="does not go back"):
        clock.move(-1)
