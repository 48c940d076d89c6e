"""An event loop on virtual time.

A sleep returns at once, and the clock shows exactly its end.

    with virtual_time() as runner:
        runner.run(work())

No real time passes in a sleep, so an hour of simulated traffic takes only its computing time, and every run gives the
same result. Threads and sockets still work; virtual time does not advance while the loop waits only for them.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class _Jumping(selectors.DefaultSelector):
    """If no event is ready, advance the clock to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def virtual_time() -> asyncio.Runner:
    """Return a runner with a clock that starts at 0 s."""
    return asyncio.Runner(loop_factory=VirtualLoop)
