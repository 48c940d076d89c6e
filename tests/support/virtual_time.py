"""An event loop whose clock jumps: whoever sleeps wakes at once, at exactly the instant it wanted.

    with virtual_time() as runner:
        runner.run(work())

Nothing waits for anything real, so an hour of somebody's traffic takes as long as the computing in it, and gives the
same result each time. Threads and sockets still work; time stands still while the loop waits for them alone.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class _Jumping(selectors.DefaultSelector):
    """Where nothing has happened, time moves on to when something is due."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        happened = super().select(None if timeout is None else 0)
        if not happened and timeout is not None and timeout > 0:
            self.now += timeout
        return happened


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def virtual_time() -> asyncio.Runner:
    """Runs coroutines on a clock of their own, which begins at 0 s."""
    return asyncio.Runner(loop_factory=VirtualLoop)
