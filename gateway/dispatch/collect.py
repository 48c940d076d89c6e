"""Parts put together for a client that wants one answer; and how much may be kept of what somebody streams."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from gateway.dispatch.continuation import Renderer
from gateway.dispatch.response_spec import ResponseSpec
from gateway.plugin import BackendUnavailable, DeadlineExceeded, Part, Result

MAX_GATHERED_BYTES = 8 << 20  # of a stream to a client that wants a whole
MAX_BODY_BYTES = 65 << 20  # of a body in pieces, which is bounded where it comes from
MAX_EMPTY_BYTES = 4 << 20  # before the first content: some repeat the whole request in there
AT_ONCE = 64  # parts taken without a pause, where so many are there
PART_BYTES = 100  # about what Python needs for a part beside what is in it


async def gathered(part: Part, more: AsyncIterator[Any], renderer: Renderer, expected: ResponseSpec) -> Result:
    """One answer from this part and all that follow. Raises BackendUnavailable, and DeadlineExceeded for a stall."""
    gathering, loop = _Gathering(renderer, expected), asyncio.get_running_loop()
    stall_s = expected.limits.stall_s
    try:
        async with asyncio.timeout(stall_s if gathering.add(part) else None) as stall:
            async for item in more:
                if gathering.add(item):
                    stall.reschedule(loop.time() + stall_s)
                if gathering.parts % AT_ONCE == 0:
                    await asyncio.sleep(0)  # who has many parts ready must not keep others waiting
    except TimeoutError:
        if not stall.expired():
            raise
        raise DeadlineExceeded(f"nothing more came within {stall_s:g} s") from None
    return await renderer.whole(None)


class _Gathering:
    """Parts on their way to the renderer."""

    def __init__(self, renderer: Renderer, expected: ResponseSpec) -> None:
        self._renderer, self._is_content = renderer, expected.is_content
        self.parts = self._bytes = 0

    def add(self, part: Any) -> bool:
        """One more; whether it is content. Raises BackendUnavailable where it is one too many."""
        if not isinstance(part, Part):
            raise no_answer(part)
        self.parts += 1
        self._bytes += size_of(part)
        if self._bytes > (MAX_GATHERED_BYTES if part.content_type is None else MAX_BODY_BYTES):
            raise too_much(self._bytes, "to a client that wants one answer")
        self._renderer.add(part)
        return self._is_content(part)


def size_of(part: Part) -> int:
    """About how many bytes it takes."""
    held = part.data if part.raw is None else part.raw
    return PART_BYTES + (len(held) if isinstance(held, str | bytes) else sys.getsizeof(held))


def no_answer(given: Any) -> TypeError:
    """A plugin gave what is none of its interface's types."""
    return TypeError(f"run gave {type(given).__name__}, which is neither Result nor Part")


def too_much(size: int, of: str) -> BackendUnavailable:
    """It streams without an end."""
    return BackendUnavailable(f"it streams more than {size} bytes {of}", code="upstream_bad_response", again=False)
