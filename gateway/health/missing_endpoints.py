"""The endpoints a backend turned out not to have: for a while nobody asks it for these; it may be renewed meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

LACKS_S = 300.0
MAX_PATHS = 32  # a path may hold what a client wrote


class MissingEndpoints:
    """By path, until when it is believed. A query is no part of a path."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def note(self, path: str) -> None:
        """It has just said so. The least recently noted of too many is forgotten: it was the next to expire."""
        path = path.partition("?")[0]
        self._until.pop(path, None)
        if len(self._until) >= MAX_PATHS:
            del self._until[next(iter(self._until))]
        self._until[path] = self._clock() + LACKS_S

    def has(self, path: str) -> bool:
        """Whether it is believed to lack this."""
        return bool(self._until) and self._until.get(path.partition("?")[0], 0.0) > self._clock()
