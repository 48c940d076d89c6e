"""How many requests may be asked again of backends that failed them already: one in five.

Without a budget, retries double the load on a backend exactly when it is overloaded. A token bucket (as in
linkerd's retry budgets): every request puts a fifth of a token in, every second try takes a whole one out.
Asking somebody *else* costs nothing: that is load the other one has not had yet.
"""

from __future__ import annotations

TOKENS_PER_REQUEST = 0.2
BURST_TOKENS = 10.0


class RetryBudget:
    """A token bucket over all requests, full at the start."""

    def __init__(self) -> None:
        self._tokens = BURST_TOKENS

    def note_request(self) -> None:
        """One more request has come."""
        self._tokens = min(self._tokens + TOKENS_PER_REQUEST, BURST_TOKENS)

    def take(self) -> bool:
        """Whether one may be asked again; if so, that is paid for."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
