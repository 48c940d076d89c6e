"""A clock that a test sets, for code that measures time.

For code that waits, use `gateway.testing.FakeClock`.
"""

from __future__ import annotations


class Clock:
    """Pass as a `clock` argument; `now` is in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
