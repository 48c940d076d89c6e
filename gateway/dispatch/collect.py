"""Collects the parts of a stream for a client that wants one response, within bounds on memory."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from gateway.dispatch.response_spec import Renderer, ResponseSpec
from gateway.plugin import BackendUnavailable, DeadlineExceeded, Part, Result

MAX_COLLECTED_BYTES = 8 << 20  # of a stream to a client that wants a whole response
MAX_BODY_BYTES = 65 << 20  # of a body in pieces, which is bounded by its source
MAX_EMPTY_BYTES = 4 << 20  # before the first content: some backends repeat the whole request there
PARTS_PER_TURN = 64  # parts taken before other tasks get a turn of the loop
PART_BYTES = 100  # about the memory that Python needs for a part beside its contents


async def collect(part: Part, more: AsyncIterator[Any], renderer: Renderer, expected: ResponseSpec) -> Result:
    """Make one response of this part and all that follow.

    Raises BackendUnavailable for unreadable or too many parts, and DeadlineExceeded on a stall.
    """
    collector, loop = _Collector(renderer, expected), asyncio.get_running_loop()
    stall_s = expected.limits.stall_s
    try:
        async with asyncio.timeout(stall_s if collector.add(part) else None) as stall:
            async for item in more:
                if collector.add(item):
                    stall.reschedule(loop.time() + stall_s)
                if collector.count % PARTS_PER_TURN == 0:
                    await asyncio.sleep(0)  # a backend with many parts ready must not block other requests
    except TimeoutError:
        if not stall.expired():
            raise
        raise DeadlineExceeded(f"the stream stalled: no content within {stall_s:g} s") from None
    return await renderer.whole(None)


class _Collector:
    """Passes parts to the renderer, and bounds their size."""

    def __init__(self, renderer: Renderer, expected: ResponseSpec) -> None:
        self._renderer, self._is_content = renderer, expected.is_content
        self.count = self._bytes = 0

    def add(self, part: Any) -> bool:
        """Add a part; return whether it is content. Raises BackendUnavailable if the parts become too large."""
        if not isinstance(part, Part):
            raise wrong_type(part)
        self.count += 1
        self._bytes += size_of(part)
        if self._bytes > (MAX_COLLECTED_BYTES if part.content_type is None else MAX_BODY_BYTES):
            raise too_large(self._bytes, "for a client that wants a whole response")
        self._renderer.add(part)
        return self._is_content(part)


def size_of(part: Part) -> int:
    """Return about how many bytes of memory a part takes."""
    content = part.data if part.raw is None else part.raw
    return PART_BYTES + (len(content) if isinstance(content, str | bytes) else sys.getsizeof(content))


def wrong_type(value: Any) -> TypeError:
    """Return the error for a wrong type that a plugin's `run` returned or yielded."""
    return TypeError(f"run gave {type(value).__name__}, which is neither Result nor Part")


def too_large(size: int, where: str) -> BackendUnavailable:
    """Return the error for a stream that exceeds a bound."""
    return BackendUnavailable(f"it streams more than {size} bytes {where}", code="upstream_bad_response", again=False)
