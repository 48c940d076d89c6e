"""Limits of one API key: its rate of requests, and how many may be in progress at once.

The rate limit uses GCRA (ITU-T I.371, annex A): the state of a key is one instant, its theoretical arrival time.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.admit.keys import Key
from gateway.plugin import TaskRefused

BUSY_RETRY_S = 1.0


@dataclass(slots=True)
class RateLimiter:
    """The usage of one key. Keys that a reload does not change keep theirs.

    due: the theoretical arrival time, monotonic seconds. active: requests in progress. has_refused: whether a request
    was refused because of these, since the last one ended.
    """

    due: float = 0.0
    active: int = 0
    has_refused: bool = False

    def acquire(self, key_id: str | None, key: Key, now: float) -> None:
        """Count a request. Raises TaskRefused above the limits of `key`."""
        if key.concurrency is not None and self.active >= key.concurrency:
            self.has_refused = True
            limit = f"{key.concurrency} requests open at once, cancelled ones that still run included"
            raise _rate_limited(f"the key {key_id} may have {limit}", BUSY_RETRY_S)
        self._check_rate(key_id, key, now)
        self.active += 1

    def release(self) -> None:
        """Count out a request that has ended, and whose work has stopped."""
        self.active -= 1
        self.has_refused = False

    def _check_rate(self, key_id: str | None, key: Key, now: float) -> None:
        if key.requests_per_minute is None:
            return
        interval_s = 60.0 / key.requests_per_minute
        due = max(self.due, now)
        early_s = due - now - interval_s * (key.burst - 1)
        if early_s > 1e-9:
            raise _rate_limited(f"the key {key_id} may send {key.requests_per_minute:g} requests a minute", early_s)
        self.due = due + interval_s


def _rate_limited(message: str, retry_after_s: float) -> TaskRefused:
    return TaskRefused(message, code="rate_limited", retry_after_s=retry_after_s)
