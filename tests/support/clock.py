"""A clock that only a test moves, either way: for code that measures. `gateway.testing.FakeClock` is for what waits."""

from __future__ import annotations


class Clock:
    """Give it wherever a `clock` is taken; `now` is in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
