"""Task functions of the demo besides `add`: a task that can be divided, and a task that only occupies a slot."""

from __future__ import annotations

import time


def occupy(seconds: float) -> float:
    """Occupy a slot for `seconds` without using the processor."""
    time.sleep(seconds)
    return seconds


def primes(items: list[int]) -> list[int]:
    """The number of primes below each item, by trial division, which uses the processor for a while."""
    return [sum(map(_is_prime, range(2, limit))) for limit in items]


def _is_prime(number: int) -> bool:
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            return False
        divisor += 1
    return True
