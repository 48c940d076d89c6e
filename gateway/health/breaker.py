"""A circuit breaker per backend: stop sending to a backend that keeps failing, and detect when it has recovered.

Theory of operation. Three states:

    closed     requests pass; five failures in a row, or half of the last twenty (at least ten), open it
    open       no request passes for 10 s, or for the time the backend's Retry-After asks for, at most 60 s; but a
               pinned request, which has no other backend, passes as a trial every 10 s
    half_open  the open time has passed, or a probe succeeded: one request at a time passes, as a trial; its
               success closes the breaker, its failure opens it again

A client's mistake (4xx) and a cancelled request are not evidence about the backend: `record_ignored`. A pair that the
table does not hold raises KeyError.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half_open"]
Event = Literal["tripped", "time_up", "probe_succeeded", "trial_succeeded", "trial_failed"]

TRANSITIONS: dict[State, dict[Event, State]] = {
    "closed": {"tripped": "open", "probe_succeeded": "closed"},
    "open": {
        "time_up": "half_open",
        "probe_succeeded": "half_open",
        "trial_succeeded": "closed",  # a pinned request, or a request that began before the breaker opened
        "trial_failed": "open",
    },
    "half_open": {
        "tripped": "open",
        "probe_succeeded": "half_open",
        "trial_succeeded": "closed",
        "trial_failed": "open",
    },
}

CONSECUTIVE_FAILURES = 5
WINDOW_SIZE, MIN_WINDOW_SIZE, FAILURE_RATIO = 20, 10, 0.5
OPEN_S = 10.0
MAX_RETRY_AFTER_S = 60.0
PINNED_TRIAL_EVERY_S = 10.0
TRIAL_TIMEOUT_S = 10.0  # a trial without a recorded outcome blocks the next trial for at most this long


class Breaker:
    """The breaker of one backend.

    clock: returns monotonic seconds. on_change(before, after, why): called for each change of state.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        on_change: Callable[[State, State, str], None] = lambda before, after, why: None,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._state: State = "closed"
        self._why = ""
        self._is_rate_limit = False
        self._failures = 0
        self._window: deque[bool] = deque(maxlen=WINDOW_SIZE)
        self._open_until = -math.inf
        self._paused_until = -math.inf
        self._trial_began = -math.inf

    @property
    def state(self) -> State:
        """The state now; an open breaker becomes half open here once its open time has passed."""
        if self._state == "open" and self._clock() >= self._open_until:
            self._transition("time_up", "the open time has passed")
        return self._state

    @property
    def why_open(self) -> str | None:
        """Why the breaker is open or half open; None if it is closed."""
        return None if self.state == "closed" else self._why

    @property
    def wait_s(self) -> float:
        """Seconds until an open breaker becomes half open; 0.0 in the other states."""
        return self._open_until - self._clock() if self.state == "open" else 0.0

    @property
    def is_rate_limit(self) -> bool:
        """True if the breaker is open because the backend's rate limit was exceeded."""
        return self.state == "open" and self._is_rate_limit

    def is_available(self, *, pinned: bool = False) -> bool:
        """True if a request may pass now. Does not take the trial."""
        if self.state == "closed":
            return True
        now = self._clock()
        if self._state == "half_open":
            return now - self._trial_began >= TRIAL_TIMEOUT_S or self._trial_began == -math.inf
        return pinned and now - self._trial_began >= PINNED_TRIAL_EVERY_S

    def try_acquire(self, *, pinned: bool = False) -> bool:
        """True if the caller's request may pass now; takes the trial unless the breaker is closed."""
        is_available = self.is_available(pinned=pinned)
        if is_available and self._state != "closed":
            self._trial_began = self._clock()
        return is_available

    def record_success(self) -> None:
        """The backend served a request."""
        self._failures = 0
        self._window.append(True)
        if self.state != "closed":
            self._transition("trial_succeeded", "a request succeeded")

    def record_failure(
        self, why: str = "it failed", *, retry_after_s: float | None = None, is_limit: bool = False
    ) -> None:
        """The backend failed by its own fault: 5xx, 429, broken connection, timeout.

        retry_after_s: the pause it asked for. is_limit: its rate limit was exceeded.
        """
        self._failures += 1
        self._is_rate_limit = is_limit
        self._window.append(False)
        pause_s = _bounded(retry_after_s)
        self._paused_until = max(self._paused_until, self._clock() + pause_s)
        if self.state != "closed":
            self._open_for(max(pause_s, OPEN_S))
            self._transition("trial_failed", why)
        elif pause_s > 0 or self._failures >= CONSECUTIVE_FAILURES or self._is_failure_rate_high():
            self._open_for(pause_s or OPEN_S)
            self._transition("tripped", why)

    def record_ignored(self) -> None:
        """The outcome is not evidence about the backend: the next request may be the half-open trial."""
        if self._state == "half_open":
            self._trial_began = -math.inf

    def record_probe_success(self) -> None:
        """A health check passed: an open breaker becomes half open, unless the backend asked for a longer pause."""
        if self.state != "closed" and self._clock() >= self._paused_until:
            self._transition("probe_succeeded", self._why)

    def _is_failure_rate_high(self) -> bool:
        size = len(self._window)
        return size >= MIN_WINDOW_SIZE and self._window.count(False) >= FAILURE_RATIO * size

    def _open_for(self, seconds: float) -> None:
        self._open_until = max(self._clock() + seconds, self._paused_until)

    def _transition(self, event: Event, why: str) -> None:
        before, self._state = self._state, TRANSITIONS[self._state][event]
        if self._state == before:
            return
        self._trial_began = -math.inf
        if self._state == "closed":
            self._window.clear()
            self._failures = 0
        if self._state == "open" or event == "trial_succeeded":
            self._why = why
        self._on_change(before, self._state, why)


def _bounded(retry_after_s: float | None) -> float:
    if retry_after_s is None or not retry_after_s > 0.0:
        return 0.0
    return min(retry_after_s, MAX_RETRY_AFTER_S)
