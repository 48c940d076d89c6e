"""How long to wait before the next try: exponential, full jitter.

Theory: with pauses drawn from the whole interval, clients that lost one broker at one instant come back
spread evenly (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

FIRST_S = 0.5
MAX_S = 30.0
GOOD_AFTER_S = 10.0  # a connection that lived so long was a good one


@dataclass(slots=True)
class Backoff:
    """Pauses between tries, in seconds."""

    first_s: float = FIRST_S
    max_s: float = MAX_S
    uniform: Callable[[float, float], float] = random.uniform
    tries: int = 0

    def next(self, lived_s: float) -> float:
        """The pause after a connection that lived `lived_s` (0: it never opened)."""
        if lived_s >= GOOD_AFTER_S:
            self.tries = 0
        most = min(self.max_s, self.first_s * 2.0 ** min(self.tries, 30))
        self.tries += 1
        return self.uniform(0.0, most)
