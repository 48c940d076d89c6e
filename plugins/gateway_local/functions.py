"""Example functions, served if no function is configured, and used by the demo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any


def add(a: Any, b: Any) -> Any:
    """Return the sum of a and b."""
    return a + b


def burn(seconds: float) -> float:
    """Keep one core busy for `seconds`; return the CPU seconds used."""
    began, end = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return time.process_time() - began


def count(n: int) -> Iterator[int]:
    """Yield the numbers from 1 to n."""
    yield from range(1, n + 1)


def squares(items: list[float]) -> list[float]:
    """Return the square of each item."""
    return [item * item for item in items]
