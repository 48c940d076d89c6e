"""Time that only a test moves."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count


class FakeClock:
    """A clock that stands still until it is advanced; give it wherever a `clock` is taken.

    clock = FakeClock()
    waiting = asyncio.create_task(clock.sleep(5))
    await clock.advance(5)      # `waiting` has gone on when this returns
    """

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        """Now, in seconds."""
        return self.now_s

    def move(self, seconds: float) -> None:
        """Let time pass, for code that does not wait. Raises ValueError where that would be backwards."""
        if seconds < 0:
            raise ValueError(f"time does not go back, not even {-seconds:g} s")
        self.now_s += seconds

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been advanced that far."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Let time pass, and everybody go on who waits for an instant on the way, each at that instant."""
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
        """Let every task run until it waits for something that no number of turns of the loop brings."""
        for _ in range(10):
            await asyncio.sleep(0)
