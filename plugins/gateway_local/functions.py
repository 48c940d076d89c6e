"""The functions that are served when an operator has named none of his own: examples, and what the demo runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any


def add(a: Any, b: Any) -> Any:
    """The sum of a and b."""
    return a + b


def burn(seconds: float) -> float:
    """Keep one core busy for that many seconds; how many it were, in CPU time."""
    began, end = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return time.process_time() - began


def count(n: int) -> Iterator[int]:
    """The numbers from 1 to n, one part each."""
    yield from range(1, n + 1)


def squares(items: list[float]) -> list[float]:
    """The square of each item."""
    return [item * item for item in items]
