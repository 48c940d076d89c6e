"""Keeps work away from a plugin that is broken, not just failing: the breaker's longer memory.

A plugin raises what is no error of the gateway's when it has a bug. RAISES of them in a row, no answer in between,
and nobody asks it for a minute, then for twice as long, up to a quarter of an hour; one answer, and all is forgotten.
A plugin whose every slot is held by a task that ignores its cancellation is out until one of them ends.
"""

from __future__ import annotations

from collections.abc import Callable

RAISES = 20
FIRST_S, MAX_S = 60.0, 900.0


class Quarantine:
    """One backend's. `clock` gives seconds; `on_change(why, seconds)` hears when it begins."""

    def __init__(
        self, clock: Callable[[], float], on_change: Callable[[str, float], None] = lambda why, seconds: None
    ) -> None:
        self._clock, self._on_change = clock, on_change
        self._raised = 0
        self._seconds = FIRST_S
        self._until = float("-inf")
        self._why = ""
        self.leaked = 0

    def why(self, slots: int) -> str | None:
        """Why it gets no work now; None when it does."""
        if self.leaked >= slots:
            return f"quarantined: {self.leaked} tasks hold its slots and do not end"
        return f"quarantined: {self._why}" if self._clock() < self._until else None

    def raised(self, what: str) -> None:
        """It raised what no plugin should."""
        self._raised += 1
        if self._raised < RAISES or self._clock() < self._until:
            return
        self._why = f"it raised {what} {self._raised} times and answered nothing"
        self._until = self._clock() + self._seconds
        self._on_change(self._why, self._seconds)
        self._seconds = min(2 * self._seconds, MAX_S)
        self._raised = RAISES - 1  # the next one after it is a try: it is let out, or back in

    def answered(self) -> None:
        """It served a task."""
        self._raised, self._seconds, self._until = 0, FIRST_S, float("-inf")
