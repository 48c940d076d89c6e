from __future__ import annotations

import time

from gateway.demo.calls import PRIMES, PRIMES_BELOW
from gateway.demo.tasks import occupy, primes


def test_primes_are_counted_correctly() -> None:
    assert primes([*PRIMES_BELOW[:2], 0, 2, 3]) == [*PRIMES[:2], 0, 0, 1]


def test_occupying_takes_as_long_as_asked() -> None:
    began = time.monotonic()
    assert occupy(0.05) == 0.05
    assert time.monotonic() - began >= 0.05
