"""What the demo offers besides `add`: work that can be divided, and a task that does nothing but keep a slot busy."""

from __future__ import annotations

import time


def occupy(seconds: float) -> float:
    """Hold a slot for `seconds`, and leave the processor to others."""
    time.sleep(seconds)
    return seconds


def primes(items: list[int]) -> list[int]:
    """How many primes there are below each item, counted the hard way."""
    return [sum(map(_is_prime, range(2, limit))) for limit in items]


def _is_prime(number: int) -> bool:
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            return False
        divisor += 1
    return True
