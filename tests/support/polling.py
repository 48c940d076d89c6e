"""Polling for conditions that have no event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def wait_until(claim: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Turn the loop until `claim` holds. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not claim():  # noqa: ASYNC110 (no event exists for it)
            await asyncio.sleep(0)
