"""Endpoints for which a backend has returned 404: for a while it gets no requests for them."""

from __future__ import annotations

import time
from collections.abc import Callable

EXPIRE_S = 300.0  # then the backend is tried again: it may have been upgraded meanwhile
MAX_PATHS = 32  # a bound, because a path may contain text from the client


class MissingEndpoints:
    """The missing paths of one backend, each with its expiry. The query string is not part of a path."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expires: dict[str, float] = {}

    def record(self, path: str) -> None:
        """Record a 404 for this path. If there are too many, the oldest record, the next to expire, is dropped."""
        path = path.partition("?")[0]
        self._expires.pop(path, None)
        if len(self._expires) >= MAX_PATHS:
            del self._expires[next(iter(self._expires))]
        self._expires[path] = self._clock() + EXPIRE_S

    def is_missing(self, path: str) -> bool:
        """True if a 404 was recorded for this path and has not expired."""
        return bool(self._expires) and self._expires.get(path.partition("?")[0], 0.0) > self._clock()
