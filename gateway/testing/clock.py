"""A clock that only a test advances."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count


class FakeClock:
    """A clock that stands still until it is advanced; pass it as any `clock` argument.

    now_s: the time at the beginning, in seconds.

    clock = FakeClock()
    waiting = asyncio.create_task(clock.sleep(5))
    await clock.advance(5)      # when this returns, `waiting` has run on
    """

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        """Return the current time in seconds."""
        return self.now_s

    def move(self, seconds: float) -> None:
        """Advance the clock without waking sleepers. Raises ValueError for a negative number of seconds."""
        if seconds < 0:
            raise ValueError(f"time does not go back (by {-seconds:g} s)")
        self.now_s += seconds

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has advanced by `seconds`."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Advance the clock, and wake each sleeper on the way at its own time."""
        await self.settle()
        until = self.now_s + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, woken = heapq.heappop(self._sleepers)
            self.now_s = max(self.now_s, at)
            if not woken.done():
                woken.set_result(None)
            await self.settle()
        self.move(until - self.now_s)

    async def settle(self) -> None:
        """Let all asyncio tasks run until they wait: ten turns of the event loop."""
        for _ in range(10):
            await asyncio.sleep(0)
