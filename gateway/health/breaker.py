"""A breaker per backend: stop sending to one that keeps failing, and find out when it is well again.

Theory of operation. Three states:

    closed     requests pass; five failures in a row, or half of the last twenty (at least ten), open it
    open       nothing passes until the time is up: 10 s, or what Retry-After said, at most 60 s; but a pinned
               request, which has nowhere else to go, is let through as a try every 10 s
    half_open  the time is up, or a probe was answered: one request at a time is let through; its success
               closes, its failure opens again

A client's mistake (4xx) and a cancelled request say nothing about the backend: `ignored`. What the table does
not hold raises.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half_open"]
Event = Literal["tripped", "time_up", "probe_answered", "try_succeeded", "try_failed"]

TRANSITIONS: dict[State, dict[Event, State]] = {
    "closed": {"tripped": "open", "probe_answered": "closed"},
    "open": {
        "time_up": "half_open",
        "probe_answered": "half_open",
        "try_succeeded": "closed",  # a request that began before it opened, or a pinned one
        "try_failed": "open",
    },
    "half_open": {
        "tripped": "open",
        "probe_answered": "half_open",
        "try_succeeded": "closed",
        "try_failed": "open",
    },
}

CONSECUTIVE = 5
WINDOW, MIN_WINDOW, RATIO = 20, 10, 0.5
OPEN_S = 10.0
MAX_RETRY_AFTER_S = 60.0
PINNED_EVERY_S = 10.0
TRY_LASTS_S = 10.0  # a try that was never reported blocks the next no longer than this


class Breaker:
    """One backend's breaker. `clock` gives seconds; `on_change(before, after, why)` hears of every change."""

    def __init__(
        self,
        clock: Callable[[], float],
        on_change: Callable[[State, State, str], None] = lambda before, after, why: None,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._state: State = "closed"
        self._why = ""
        self._is_limit = False
        self._failures = 0
        self._window: deque[bool] = deque(maxlen=WINDOW)
        self._opens_until = -math.inf
        self._paused_until = -math.inf
        self._tried_at = -math.inf

    @property
    def state(self) -> State:
        """The state now; an open breaker whose time is up is half open."""
        if self._state == "open" and self._clock() >= self._opens_until:
            self._obey("time_up", "its time is up")
        return self._state

    @property
    def why_open(self) -> str | None:
        """Why it is not closed; None when it is."""
        return None if self.state == "closed" else self._why

    @property
    def wait_s(self) -> float:
        """Seconds for which it stays open; 0.0 where it is not, or a try is under way."""
        return self._opens_until - self._clock() if self.state == "open" else 0.0

    @property
    def is_rate_limit(self) -> bool:
        """Whether it is open because too much was asked of the backend."""
        return self.state == "open" and self._is_limit

    def would_allow(self, *, pinned: bool = False) -> bool:
        """Whether a request may pass now, taking nothing."""
        if self.state == "closed":
            return True
        now = self._clock()
        if self._state == "half_open":
            return now - self._tried_at >= TRY_LASTS_S or self._tried_at == -math.inf
        return pinned and now - self._tried_at >= PINNED_EVERY_S

    def allows(self, *, pinned: bool = False) -> bool:
        """Whether a request may pass now; where that is a try, it is taken by the asker."""
        allowed = self.would_allow(pinned=pinned)
        if allowed and self._state != "closed":
            self._tried_at = self._clock()
        return allowed

    def succeeded(self) -> None:
        """It served a request."""
        self._failures = 0
        self._window.append(True)
        if self.state != "closed":
            self._obey("try_succeeded", "it served a request")

    def failed(self, why: str = "it failed", *, retry_after_s: float | None = None, is_limit: bool = False) -> None:
        """It failed by its own fault (5xx, 429, broken connection, time-out); it may have said until when.

        is_limit: that was its limit of rate.
        """
        self._failures += 1
        self._is_limit = is_limit
        self._window.append(False)
        asked_s = _bounded(retry_after_s)
        self._paused_until = max(self._paused_until, self._clock() + asked_s)
        if self.state != "closed":
            self._open_for(max(asked_s, OPEN_S))
            self._obey("try_failed", why)
        elif asked_s > 0 or self._failures >= CONSECUTIVE or self._too_many():
            self._open_for(asked_s or OPEN_S)
            self._obey("tripped", why)

    def ignored(self) -> None:
        """The request ended in a way that says nothing of the backend: a try is free again."""
        if self._state != "closed":
            self._tried_at = -math.inf if self._state == "half_open" else self._tried_at

    def probe_ok(self) -> None:
        """A probe was answered well: an open breaker may be tried, unless the backend asked for a pause."""
        if self.state != "closed" and self._clock() >= self._paused_until:
            self._obey("probe_answered", self._why)

    def _too_many(self) -> bool:
        seen = len(self._window)
        return seen >= MIN_WINDOW and self._window.count(False) >= RATIO * seen

    def _open_for(self, seconds: float) -> None:
        self._opens_until = max(self._clock() + seconds, self._paused_until)

    def _obey(self, event: Event, why: str) -> None:
        before, self._state = self._state, TRANSITIONS[self._state][event]
        if self._state == before:
            return
        self._tried_at = -math.inf
        if self._state == "closed":
            self._window.clear()
            self._failures = 0
        if self._state == "open" or event == "try_succeeded":
            self._why = why
        self._on_change(before, self._state, why)


def _bounded(retry_after_s: float | None) -> float:
    if retry_after_s is None or not retry_after_s > 0.0:
        return 0.0
    return min(retry_after_s, MAX_RETRY_AFTER_S)
