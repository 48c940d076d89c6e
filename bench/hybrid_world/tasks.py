"""The tasks of the benchmark's gateways.

Each item takes the requested time at either site.
"""

from __future__ import annotations

import random
import time


def at_edge(items: list, edge_s: float = 0.0, cloud_s: float = 0.0) -> list:
    """Process one item after the other at the edge's speed.

    The answer identifies the items.
    """
    return [_number(item, edge_s) for item in items]


def at_cloud(items: list, edge_s: float = 0.0, cloud_s: float = 0.0) -> list:
    """Process one item after the other at the cloud's speed."""
    return [_number(item, cloud_s) for item in items]


def _number(item: int | str, seconds: float) -> int:
    time.sleep(seconds)
    return -(item if isinstance(item, int) else int(item.partition(":")[0]))


def tail(seconds: float = 0.02, share: float = 0.03, slow: float = 40.0) -> float:
    """Take about `seconds`; a random share of the calls takes a multiple of it."""
    takes_s = seconds * random.uniform(0.8, 1.2) * (slow * random.uniform(0.5, 1.0) if random.random() < share else 1.0)
    time.sleep(takes_s)
    return takes_s
